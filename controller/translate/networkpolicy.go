package translate

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// On the wire all that comes to a pod through the mesh comes to port 15008, and
// a network plugin can only admit that port or not. Which port and which source
// are meant is known where the tunnel ends: there a policy is asked that refuses
// what the pod's NetworkPolicies do not admit. What comes in plaintext the
// network plugin has judged, as it was sent.

// NetworkGroup are the NetworkPolicies that isolate a pod for ingress, and what
// else of the pod counts. Pods of one group share one policy.
type NetworkGroup struct {
	Namespace string
	Policies  []*netv1.NetworkPolicy // by name
	Named     map[string]uint16      // ports of the pod that the policies name
}

// NetworkGroup is the group pod belongs to; false when none of its namespace's
// NetworkPolicies is about what comes to it, or when they admit everything.
func (c Config) NetworkGroup(pod *corev1.Pod, objs Objects) (NetworkGroup, bool) {
	g := NetworkGroup{Namespace: pod.Namespace}
	if !c.NetworkPolicies || pod.Spec.HostNetwork {
		return g, false
	}
	for _, np := range objs.NetworkPolicies(pod.Namespace) {
		if isolates(np) && selectorOf(&np.Spec.PodSelector, everything).matches(pod.Labels) {
			g.Policies = append(g.Policies, np)
		}
	}
	slices.SortFunc(g.Policies, func(a, b *netv1.NetworkPolicy) int { return strings.Compare(a.Name, b.Name) })
	for _, np := range g.Policies {
		for i := range np.Spec.Ingress {
			r := &np.Spec.Ingress[i]
			if len(r.From) == 0 && allPorts(r.Ports) {
				return g, false // everybody, everywhere: the others cannot take that away
			}
			for j := range r.Ports {
				if p := r.Ports[j].Port; overTCP(&r.Ports[j]) && p != nil && p.Type == intstr.String {
					if g.Named == nil {
						g.Named = make(map[string]uint16)
					}
					g.Named[p.StrVal] = namedPort(p.StrVal, pod)
				}
			}
		}
	}
	return g, len(g.Policies) > 0
}

// isolates reports whether np is about what comes to pods. Without policyTypes
// it is.
func isolates(np *netv1.NetworkPolicy) bool {
	return len(np.Spec.PolicyTypes) == 0 || slices.Contains(np.Spec.PolicyTypes, netv1.PolicyTypeIngress)
}

// Key of the group's policy, <namespace>/<name>. It names the NetworkPolicies,
// so that a refusal can.
func (g *NetworkGroup) Key() string { return g.Namespace + "/" + g.name() }

// longName is how much of a name is made of NetworkPolicies' names.
const longName = 300

func (g *NetworkGroup) name() string {
	names := make([]string, len(g.Policies))
	length := 0
	for i, np := range g.Policies {
		names[i] = np.Name
		length += len(np.Name) + 1
	}
	var variant []string
	for _, n := range slices.Sorted(maps.Keys(g.Named)) {
		variant = append(variant, n+"="+strconv.Itoa(int(g.Named[n])))
	}
	v := strings.Join(variant, ";")
	if length > longName {
		sum := sha256.Sum256([]byte(strings.Join(names, ",")))
		v = strings.TrimPrefix(v+";"+hex.EncodeToString(sum[:8]), ";")
		for ; length > longName && len(names) > 1; names = names[:len(names)-1] {
			length -= len(names[len(names)-1]) + 1
		}
	}
	return mesh.NetworkPolicyName(names, v)
}

// NetworkPolicy is what the group's pods refuse of what comes through tunnels:
// everything that no rule admits. A DENY policy says that rule by rule: neither
// the source is one of the rule's, nor the port.
func (c Config) NetworkPolicy(g NetworkGroup, objs Objects) *mesh.Policy {
	rule := mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{{Principals: anyPrincipal()}}}}}
	for _, np := range g.Policies {
		for i := range np.Spec.Ingress {
			clause, some := c.refusedBy(&np.Spec.Ingress[i], &g, objs)
			if some && !slices.ContainsFunc(rule.Clauses, clause.same) {
				rule.Clauses = append(rule.Clauses, clause.Clause)
			}
		}
	}
	return &mesh.Policy{
		Name: g.name(), Namespace: g.Namespace, Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny, Rules: []mesh.Rule{rule},
	}
}

// refused is the clause of one rule.
type refused struct{ mesh.Clause }

