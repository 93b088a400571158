package authz

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

func snapshot(policies ...*mesh.Policy) *mesh.Snapshot {
	b := mesh.NewBuilder(nil)
	b.Apply(mesh.Delta{Policies: policies})
	return b.Build()
}

var (
	web  = identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	call = Conn{Peer: web, Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("10.0.0.2:8080")}
	bare = Conn{Src: call.Src, Dst: call.Dst}
)

// one is a policy in force everywhere with a single match.
func one(action mesh.Action, m mesh.Match) *mesh.Policy {
	return &mesh.Policy{Namespace: "ns", Name: "p", Action: action,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{m}}}}}}
}

func exact(s string) []mesh.StringMatch { return []mesh.StringMatch{{Kind: mesh.Exact, Value: s}} }

func prefixes(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }

// An ALLOW policy with one match: who gets in.
//
//ambit:feature policy-fields
func TestMatch(t *testing.T) {
	present := []mesh.StringMatch{{Kind: mesh.Presence}}
	account := func(ns, sa string) []mesh.ServiceAccountMatch {
		return []mesh.ServiceAccountMatch{{Namespace: ns, ServiceAccount: sa}}
	}
	cases := []struct {
		name       string
		match      mesh.Match
		call, bare bool
	}{
		{"no attribute", mesh.Match{}, false, false},
		{"namespace", mesh.Match{Namespaces: exact("shop")}, true, false},
		{"other namespace", mesh.Match{Namespaces: exact("shops")}, false, false},
		{"namespace prefix", mesh.Match{Namespaces: []mesh.StringMatch{{Kind: mesh.Prefix, Value: "sh"}}}, true, false},
		{"namespace suffix", mesh.Match{Namespaces: []mesh.StringMatch{{Kind: mesh.Suffix, Value: "op"}}}, true, false},
		{"any namespace", mesh.Match{Namespaces: present}, true, false},
		{"not namespace", mesh.Match{NotNamespaces: exact("shop")}, false, true},
		{"principal", mesh.Match{Principals: exact("cluster.local/ns/shop/sa/web")}, true, false},
		{"principal with scheme", mesh.Match{Principals: exact("spiffe://cluster.local/ns/shop/sa/web")}, false, false},
		{"any principal", mesh.Match{Principals: present}, true, false},
		{"not any principal", mesh.Match{NotPrincipals: present}, false, true},
		{"principal prefix of nobody", mesh.Match{Principals: []mesh.StringMatch{{Kind: mesh.Prefix}}}, true, false},
		{"account", mesh.Match{ServiceAccounts: account("shop", "web")}, true, false},
		{"account elsewhere", mesh.Match{ServiceAccounts: account("bank", "web")}, false, false},
		{"account of nobody", mesh.Match{ServiceAccounts: account("", "")}, false, false},
		{"not account", mesh.Match{NotServiceAccounts: account("shop", "web")}, false, true},
		{"source", mesh.Match{SourceIPs: prefixes("10.0.0.0/31")}, true, true},
		{"not source", mesh.Match{NotSourceIPs: prefixes("10.0.0.1/32")}, false, false},
		{"other family", mesh.Match{SourceIPs: prefixes("::/0")}, false, false},
		{"destination", mesh.Match{DestinationIPs: prefixes("10.0.0.2/32")}, true, true},
		{"not destination", mesh.Match{NotDestinationIPs: prefixes("10.0.0.1/32")}, true, true},
		{"port", mesh.Match{DestinationPorts: []uint16{80, 8080}}, true, true},
		{"not port", mesh.Match{NotDestPorts: []uint16{8080}}, false, false},
		{"both of two", mesh.Match{DestinationPorts: []uint16{8080}, Namespaces: exact("shop")}, true, false},
		{"one of two", mesh.Match{DestinationPorts: []uint16{80}, Namespaces: exact("shop")}, false, false},
	}
	w := &mesh.Workload{Namespace: "shop"}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := snapshot(one(mesh.Allow, c.match))
			if got := Decide(s, w, call).Allow; got != c.call {
				t.Errorf("call: %v", got)
			}
			if got := Decide(s, w, bare).Allow; got != c.bare {
				t.Errorf("without identity: %v", got)
			}
		})
	}
	for name, source := range map[string][2]string{
		"mapped address":    {"[::ffff:10.0.0.1]:40000", "10.0.0.1/32"},
		"address in a zone": {"[fe80::1%eth0]:40000", "fe80::/10"},
	} {
		t.Run(name, func(t *testing.T) {
			c := call
			c.Src = netip.MustParseAddrPort(source[0])
			m := mesh.Match{SourceIPs: prefixes(source[1])}
			if !Decide(snapshot(one(mesh.Allow, m)), w, c).Allow {
				t.Error("ALLOW does not match")
			}
			if Decide(snapshot(one(mesh.Deny, m)), w, c).Allow {
				t.Error("DENY does not match")
			}
		})
	}
}

