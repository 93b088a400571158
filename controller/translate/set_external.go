package translate

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// externalObjects is the part of Objects that services outside the cluster and
// addresses ask for.
type externalObjects interface {
	// PodsAt are the live pods that have a for their own.
	PodsAt(a netip.Addr) []*corev1.Pod
	// SelectingServiceEntries are the entries of namespace whose selector picks
	// what has these labels, and maybe others.
	SelectingServiceEntries(namespace string, labels map[string]string) []*networkingv1.ServiceEntry
	// ServiceEntriesOf are the entries with that host, as Hosts has it, of
	// namespace, the oldest first, or, for "", of all, in any order.
	ServiceEntriesOf(host, namespace string) []*networkingv1.ServiceEntry
	// Canonical is what find says of host, which is asked as seldom as the
	// objects allow.
	Canonical(host string, find func() *networkingv1.ServiceEntry) *networkingv1.ServiceEntry
}

// PodsAt implements Objects.
func (s *Set) PodsAt(a netip.Addr) []*corev1.Pod {
	var out []*corev1.Pod
	for _, pod := range s.PodList {
		if slices.Contains(OwnAddresses(pod), a) {
			out = append(out, pod)
		}
	}
	return out
}

// SelectingServiceEntries implements Objects.
func (s *Set) SelectingServiceEntries(namespace string, _ map[string]string) []*networkingv1.ServiceEntry {
	return s.ServiceEntries(namespace)
}

// ServiceEntriesOf implements Objects.
func (s *Set) ServiceEntriesOf(host, namespace string) []*networkingv1.ServiceEntry {
	var out []*networkingv1.ServiceEntry
	for _, se := range s.ServiceEntries(namespace) {
		if slices.Contains(Hosts(se), host) {
			out = append(out, se)
		}
	}
	slices.SortFunc(out, Older)
	return out
}

// Canonical implements Objects.
func (s *Set) Canonical(_ string, find func() *networkingv1.ServiceEntry) *networkingv1.ServiceEntry {
	return find()
}