func (r refused) same(c mesh.Clause) bool {
	return slices.EqualFunc(r.Matches, c.Matches, func(a, b mesh.Match) bool {
		return slices.Equal(a.DestinationPorts, b.DestinationPorts) && slices.Equal(a.NotDestPorts, b.NotDestPorts) &&
			slices.Equal(a.NotSourceIPs, b.NotSourceIPs) && slices.Equal(a.NotPrincipals, b.NotPrincipals) &&
			slices.Equal(a.Principals, b.Principals)
	})
}

// refusedBy holds for what one rule does not admit; false when the rule admits
// nothing, and so leaves everything to the others.
func (c Config) refusedBy(r *netv1.NetworkPolicyIngressRule, g *NetworkGroup, objs Objects) (refused, bool) {
	var out refused
	ports, some := c.rulePorts(r, g)
	switch {
	case !some:
		return out, false
	case ports != nil:
		out.Matches = append(out.Matches, ports.not())
	}
	if len(r.From) == 0 {
		return out, true
	}
	var m mesh.Match
	for i := range r.From {
		c.peer(&r.From[i], g.Namespace, objs, &m)
	}
	if len(m.NotSourceIPs)+len(m.NotPrincipals) == 0 {
		return out, false // from nobody
	}
	m.NotSourceIPs = merged(m.NotSourceIPs)
	slices.SortFunc(m.NotPrincipals, func(a, b mesh.StringMatch) int { return strings.Compare(a.Value, b.Value) })
	m.NotPrincipals = slices.Compact(m.NotPrincipals)
	out.Matches = append(out.Matches, m)
	return out, true
}

// peer adds to m who p is.
func (c Config) peer(p *netv1.NetworkPolicyPeer, namespace string, objs Objects, m *mesh.Match) {
	if p.IPBlock != nil {
		m.NotSourceIPs = append(m.NotSourceIPs, blockPrefixes(p.IPBlock)...)
		return
	}
	peers := PodPeersOf(p, namespace)
	if peers.Whole() {
		// Of whole namespaces the verified identity tells, which no pod that
		// comes or goes changes.
		for _, ns := range objs.NamespacesOf(peers) {
			for _, domain := range c.TrustDomains() {
				m.NotPrincipals = append(m.NotPrincipals, mesh.StringMatch{Kind: mesh.Prefix, Value: domain + "/ns/" + ns + "/sa/"})
			}
		}
		return
	}
	for _, a := range objs.PeerAddresses(peers) {
		m.NotSourceIPs = append(m.NotSourceIPs, netip.PrefixFrom(a, a.BitLen()))
	}
}

// blockPrefixes are the addresses of a block without its exceptions. A block
// that cannot be read holds nobody; an exception that cannot be read leaves
// nobody in the block.
func blockPrefixes(b *netv1.IPBlock) []netip.Prefix {
	whole, ok := prefix(b.CIDR)
	if !ok {
		return nil
	}
	out := []netip.Prefix{whole}
	for _, e := range b.Except {
		without, ok := prefix(e)
		if !ok {
			return nil
		}
		var rest []netip.Prefix
		for _, p := range out {
			rest = append(rest, minus(p, without)...)
		}
		out = rest
	}
	return out
}

// minus is p without hole.
func minus(p, hole netip.Prefix) []netip.Prefix {
	switch {
	case !p.Overlaps(hole):
		return []netip.Prefix{p}
	case hole.Bits() <= p.Bits():
		return nil
	}
	var out []netip.Prefix
	for bits := p.Bits() + 1; bits <= hole.Bits(); bits++ {
		out = append(out, sibling(netip.PrefixFrom(hole.Addr(), bits)))
	}
	return out
}

// sibling is the other half of the prefix one bit shorter.
func sibling(p netip.Prefix) netip.Prefix {
	b := p.Masked().Addr().AsSlice()
	i := p.Bits() - 1
	b[i/8] ^= 0x80 >> (i % 8)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}

// merged is a sorted list of the same addresses with as few prefixes as that
// takes. Pods of one node have addresses side by side.
func merged(in []netip.Prefix) []netip.Prefix {
	if len(in) == 0 {
		return nil
	}
	list := slices.Clone(in)
	for i := range list {
		list[i] = list[i].Masked()
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].Contains(p.Addr()) && out[n-1].Bits() <= p.Bits() {
			continue
		}
		for n := len(out); n > 0 && p.Bits() > 0 && out[n-1].Bits() == p.Bits() && sibling(p) == out[n-1]; n = len(out) {
			p = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
			out = out[:n-1]
		}
		out = append(out, p)
	}
	return out
}

