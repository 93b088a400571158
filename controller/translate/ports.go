package translate

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// selectedPorts are svc's ports as pod serves them. A named target port that
// no TCP container port of the pod bears is left out: this pod does not serve
// that port.
func selectedPorts(svc *corev1.Service, pod *corev1.Pod) []mesh.Port {
	ports := make([]mesh.Port, 0, len(svc.Spec.Ports))
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if shadowed(svc, p) {
			continue
		}
		target := targetPort(p)
		if target == 0 {
			target = namedPort(p.TargetPort.StrVal, pod)
		}
		if target != 0 {
			ports = mergePorts(ports, []mesh.Port{{ServicePort: uint16(p.Port), TargetPort: target, AppProtocol: appProtocol(p)}})
		}
	}
	return ports
}

// targetPort is the number of p's target port, 0 when it is a name.
func targetPort(p *corev1.ServicePort) uint16 {
	switch {
	case p.TargetPort.Type == intstr.String && p.TargetPort.StrVal != "":
		return 0
	case p.TargetPort.IntVal != 0:
		return uint16(p.TargetPort.IntVal)
	}
	return uint16(p.Port)
}

// namedPort looks name up among the pod's TCP container ports; those of init
// containers count when the container keeps running beside the others.
func namedPort(name string, pod *corev1.Pod) uint16 {
	for i := range pod.Spec.Containers {
		if p := containerPort(&pod.Spec.Containers[i], name); p != 0 {
			return p
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if p := containerPort(c, name); p != 0 {
			return p
		}
	}
	return 0
}

func containerPort(c *corev1.Container, name string) uint16 {
	for _, p := range c.Ports {
		if p.Name == name && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
			return uint16(p.ContainerPort)
		}
	}
	return 0
}

// slicePorts joins slice's TCP ports with svc's by name: the slice holds the
// endpoint's number, the service the client's.
func slicePorts(slice *discoveryv1.EndpointSlice, svc *corev1.Service) []mesh.Port {
	var ports []mesh.Port
	for _, sp := range slice.Ports {
		if sp.Port == nil || sp.Protocol != nil && *sp.Protocol != corev1.ProtocolTCP {
			continue
		}
		name := ""
		if sp.Name != nil {
			name = *sp.Name
		}
		for i := range svc.Spec.Ports {
			if p := &svc.Spec.Ports[i]; p.Name == name && isPort(*sp.Port) {
				ports = append(ports, mesh.Port{ServicePort: uint16(p.Port), TargetPort: uint16(*sp.Port), AppProtocol: appProtocol(p)})
				break
			}
		}
	}
	return ports
}

// isPort reports whether n is the number of a port. An API server does not look
// at those of slices.
func isPort(n int32) bool { return n > 0 && n <= 65535 }

// shadowed reports whether p is not TCP and a TCP port has its number, as with
// DNS. The mesh carries TCP, so that one counts.
func shadowed(svc *corev1.Service, p *corev1.ServicePort) bool {
	tcp := func(q *corev1.ServicePort) bool { return q.Protocol == "" || q.Protocol == corev1.ProtocolTCP }
	for i := range svc.Spec.Ports {
		if q := &svc.Spec.Ports[i]; !tcp(p) && tcp(q) && q.Port == p.Port {
			return true
		}
	}
	return false
}

// mergePorts adds to ports those of more whose service port it lacks.
func mergePorts(ports, more []mesh.Port) []mesh.Port {
	for _, p := range more {
		if !slices.ContainsFunc(ports, func(q mesh.Port) bool { return q.ServicePort == p.ServicePort }) {
			ports = append(ports, p)
		}
	}
	return ports
}

// appProtocol is what svc's owner says flows on p: appProtocol, else the part
// of the port's name before the first dash.
func appProtocol(p *corev1.ServicePort) mesh.AppProtocol {
	if p.Protocol == corev1.ProtocolUDP || p.Protocol == corev1.ProtocolSCTP {
		return mesh.AppUnknown
	}
	word, _, _ := strings.Cut(p.Name, "-")
	if strings.HasPrefix(p.Name, "grpc-web") {
		word = "grpc-web"
	}
	if p.AppProtocol != nil {
		word = *p.AppProtocol
	}
	switch strings.ToLower(word) {
	case "http", "kubernetes.io/ws", "grpc-web":
		return mesh.AppHTTP11
	case "http2", "kubernetes.io/h2c":
		return mesh.AppHTTP2
	case "grpc":
		return mesh.AppGRPC
	case "https", "tls", "kubernetes.io/wss":
		return mesh.AppTLS
	case "tcp", "mongo", "mysql", "redis":
		return mesh.AppTCP
	}
	return mesh.AppUnknown
}
