package authz

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// TestExplain: the steps are those of the reference, in its words; dry-run
// policies are among them and decide nothing.
//
//ambit:feature policy-decision-log
func TestExplain(t *testing.T) {
	const deny, allow, dry, miss = 1, 2, 4, 8
	names := map[int]string{deny: "deny", allow: "allow", deny | dry: "dry-deny", allow | dry: "dry-allow",
		deny | miss: "other-deny", allow | miss: "other-allow", deny | dry | miss: "dry-other-deny", allow | dry | miss: "dry-other-allow"}
	for _, tt := range []struct {
		policies []int
		want     string
	}{
		{nil, "no allow policies, allow"},
		{[]int{deny}, "deny policy match ns/deny"},
		{[]int{deny | miss}, "no allow policies, allow"},
		{[]int{allow}, "allow policy match ns/allow"},
		{[]int{allow | miss}, "no allow policies matched"},
		{[]int{allow | miss, allow}, "allow policy match ns/allow"},
		{[]int{allow, deny}, "deny policy match ns/deny"},
		{[]int{deny | dry}, "dry-run: deny policy match ns/dry-deny; no allow policies, allow"},
		{[]int{deny | dry, deny}, "dry-run: deny policy match ns/dry-deny; deny policy match ns/deny"},
		{[]int{allow | dry}, "dry-run: allow policy match ns/dry-allow; no allow policies, allow"},
		{[]int{allow | dry | miss}, "dry-run: no allow policies match; no allow policies, allow"},
		{[]int{allow | dry | miss, allow}, "allow policy match ns/allow"},
		{[]int{allow | dry, allow | miss, deny | dry}, "dry-run: deny policy match ns/dry-deny; dry-run: allow policy match ns/dry-allow; no allow policies matched"},
		{[]int{allow | dry, deny}, "deny policy match ns/deny"},
	} {
		var d mesh.Delta
		w := &mesh.Workload{UID: "u", Namespace: "ns"}
		for i, kind := range tt.policies {
			p := &mesh.Policy{Name: names[kind], Namespace: "ns", Scope: []mesh.PolicyScope{mesh.ScopeNamespace, mesh.ScopeWorkloadSelector, mesh.ScopeGlobal}[i%3]}
			port := uint16(80)
			if kind&miss != 0 {
				port = 81
			}
			p.Rules = []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{DestinationPorts: []uint16{port}}}}}}}
			p.Action, p.DryRun = mesh.Allow, kind&dry != 0
			if kind&deny != 0 {
				p.Action = mesh.Deny
			}
			if p.Scope == mesh.ScopeWorkloadSelector {
				w.Policies = append(w.Policies, p.Key())
			}
			d.Policies = append(d.Policies, p)
		}
		b := mesh.NewBuilder(nil)
		b.Apply(d)
		c := Conn{Peer: identity.ID{TrustDomain: "td", Namespace: "a", ServiceAccount: "b"}, Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:80")}
		var got []string
		for _, n := range Explain(b.Build(), w, c) {
			got = append(got, strings.TrimSpace(n.Message+" "+n.Policy))
		}
		if g := strings.Join(got, "; "); g != tt.want {
			t.Errorf("%v: %s\nwant %s", tt.policies, g, tt.want)
		}
	}
}

// TestExplainAgrees: whatever the policies are, the last step is the decision.
//
//ambit:feature policy-decision-log
func TestExplainAgrees(t *testing.T) {
	for n := range 3000 {
		r := newWorld(rand.New(rand.NewPCG(seed, uint64(n))))
		policies, w := r.state()
		s := snapshot(policies...)
		c := r.conn()
		v := Decide(s, w, c)
		if v.Pending {
			continue
		}
		notes := Explain(s, w, c)
		last := notes[len(notes)-1]
		allowed := last.Message == "no allow policies, allow" || last.Message == "allow policy match"
		if allowed != v.Allow || last.Policy != v.Policy && !v.Allow {
			t.Fatalf("world %d: decided %+v, explained by %+v\n%s", n, v, notes, list(policies))
		}
	}
}
