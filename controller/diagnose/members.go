package diagnose

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// members is who is in the mesh, or is to be soon. Only their calls come by
// 15008: what others do, and what is done to others, is as it was.
type members struct {
	namespaces map[string]map[string]string // labels of all there are
	whole      map[string]bool              // namespaces that are labelled
	alone      []*corev1.Pod                // labelled themselves, in namespaces that are not
	addresses  []netip.Addr
	peers      map[ruleKey][]networkingv1.NetworkPolicyPeer // what among has found
}

type ruleKey struct {
	policy string
	way    networkingv1.PolicyType
	number int
}

func newMembers(c *Cluster, o Options) *members {
	m := &members{namespaces: map[string]map[string]string{}, whole: map[string]bool{}, peers: map[ruleKey][]networkingv1.NetworkPolicyPeer{}}
	out := excluded(c, o)
	for i := range c.Namespaces {
		n := &c.Namespaces[i]
		m.namespaces[n.Name] = n.Labels
		m.whole[n.Name] = enrols(n, o) && !out[n.Name]
	}
	for i := range c.Pods {
		p := &c.Pods[i]
		if !m.has(p) {
			continue
		}
		if !m.whole[p.Namespace] {
			m.alone = append(m.alone, p)
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				m.addresses = append(m.addresses, a)
			}
		}
	}
	return m
}

func (m *members) has(p *corev1.Pod) bool {
	return enrolled(p, m.whole[p.Namespace]) && !p.Spec.HostNetwork
}

// among are the peers of a rule of which some are, or may come to be, in the
// mesh.
func (m *members) among(r rule, way networkingv1.PolicyType) []networkingv1.NetworkPolicyPeer {
	k := ruleKey{r.policy, way, r.number}
	found, ok := m.peers[k]
	if !ok {
		for _, p := range r.peers {
			if m.meets(p, r.namespace) {
				found = append(found, p)
			}
		}
		m.peers[k] = found
	}
	return found
}

func (m *members) meets(p networkingv1.NetworkPolicyPeer, namespace string) bool {
	if p.IPBlock != nil {
		return slices.ContainsFunc(m.addresses, func(a netip.Addr) bool { return within(p.IPBlock, a) })
	}
	inside := func(n string) bool {
		if p.NamespaceSelector == nil {
			return n == namespace
		}
		return selects(p.NamespaceSelector, m.namespaces[n])
	}
	for n, in := range m.whole {
		if in && inside(n) {
			return true // its pods may all be gone for now
		}
	}
	return slices.ContainsFunc(m.alone, func(q *corev1.Pod) bool {
		return inside(q.Namespace) && (p.PodSelector == nil || selects(p.PodSelector, q.Labels))
	})
}

func within(b *networkingv1.IPBlock, a netip.Addr) bool {
	has := func(text string) bool {
		p, err := netip.ParsePrefix(text)
		return err == nil && p.Contains(a.Unmap())
	}
	return has(b.CIDR) && !slices.ContainsFunc(b.Except, has)
}

func isRange(p networkingv1.NetworkPolicyPeer) bool { return p.IPBlock != nil }
