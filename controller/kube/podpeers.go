package kube

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ambitmesh/ambit/controller/translate"
)

// peerSet are the pods that one peer of NetworkPolicies means, by
// <namespace>/<name>. It is kept true pod by pod: a cluster's pods change more
// often than what they are selected by.
type peerSet struct {
	peers   translate.PodPeers
	members map[string][]netip.Addr
	users   int          // groups
	changed bool         // since the policies that use it were made
	sorted  []netip.Addr // of all members; nil: to be made
}

// pod brings the set up to date with one pod.
func (s *peerSet) pod(v *view, namespace, name string) {
	full := namespace + "/" + name
	var now []netip.Addr
	if pod := get[*corev1.Pod](v.caches.pods, full); pod != nil {
		if s.peers.In(namespace, v.Namespace(namespace)) {
			now = s.peers.Addresses(pod)
		}
	}
	switch {
	case slices.Equal(now, s.members[full]):
		return
	case len(now) == 0:
		delete(s.members, full)
	default:
		s.members[full] = now
	}
	s.changed, s.sorted = true, nil
}

// gather looks for the members of a new set.
func (v *view) gather(peers translate.PodPeers) *peerSet {
	s := &peerSet{peers: peers, members: make(map[string][]netip.Addr)}
	for _, ns := range v.NamespacesOf(peers) {
		for _, pod := range list[*corev1.Pod](v.caches.pods, cache.NamespaceIndex, ns) {
			if addrs := peers.Addresses(pod); len(addrs) > 0 {
				s.members[pod.Namespace+"/"+pod.Name] = addrs
			}
		}
	}
	return s
}

// PeerAddresses implements translate.Objects: from the set that is kept for
// peers, else by looking at every pod that could be one.
func (v *view) PeerAddresses(peers translate.PodPeers) []netip.Addr {
	s := v.peerSets[peers.Key()]
	if s == nil {
		s = v.gather(peers)
	}
	if s.sorted == nil {
		s.sorted = make([]netip.Addr, 0, len(s.members))
		for _, addrs := range s.members {
			s.sorted = append(s.sorted, addrs...)
		}
		slices.SortFunc(s.sorted, netip.Addr.Compare)
	}
	return s.sorted
}

// NamespacesOf implements translate.Objects.
func (v *view) NamespacesOf(peers translate.PodPeers) []string {
	if !peers.ByNamespace() {
		return []string{peers.Namespace}
	}
	var out []string
	for _, o := range v.caches.namespaces.GetIndexer().List() {
		if ns := o.(*corev1.Namespace); peers.In(ns.Name, ns) {
			out = append(out, ns.Name)
		}
	}
	return out
}
