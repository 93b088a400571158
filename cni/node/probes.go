package node

import (
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ProbePorts are the TCP ports of the pod that the kubelet dials: a probe
// carries no identity, so these alone are open to the kubelet of the pod's own
// node. Containers that can have none (ordinary init containers, ephemeral ones)
// are refused probes by the API server, and no pod's can be changed.
func ProbePorts(pod *corev1.Pod) []uint16 {
	own := podAddrs(pod)
	var out []uint16
	add := func(c *corev1.Container, host string, port intstr.IntOrString) {
		// With a host the kubelet dials that, which is the pod only by its
		// address. What a name means to the node is not known here.
		if a, err := netip.ParseAddr(host); host != "" && (err != nil || !slices.Contains(own, a.Unmap())) {
			return
		}
		if n := portOf(c, port); n > 0 && n < 1<<16 && !slices.Contains(out, uint16(n)) {
			out = append(out, uint16(n))
		}
	}
	containers := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) // sidecars are among the first
	for i := range containers {
		c := &containers[i]
		for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			switch {
			case p == nil:
			case p.HTTPGet != nil:
				add(c, p.HTTPGet.Host, p.HTTPGet.Port)
			case p.TCPSocket != nil:
				add(c, p.TCPSocket.Host, p.TCPSocket.Port)
			case p.GRPC != nil:
				add(c, "", intstr.FromInt32(p.GRPC.Port))
			}
		}
		if c.Lifecycle == nil {
			continue
		}
		// Hooks are dialled by the kubelet as well, by HTTP alone: a hook's
		// tcpSocket is a relic that it does not carry out.
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil && h.HTTPGet != nil {
				add(c, h.HTTPGet.Host, h.HTTPGet.Port)
			}
		}
	}
	slices.Sort(out)
	return out
}

// portOf is the port as the kubelet understands it: a name is one of the same
// container's, or a number after all.
func portOf(c *corev1.Container, port intstr.IntOrString) int {
	if port.Type == intstr.Int {
		return int(port.IntVal)
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return int(p.ContainerPort)
		}
	}
	n, err := strconv.Atoi(port.StrVal)
	if err != nil {
		return 0
	}
	return n
}
