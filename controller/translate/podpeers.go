package translate

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// selector is a label selector read once.
type selector struct{ labels.Selector }

func (s selector) matches(set map[string]string) bool { return s.Matches(labels.Set(set)) }

// What a selector that cannot be read picks: nothing where it admits, everything
// where it protects.
var (
	nothing    = labels.Nothing()
	everything = labels.Everything()
)

func selectorOf(s *metav1.LabelSelector, unreadable labels.Selector) selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return selector{unreadable}
	}
	return selector{out}
}

func checkSelector(o *object, field string, s *metav1.LabelSelector) {
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		o.bad(field, metav1.FormatLabelSelector(s), err.Error())
	}
}

// PodPeers are the pods that one peer of a NetworkPolicy means.
type PodPeers struct {
	Namespace  string // of the policy; counts unless ByNamespace
	pods       selector
	namespaces *selector // nil: the policy's namespace
}

// PodPeersOf reads p, which has no block of addresses.
func PodPeersOf(p *netv1.NetworkPolicyPeer, namespace string) PodPeers {
	out := PodPeers{Namespace: namespace, pods: selector{everything}}
	if p.PodSelector != nil {
		out.pods = selectorOf(p.PodSelector, nothing)
	}
	if p.NamespaceSelector != nil {
		s := selectorOf(p.NamespaceSelector, nothing)
		out.namespaces = &s
	} else if p.PodSelector == nil {
		out.pods = selector{nothing} // a peer that names nothing is nobody
	}
	return out
}

// Key is the same for peers that mean the same pods.
func (p *PodPeers) Key() string {
	if p.namespaces != nil {
		return "/" + p.namespaces.String() + "/" + p.pods.String()
	}
	return p.Namespace + "//" + p.pods.String()
}

// ByNamespace reports whether labels of namespaces decide.
func (p *PodPeers) ByNamespace() bool { return p.namespaces != nil }

// In reports whether pods of the namespace of that name may be meant; ns is its
// object, nil if it is not known.
func (p *PodPeers) In(namespace string, ns *corev1.Namespace) bool {
	if p.namespaces != nil {
		return ns != nil && p.namespaces.matches(ns.Labels)
	}
	return namespace == p.Namespace
}

// Whole reports whether every pod of a namespace is meant.
func (p *PodPeers) Whole() bool { return p.pods.Empty() }

// Addresses are those of pod if it is meant; its namespace is one of In's. What
// is on its node's network has no address of its own, and a network plugin
// takes it for the node.
func (p *PodPeers) Addresses(pod *corev1.Pod) []netip.Addr {
	if pod.Spec.HostNetwork || Ended(pod) || !p.pods.matches(pod.Labels) {
		return nil
	}
	addrs, err := podAddresses(pod)
	if err != nil {
		return nil // said of the pod
	}
	return addrs
}

// PeerAddresses implements Objects.
func (s *Set) PeerAddresses(peers PodPeers) []netip.Addr {
	var out []netip.Addr
	for _, pod := range s.PodList {
		if peers.In(pod.Namespace, s.Namespace(pod.Namespace)) {
			out = append(out, peers.Addresses(pod)...)
		}
	}
	return out
}

// NamespacesOf implements Objects.
func (s *Set) NamespacesOf(peers PodPeers) []string {
	if !peers.ByNamespace() {
		return []string{peers.Namespace}
	}
	var out []string
	for _, ns := range s.NamespaceList {
		if peers.In(ns.Name, ns) {
			out = append(out, ns.Name)
		}
	}
	return out
}
