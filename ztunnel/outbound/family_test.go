package outbound

import (
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// A client gets the family it dialled as long as an endpoint has it: another
// may have no way to it. Every choice that chance can make is tried.
//
//ambit:feature traffic-families
func TestBalanceKeepsTheFamily(t *testing.T) {
	const v4, v6 = "10.1.0.1", "fd96::1"
	families := func(f mesh.IPFamilies) func(*mesh.Service) {
		return func(s *mesh.Service) { s.IPFamilies = f }
	}
	near := func(s *mesh.Service) {
		s.IPFamilies = mesh.FamiliesDual
		s.LoadBalancing = mesh.LoadBalancing{Mode: mesh.ModeFailover, Preference: []mesh.Scope{mesh.ScopeNode}}
	}
	local := func(s *mesh.Service) {
		s.LoadBalancing = mesh.LoadBalancing{Mode: mesh.ModeStrict, Preference: []mesh.Scope{mesh.ScopeNode}}
	}
	on := func(node string) func(*mesh.Workload) {
		return func(w *mesh.Workload) { member("web")(w); w.Node, w.Protocol = node, mesh.ProtocolTCP }
	}
	old := workload("old", on("node-1"), "10.0.0.2") // from before the cluster was dual-stack
	both := workload("both", on("node-2"), "10.0.0.3", "fd77::3")
	six := workload("six", on("node-1"), "fd77::4")
	for _, c := range []struct {
		name string
		svc  *mesh.Service
		pods []any
		dst  string
		want []string
	}{
		{"IPv4 of a dual service", service("web", families(mesh.FamiliesDual), v4, v6), []any{old, both, six}, v4,
			[]string{"tcp 10.0.0.2:8080 of web", "tcp 10.0.0.3:8080 of web"}},
		{"IPv6 of a dual service", service("web", families(mesh.FamiliesDual), v4, v6), []any{old, both, six}, v6,
			[]string{"tcp [fd77::3]:8080 of web", "tcp [fd77::4]:8080 of web"}},
		{"a service of IPv6 alone does not choose what it cannot use", service("web", families(mesh.FamiliesIPv6), v6), []any{old, both}, v6,
			[]string{"tcp [fd77::3]:8080 of web"}},
		{"nothing of the family: better the other than nothing", service("web", families(mesh.FamiliesDual), v4, v6), []any{old}, v6,
			[]string{"tcp 10.0.0.2:8080 of web"}},
		{"the family comes before what is near", service("web", near, v4, v6), []any{old, both}, v6,
			[]string{"tcp [fd77::3]:8080 of web"}},
		{"what is near among the family", service("web", near, v4, v6), []any{old, both}, v4,
			[]string{"tcp 10.0.0.2:8080 of web"}},
		{"only local endpoints", service("web", local, v4, v6), []any{old, both}, v6,
			[]string{"tcp 10.0.0.2:8080 of web"}},
		{"no endpoint the service can use", service("web", families(mesh.FamiliesIPv6), v6), []any{old}, v6,
			[]string{"refuse no_address"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			source := workload("client", nil, "10.0.0.1", "fd77::1")
			snap := snapshot(append(c.pods, c.svc, source)...)
			got := map[string]bool{}
			for i := range uint64(8) {
				choice := Choice{Rand: func(n uint64) uint64 { return i % n }}
				got[text(Resolve(snap, source, netip.AddrPortFrom(addr(c.dst), 80), choice))] = true
			}
			for _, w := range c.want {
				if !got[w] {
					t.Errorf("never %q", w)
				}
				delete(got, w)
			}
			for g := range got {
				t.Errorf("chose %q", g)
			}
		})
	}
}
