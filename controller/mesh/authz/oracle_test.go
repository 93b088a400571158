package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// obvious decides the way the rules are written down: "deny", "pending",
// "none allowed" or "allow".
func obvious(all map[string]*mesh.Policy, w *mesh.Workload, c Conn) string {
	applies := func(p *mesh.Policy) bool {
		return p.Scope == mesh.ScopeGlobal || p.Scope == mesh.ScopeNamespace && p.Namespace == w.Namespace || slices.Contains(w.Policies, p.Key())
	}
	str := func(s string) func(mesh.StringMatch) bool {
		return func(m mesh.StringMatch) bool {
			return map[mesh.MatchKind]bool{mesh.Exact: s == m.Value, mesh.Prefix: strings.HasPrefix(s, m.Value),
				mesh.Suffix: strings.HasSuffix(s, m.Value), mesh.Presence: s != ""}[m.Kind]
		}
	}
	someone := !c.Peer.IsZero()
	principal := func(m mesh.StringMatch) bool { return someone && str(c.Peer.Principal())(m) }
	account := func(m mesh.ServiceAccountMatch) bool {
		return someone && m.Namespace == c.Peer.Namespace && m.ServiceAccount == c.Peer.ServiceAccount
	}
	in := func(a netip.Addr) func(netip.Prefix) bool { return func(p netip.Prefix) bool { return p.Contains(a) } }
	port := func(p uint16) bool { return p == c.Dst.Port() }
	holds := func(m mesh.Match) bool {
		checks := []struct{ set, ok bool }{
			{len(m.Namespaces) > 0, slices.ContainsFunc(m.Namespaces, str(c.Peer.Namespace))},
			{len(m.NotNamespaces) > 0, !slices.ContainsFunc(m.NotNamespaces, str(c.Peer.Namespace))},
			{len(m.Principals) > 0, slices.ContainsFunc(m.Principals, principal)},
			{len(m.NotPrincipals) > 0, !slices.ContainsFunc(m.NotPrincipals, principal)},
			{len(m.SourceIPs) > 0, slices.ContainsFunc(m.SourceIPs, in(c.Src.Addr()))},
			{len(m.NotSourceIPs) > 0, !slices.ContainsFunc(m.NotSourceIPs, in(c.Src.Addr()))},
			{len(m.DestinationIPs) > 0, slices.ContainsFunc(m.DestinationIPs, in(c.Dst.Addr()))},
			{len(m.NotDestinationIPs) > 0, !slices.ContainsFunc(m.NotDestinationIPs, in(c.Dst.Addr()))},
			{len(m.DestinationPorts) > 0, slices.ContainsFunc(m.DestinationPorts, port)},
			{len(m.NotDestPorts) > 0, !slices.ContainsFunc(m.NotDestPorts, port)},
			{len(m.ServiceAccounts) > 0, slices.ContainsFunc(m.ServiceAccounts, account)},
			{len(m.NotServiceAccounts) > 0, !slices.ContainsFunc(m.NotServiceAccounts, account)},
		}
		any := false
		for _, k := range checks {
			if any = any || k.set; k.set && !k.ok {
				return false
			}
		}
		return any
	}
	clause := func(c mesh.Clause) bool { return len(c.Matches) == 0 || slices.ContainsFunc(c.Matches, holds) }
	rule := func(r mesh.Rule) bool {
		return !slices.ContainsFunc(r.Clauses, func(c mesh.Clause) bool { return !clause(c) })
	}
	allows, allowed := false, false
	for _, p := range all {
		if !applies(p) || p.DryRun {
			continue
		}
		match := slices.ContainsFunc(p.Rules, rule)
		if p.Action == mesh.Deny && match {
			return "deny"
		}
		if p.Action == mesh.Allow {
			allows, allowed = true, allowed || match
		}
	}
	for _, key := range w.Policies {
		if all[key] == nil {
			return "pending"
		}
	}
	if allows && !allowed {
		return "none allowed"
	}
	return "allow"
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func maybe[T any](r *rand.Rand, make1 func() T) (out []T) {
	if r.IntN(5) == 0 {
		for range 1 + r.IntN(2) {
			out = append(out, make1())
		}
	}
	return out
}

func randomMatch(r *rand.Rand) mesh.Match {
	ns := func() mesh.StringMatch {
		return mesh.StringMatch{Kind: mesh.MatchKind(r.IntN(4)), Value: pick(r, "a", "b", "", "ab")}
	}
	principal := func() mesh.StringMatch {
		return mesh.StringMatch{Kind: mesh.MatchKind(r.IntN(4)), Value: pick(r, "td/ns/a/sa/x", "td/", "/sa/x", "td/ns/b", "spiffe://td/ns/a/sa/x")}
	}
	ip := func() netip.Prefix {
		return netip.MustParsePrefix(pick(r, "10.0.0.1/32", "10.0.0.0/30", "0.0.0.0/0", "::/0", "fd00::1/128"))
	}
	port := func() uint16 { return uint16(80 + r.IntN(2)) }
	account := func() mesh.ServiceAccountMatch {
		return mesh.ServiceAccountMatch{Namespace: pick(r, "a", "b", ""), ServiceAccount: pick(r, "x", "y", "")}
	}
	return mesh.Match{
		Namespaces: maybe(r, ns), NotNamespaces: maybe(r, ns), Principals: maybe(r, principal), NotPrincipals: maybe(r, principal),
		SourceIPs: maybe(r, ip), NotSourceIPs: maybe(r, ip), DestinationIPs: maybe(r, ip), NotDestinationIPs: maybe(r, ip),
		DestinationPorts: maybe(r, port), NotDestPorts: maybe(r, port), ServiceAccounts: maybe(r, account), NotServiceAccounts: maybe(r, account),
	}
}

func randomPolicy(r *rand.Rand, name string) *mesh.Policy {
	p := &mesh.Policy{Name: name, Namespace: pick(r, "a", "b"), Scope: mesh.PolicyScope(r.IntN(3)), Action: mesh.Action(r.IntN(2)), DryRun: r.IntN(6) == 0}
	for range r.IntN(3) {
		var rule mesh.Rule
		for range r.IntN(3) {
			var c mesh.Clause
			for range r.IntN(3) {
				c.Matches = append(c.Matches, randomMatch(r))
			}
			rule.Clauses = append(rule.Clauses, c)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p
}

func randomConn(r *rand.Rand) Conn {
	ip := func() netip.Addr { return netip.MustParseAddr(pick(r, "10.0.0.1", "10.0.0.2", "10.0.9.9", "fd00::1")) }
	c := Conn{Src: netip.AddrPortFrom(ip(), 40000), Dst: netip.AddrPortFrom(ip(), uint16(80+r.IntN(3)))}
	if r.IntN(4) > 0 {
		c.Peer = identity.ID{TrustDomain: pick(r, "td", "other"), Namespace: pick(r, "a", "b"), ServiceAccount: pick(r, "x", "y")}
	}
	return c
}

func TestDecideAgreesWithTheObvious(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	outcomes := map[string]int{}
	policies := 0
	for policies < 120_000 {
		all := map[string]*mesh.Policy{}
		var d mesh.Delta
		w := &mesh.Workload{UID: "w", Namespace: pick(r, "a", "b")}
		for i := range r.IntN(5) {
			p := randomPolicy(r, fmt.Sprint(i))
			policies++
			all[p.Key()], d.Policies = p, append(d.Policies, p)
			if r.IntN(2) == 0 {
				w.Policies = append(w.Policies, p.Key())
			}
		}
		if r.IntN(6) == 0 {
			w.Policies = append(w.Policies, "a/missing")
		}
		b := mesh.NewBuilder(nil)
		b.Apply(d)
		s := b.Build()
		for range 3 {
			c := randomConn(r)
			want, v := obvious(all, w, c), Decide(s, w, c)
			got := "allow"
			switch {
			case v.Pending:
				got = "pending"
			case strings.HasPrefix(v.Reason, reasonDenied):
				got = "deny"
			case v.Reason == reasonNotAllowed:
				got = "none allowed"
			}
			if got != want || v.Allow != (want == "allow") {
				t.Fatalf("%s, want %s: %+v\nworkload %+v\nconn %+v\npolicies %+v", got, want, v, w, c, d.Policies)
			}
			outcomes[want]++
		}
	}
	for _, o := range []string{"allow", "deny", "pending", "none allowed"} {
		if outcomes[o] < 1000 {
			t.Errorf("only %d cases of %s: the test proves little", outcomes[o], o)
		}
	}
}