//ambit:feature policy-fields
func TestDecide(t *testing.T) {
	all := []mesh.Rule{{}} // a rule without clauses matches everything
	policy := func(name string, change func(*mesh.Policy)) *mesh.Policy {
		p := &mesh.Policy{Namespace: "ns", Name: name, Scope: mesh.ScopeGlobal, Rules: all}
		change(p)
		return p
	}
	deny := policy("deny", func(p *mesh.Policy) { p.Action = mesh.Deny })
	allow := policy("allow", func(*mesh.Policy) {})
	none := policy("none", func(p *mesh.Policy) { p.Rules = nil })
	dryDeny := policy("dry", func(p *mesh.Policy) { p.Action, p.DryRun = mesh.Deny, true })
	dryAllow := policy("dry", func(p *mesh.Policy) { p.DryRun, p.Rules = true, nil })
	selector := policy("selector", func(p *mesh.Policy) { p.Action, p.Scope = mesh.Deny, mesh.ScopeWorkloadSelector })
	namespaced := policy("namespaced", func(p *mesh.Policy) { p.Action, p.Scope = mesh.Deny, mesh.ScopeNamespace })
	orClause := policy("or", func(p *mesh.Policy) {
		p.Rules = []mesh.Rule{{Clauses: []mesh.Clause{{}, {Matches: []mesh.Match{{}, {DestinationPorts: []uint16{8080}}}}}}}
	})
	andClause := policy("and", func(p *mesh.Policy) {
		p.Rules = []mesh.Rule{{Clauses: []mesh.Clause{{}, {Matches: []mesh.Match{{DestinationPorts: []uint16{80}}}}}}}
	})
	strict := policy("istio_converted_static_strict", func(p *mesh.Policy) {
		p.Action, p.Scope = mesh.Deny, mesh.ScopeWorkloadSelector
		p.Rules = []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{NotPrincipals: []mesh.StringMatch{{Kind: mesh.Presence}}}}}}}}
	})
	refused := Verdict{Reason: "allow policies exist, but none allowed"}
	yes := Verdict{Allow: true}
	denied := func(name string) Verdict {
		return Verdict{Policy: "ns/" + name, Reason: "explicitly denied by: ns/" + name}
	}
	named := func(keys ...string) *mesh.Workload { return &mesh.Workload{Namespace: "ns", Policies: keys} }
	cases := []struct {
		name     string
		policies []*mesh.Policy
		workload *mesh.Workload
		conn     Conn
		want     Verdict
	}{
		{"no policy", nil, named(), call, yes},
		{"allowed", []*mesh.Policy{allow}, named(), call, yes},
		{"deny before allow", []*mesh.Policy{allow, deny}, named(), call, denied("deny")},
		{"allow without rules refuses all", []*mesh.Policy{none}, named(), call, refused},
		{"one of two allows is enough", []*mesh.Policy{none, allow}, named(), call, yes},
		{"deny without rules denies nothing", []*mesh.Policy{policy("x", func(p *mesh.Policy) { p.Action, p.Rules = mesh.Deny, nil })}, named(), call, yes},
		{"dry-run deny", []*mesh.Policy{dryDeny}, named(), call, yes},
		{"dry-run allow does not close", []*mesh.Policy{dryAllow}, named(), call, yes},
		{"or of matches, empty clause holds", []*mesh.Policy{orClause}, named(), call, yes},
		{"and of clauses", []*mesh.Policy{andClause}, named(), call, refused},
		{"selector policy not named", []*mesh.Policy{selector}, named(), call, yes},
		{"selector policy named", []*mesh.Policy{selector}, named("ns/selector"), call, denied("selector")},
		{"namespace policy", []*mesh.Policy{namespaced}, named(), call, denied("namespaced")},
		{"namespace policy elsewhere", []*mesh.Policy{namespaced}, &mesh.Workload{Namespace: "other"}, call, yes},
		{"strict and plaintext", []*mesh.Policy{strict}, named(strict.Key()), bare, denied("istio_converted_static_strict")},
		{"strict and mTLS", []*mesh.Policy{strict}, named(strict.Key()), call, yes},
		{"policy not here yet", []*mesh.Policy{allow}, named("ns/late"), call, Verdict{Pending: true, Policy: "ns/late", Reason: "policy not received yet: ns/late"}},
		{"denied although one is not here yet", []*mesh.Policy{selector}, named("ns/late", "ns/selector"), call, denied("selector")},
		{"allow that may still come", []*mesh.Policy{none}, named("ns/late"), call, Verdict{Pending: true, Policy: "ns/late", Reason: "policy not received yet: ns/late"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := Decide(snapshot(c.policies...), c.workload, c.conn); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

//ambit:feature model-cost
func TestAllowedDoesNotAllocate(t *testing.T) {
	s := snapshot(one(mesh.Allow, mesh.Match{
		Principals: exact("cluster.local/ns/shop/sa/web"), NotPrincipals: exact("x"), Namespaces: exact("shop"),
		SourceIPs: prefixes("10.0.0.0/8"), DestinationPorts: []uint16{8080}}))
	w := &mesh.Workload{Namespace: "shop", Policies: []string{"ns/p"}}
	if n := testing.AllocsPerRun(100, func() {
		if !Decide(s, w, call).Allow {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	w := &mesh.Workload{Namespace: "shop", Policies: []string{"ns/p"}}
	b.Run("typical", func(b *testing.B) {
		s := snapshot(one(mesh.Allow, mesh.Match{Principals: exact("cluster.local/ns/shop/sa/web"), DestinationPorts: []uint16{8080}}))
		b.ReportAllocs()
		for b.Loop() {
			Decide(s, w, call)
		}
	})
	// 10 000 global DENY policies of 10 rules, none of which matches.
	b.Run("many", func(b *testing.B) {
		var all []*mesh.Policy
		for i := range 10000 {
			p := &mesh.Policy{Namespace: "ns", Name: fmt.Sprint(i), Action: mesh.Deny}
			for j := range 10 {
				p.Rules = append(p.Rules, mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{{Namespaces: exact(fmt.Sprint("no", j))}}}}})
			}
			all = append(all, p)
		}
		s := snapshot(all...)
		w := &mesh.Workload{Namespace: "shop"}
		b.ReportAllocs()
		b.ResetTimer()
		for b.Loop() {
			Decide(s, w, call)
		}
	})
}

// BenchmarkNetworkPolicy is one decision under a NetworkPolicy whose peers are
// 1 000 pods with addresses apart, so that none of them share a prefix.
func BenchmarkNetworkPolicy(b *testing.B) {
	var peers []netip.Prefix
	for i := range 1000 {
		peers = append(peers, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 7), byte(i << 1)}), 32))
	}
	p := &mesh.Policy{Namespace: "ns", Name: mesh.NetworkPolicyName([]string{"np"}, ""), Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{
			{Matches: []mesh.Match{{Principals: []mesh.StringMatch{{Kind: mesh.Presence}}}}},
			{Matches: []mesh.Match{{NotDestPorts: []uint16{8080}}, {NotSourceIPs: peers}}},
		}}}}
	s := snapshot(p)
	w := &mesh.Workload{Namespace: "shop", Policies: []string{p.Key()}}
	b.ReportAllocs()
	for b.Loop() {
		if Decide(s, w, call).Allow {
			b.Fatal("admitted")
		}
	}
}
