package translate

import (
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// EndpointSlice are the workloads of slice's endpoints that are not pods: the
// API server's own service, endpoints made by hand. Little is known of them,
// not even that nobody else has the address, hence the host-network mode.
func (c Config) EndpointSlice(slice *discoveryv1.EndpointSlice, objs Objects) ([]*mesh.Workload, error) {
	svc := sliceService(slice, objs)
	if svc == nil {
		return nil, nil
	}
	o := object{kind: "EndpointSlice", namespace: slice.Namespace, name: slice.Name}
	for i := range slice.Ports {
		if n := slice.Ports[i].Port; n != nil && !isPort(*n) {
			o.bad(index("ports", i)+".port", strconv.Itoa(int(*n)), "not a port number")
		}
	}
	ports := slicePorts(slice, svc)
	var ws []*mesh.Workload
	seen := make(map[netip.Addr]bool)
	for i := range slice.Endpoints {
		ep := &slice.Endpoints[i]
		if ep.TargetRef != nil && ep.TargetRef.Kind == "Pod" || len(ep.Addresses) == 0 {
			continue
		}
		a, err := netip.ParseAddr(ep.Addresses[0])
		if err != nil {
			o.bad(index("endpoints", i)+".addresses[0]", ep.Addresses[0], "not an IP address")
			continue
		}
		a = a.Unmap()
		if seen[a] {
			continue
		}
		seen[a] = true
		w := &mesh.Workload{
			UID:         c.ClusterID + "/discovery.k8s.io/EndpointSlice/" + slice.Namespace + "/" + slice.Name + "/" + a.String(),
			Name:        slice.Name,
			Namespace:   slice.Namespace,
			Addresses:   []netip.Addr{a},
			Network:     c.network(objs),
			TrustDomain: c.trustDomain(),
			ClusterID:   c.ClusterID,
			Services:    map[string][]mesh.Port{c.ServiceKey(svc.Namespace, svc.Name): ports},
			HostNetwork: true,
		}
		if r := ep.Conditions.Ready; r != nil && !*r {
			w.Health = mesh.Unhealthy
		}
		ws = append(ws, w)
	}
	return ws, o.err()
}

// sliceService is the published service slice belongs to; FQDN slices belong
// to none of ours.
func sliceService(slice *discoveryv1.EndpointSlice, objs Objects) *corev1.Service {
	name := slice.Labels[discoveryv1.LabelServiceName]
	if name == "" || slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	svc := objs.Service(slice.Namespace, name)
	if svc == nil || !published(svc) {
		return nil
	}
	return svc
}

// Targets reports whether slice has an endpoint that is pod. An endpoint
// without a UID names whatever pod has the name.
func Targets(slice *discoveryv1.EndpointSlice, pod *corev1.Pod) bool {
	for i := range slice.Endpoints {
		r := slice.Endpoints[i].TargetRef
		if r == nil || r.Kind != "Pod" || r.Name != pod.Name {
			continue
		}
		if (r.Namespace == "" || r.Namespace == pod.Namespace) && (r.UID == "" || r.UID == pod.UID) {
			return slice.Namespace == pod.Namespace
		}
	}
	return false
}
