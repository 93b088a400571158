package kube

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ambitmesh/ambit/controller/translate"
)

// PeerAddresses implements translate.Objects: from the set that is kept for
// peers, else by looking at every pod that could be one.
func (v *view) PeerAddresses(peers translate.PodPeers) []netip.Addr {
	set := v.peerSets[peers.Key()]
	if set == nil {
		set = v.gather(peers)
	}
	out := make([]netip.Addr, 0, len(set.members))
	for _, addrs := range set.members {
		out = append(out, addrs...)
	}
	return out
}

// gather looks for the members of a set.
func (v *view) gather(peers translate.PodPeers) *peerSet {
	set := &peerSet{peers: peers, members: make(map[string][]netip.Addr)}
	for _, ns := range v.NamespacesOf(peers) {
		for _, pod := range list[*corev1.Pod](v.caches.pods, cache.NamespaceIndex, ns) {
			if addrs := peers.Addresses(pod); len(addrs) > 0 {
				set.members[pod.Namespace+"/"+pod.Name] = addrs
			}
		}
	}
	return set
}

// NamespacesOf implements translate.Objects.
func (v *view) NamespacesOf(peers translate.PodPeers) []string {
	if !peers.ByNamespace() {
		return []string{peers.Namespace}
	}
	var out []string
	for _, o := range v.caches.namespaces.GetIndexer().List() {
		if ns := o.(*corev1.Namespace); peers.In(ns.Name, ns.Labels) {
			out = append(out, ns.Name)
		}
	}
	return out
}

// peerSet are the pods one peer of NetworkPolicies means, by <namespace>/<name>.
type peerSet struct {
	peers   translate.PodPeers
	members map[string][]netip.Addr
	changed bool // since the policies that use it were made
	users   int  // groups
}
