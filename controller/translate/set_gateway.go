package translate

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// GatewayPods implements Objects.
func (s *Set) GatewayPods(namespace, gateway string) []*corev1.Pod {
	return keeping(s.PodList, func(p *corev1.Pod) bool {
		return p.Namespace == namespace && p.Labels[GatewayNameLabel] == gateway
	})
}

// NetworkServices implements Objects.
func (s *Set) NetworkServices() []*corev1.Service {
	return keeping(s.ServiceList, func(svc *corev1.Service) bool { return svc.Labels[NetworkLabel] != "" })
}

// Networks implements Objects.
func (s *Set) Networks(find func() map[string]Network) map[string]Network { return find() }

// seen is s without what this control plane does not look at, and c with the
// settings of the mesh that s has.
func (c Config) seen(s *Set) (Config, *Set, error) {
	var err error
	if s.MeshConfigObject != nil {
		var m MeshConfig
		if m, _, err = ParseMeshConfig(s.MeshConfigObject); err == nil {
			c.Mesh = m
		}
	}
	out := *s
	looks := func(o metav1.Object) bool { return c.Looks(o.GetNamespace(), s) }
	reads := func(o metav1.Object) bool { return c.Reads(o, s) }
	out.PodList = only(s.PodList, looks)
	out.ServiceList = only(s.ServiceList, looks)
	out.SliceList = only(s.SliceList, looks)
	out.NetworkPolicyList = only(s.NetworkPolicyList, looks)
	out.PolicyList = only(s.PolicyList, reads)
	out.PeerList = only(s.PeerList, reads)
	out.ServiceEntryList = only(s.ServiceEntryList, reads)
	out.WorkloadEntryList = only(s.WorkloadEntryList, reads)
	out.GatewayList = only(s.GatewayList, reads)
	return c, &out, err
}

// gatewaysOf adds to d what only waypoints and gateways bring.
func (c Config) gatewaysOf(s *Set, d *mesh.Delta) {
	d.Workloads = append(d.Workloads, c.NetworkGateways(s)...)
	required := map[string]bool{}
	for _, w := range d.Workloads {
		for _, key := range w.Policies {
			if IsRequire(key) {
				required[key] = true
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(required)) {
		d.Policies = append(d.Policies, c.RequirePolicy(key, s))
	}
}

func only[T metav1.Object](all []T, keep func(metav1.Object) bool) []T {
	return keeping(all, func(o T) bool { return keep(o) })
}

// keeping is a fresh list of those that keep accepts.
func keeping[T any](all []T, keep func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(all), func(o T) bool { return !keep(o) })
}