// portSet are the ports a rule admits, as ranges.
type portSet [][2]uint16

// rulePorts are the TCP ports of r; nil for all of them, false for none.
func (c Config) rulePorts(r *netv1.NetworkPolicyIngressRule, g *NetworkGroup) (*portSet, bool) {
	if allPorts(r.Ports) {
		return nil, true
	}
	var s portSet
	for i := range r.Ports {
		p := &r.Ports[i]
		if !overTCP(p) {
			continue
		}
		first, last := int64(p.Port.IntVal), int64(p.Port.IntVal)
		if p.Port.Type == intstr.String {
			first = int64(g.Named[p.Port.StrVal])
			last = first
		} else if p.EndPort != nil {
			last = int64(*p.EndPort)
		}
		if first >= 1 && first <= last && last <= 65535 {
			s = append(s, [2]uint16{uint16(first), uint16(last)})
		}
	}
	return &s, len(s) > 0
}

// allPorts: a list that is empty, or has an entry without a number, admits
// every port.
func allPorts(list []netv1.NetworkPolicyPort) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p netv1.NetworkPolicyPort) bool {
		return overTCP(&p) && (p.Port == nil || p.EndPort != nil && p.Port.Type == intstr.Int && p.Port.IntVal == 1 && *p.EndPort == 65535)
	})
}

func overTCP(p *netv1.NetworkPolicyPort) bool {
	return p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP
}

// not holds for every other port. Whichever list is shorter is given: a policy
// knows single ports only.
func (s *portSet) not() mesh.Match {
	in := make([]bool, 65536)
	n := 0
	for _, r := range *s {
		for p := int(r[0]); p <= int(r[1]); p++ {
			if !in[p] {
				in[p], n = true, n+1
			}
		}
	}
	list := func(want bool, length int) []uint16 {
		out := make([]uint16, 0, length)
		for p := 1; p < len(in); p++ {
			if in[p] == want {
				out = append(out, uint16(p))
			}
		}
		return out
	}
	if others := len(in) - 1 - n; others > 0 && others < n {
		return mesh.Match{DestinationPorts: list(false, others)}
	}
	return mesh.Match{NotDestPorts: list(true, n)}
}

// NetworkPolicyErrors are what cannot be honoured of np. It admits less then:
// a peer that cannot be read is nobody, a port none.
func (c Config) NetworkPolicyErrors(np *netv1.NetworkPolicy) error {
	if !c.NetworkPolicies {
		return nil
	}
	o := object{kind: "NetworkPolicy", namespace: np.Namespace, name: np.Name}
	if isolates(np) {
		checkSelector(&o, "spec.podSelector", &np.Spec.PodSelector)
	}
	for i := range np.Spec.Ingress {
		r, at := &np.Spec.Ingress[i], index("spec.ingress", i)
		for j := range r.Ports {
			checkPort(&o, index(at+".ports", j), &r.Ports[j])
		}
		for j := range r.From {
			checkPeer(&o, index(at+".from", j), &r.From[j])
		}
	}
	return o.err()
}

func checkPort(o *object, at string, p *netv1.NetworkPolicyPort) {
	if !overTCP(p) || p.Port == nil || p.Port.Type == intstr.String {
		return
	}
	switch n := p.Port.IntVal; {
	case n < 1 || n > 65535:
		o.bad(at+".port", p.Port.String(), "not a port number")
	case p.EndPort != nil && (*p.EndPort < n || *p.EndPort > 65535):
		o.bad(at+".endPort", strconv.Itoa(int(*p.EndPort)), "not a port number from "+p.Port.String()+" on")
	}
}

func checkPeer(o *object, at string, p *netv1.NetworkPolicyPeer) {
	checkSelector(o, at+".podSelector", p.PodSelector)
	checkSelector(o, at+".namespaceSelector", p.NamespaceSelector)
	if p.IPBlock == nil {
		return
	}
	if _, ok := prefix(p.IPBlock.CIDR); !ok {
		o.bad(at+".ipBlock.cidr", p.IPBlock.CIDR, "not an IP or CIDR")
	}
	for i, e := range p.IPBlock.Except {
		if _, ok := prefix(e); !ok {
			o.bad(index(at+".ipBlock.except", i), e, "not an IP or CIDR")
		}
	}
}
