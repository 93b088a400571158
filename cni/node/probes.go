package node

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ProbePorts are the TCP ports the kubelet dials: a probe carries no identity,
// so these alone are open to the kubelet of the pod's own node.
func ProbePorts(pod *corev1.Pod) []uint16 {
	var out []uint16
	add := func(c *corev1.Container, port intstr.IntOrString) {
		n := port.IntValue()
		if port.Type == intstr.String {
			n = 0
			for _, p := range c.Ports {
				if p.Name == port.StrVal {
					n = int(p.ContainerPort)
				}
			}
		}
		if n > 0 && n < 1<<16 && !slices.Contains(out, uint16(n)) {
			out = append(out, uint16(n))
		}
	}
	containers := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
	for i := range containers {
		c := &containers[i]
		for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			switch {
			case p == nil:
			case p.HTTPGet != nil && p.HTTPGet.Host == "":
				add(c, p.HTTPGet.Port)
			case p.TCPSocket != nil && p.TCPSocket.Host == "":
				add(c, p.TCPSocket.Port)
			case p.GRPC != nil:
				add(c, intstr.FromInt32(p.GRPC.Port))
			}
		}
		if c.Lifecycle == nil {
			continue
		}
		// Hooks are dialled by the kubelet as well.
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			switch {
			case h == nil:
			case h.HTTPGet != nil && h.HTTPGet.Host == "":
				add(c, h.HTTPGet.Port)
			case h.TCPSocket != nil && h.TCPSocket.Host == "":
				add(c, h.TCPSocket.Port)
			}
		}
	}
	slices.Sort(out)
	return out
}
