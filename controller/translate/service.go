package translate

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

const trafficDistribution = "networking.istio.io/traffic-distribution"

// Hostname of a Kubernetes Service.
func (c Config) Hostname(namespace, name string) string {
	return name + "." + namespace + ".svc." + c.ClusterDomain
}

// ServiceKey of a Kubernetes Service.
func (c Config) ServiceKey(namespace, name string) string {
	return namespace + "/" + c.Hostname(namespace, name)
}

// Service is the mesh service of svc, or nil: an ExternalName is an alias that
// DNS resolves, there is nothing to route.
func (c Config) Service(svc *corev1.Service, objs Objects) (*mesh.Service, error) {
	if !published(svc) {
		return nil, nil
	}
	s := &mesh.Service{
		Name:       svc.Name,
		Namespace:  svc.Namespace,
		Hostname:   c.Hostname(svc.Namespace, svc.Name),
		IPFamilies: ipFamilies(svc.Spec.IPFamilies),
		Canonical:  true,
	}
	network := c.network(objs)
	for _, text := range clusterIPs(svc) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, &Error{Kind: "Service", Namespace: svc.Namespace, Name: svc.Name, Field: "spec.clusterIPs", Value: text, Problem: "not an IP address"}
		}
		a = a.Unmap()
		s.Addresses = append(s.Addresses, mesh.NetworkAddress{Network: network, Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if shadowed(svc, p) {
			continue
		}
		s.Ports = mergePorts(s.Ports, []mesh.Port{{ServicePort: uint16(p.Port), TargetPort: targetPort(p), AppProtocol: appProtocol(p)}})
	}
	s.LoadBalancing = loadBalancing(svc, objs.Namespace(svc.Namespace))
	if c.Meshed(svc, objs) {
		c.BindService(svc, false, objs).fill(s)
	}
	return s, nil
}

func published(svc *corev1.Service) bool { return svc.Spec.Type != corev1.ServiceTypeExternalName }

// Selects reports whether svc picks by its selector what has these labels.
func Selects(svc *corev1.Service, namespace string, labels map[string]string) bool {
	return svc.Namespace == namespace && len(svc.Spec.Selector) > 0 && matchLabels(svc.Spec.Selector, labels)
}

// clusterIPs leaves out the "None" of headless services.
func clusterIPs(svc *corev1.Service) []string {
	all := svc.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{svc.Spec.ClusterIP}
	}
	var ips []string
	for _, ip := range all {
		if ip != "" && ip != corev1.ClusterIPNone {
			ips = append(ips, ip)
		}
	}
	return ips
}

func ipFamilies(families []corev1.IPFamily) mesh.IPFamilies {
	switch {
	case len(families) == 2:
		return mesh.FamiliesDual
	case len(families) == 1 && families[0] == corev1.IPv4Protocol:
		return mesh.FamiliesIPv4
	case len(families) == 1 && families[0] == corev1.IPv6Protocol:
		return mesh.FamiliesIPv6
	}
	return mesh.FamiliesAutomatic
}

// loadBalancing takes the first that is set: internalTrafficPolicy Local,
// spec.trafficDistribution, the Service's annotation, its namespace's.
func loadBalancing(svc *corev1.Service, ns *corev1.Namespace) mesh.LoadBalancing {
	lb := mesh.LoadBalancing{AllowAll: svc.Spec.PublishNotReadyAddresses}
	if p := svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		lb.Mode, lb.Preference = mesh.ModeStrict, []mesh.Scope{mesh.ScopeNode}
		return lb
	}
	var want string
	switch {
	case svc.Spec.TrafficDistribution != nil:
		want = *svc.Spec.TrafficDistribution
	case svc.Annotations[trafficDistribution] != "":
		want = svc.Annotations[trafficDistribution]
	case ns != nil:
		want = ns.Annotations[trafficDistribution]
	}
	lb.Mode, lb.Preference = distribution(want)
	return lb
}

// distribution is what a value of trafficDistribution asks for.
func distribution(want string) (mesh.Mode, []mesh.Scope) {
	switch strings.ToLower(want) {
	case "preferclose", "prefersamezone":
		return mesh.ModeFailover, []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone}
	case "prefersamenode":
		return mesh.ModeFailover, []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone, mesh.ScopeSubzone, mesh.ScopeNode}
	}
	return mesh.ModeUnspecified, nil
}
