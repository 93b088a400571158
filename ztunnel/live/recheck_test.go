package live

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
)

// TestChangesThatConcern: a change that makes a difference to a connection's pod
// is asked about, whatever it is a change of; those of others are not.
func TestChangesThatConcern(t *testing.T) {
	all := []mesh.Rule{{}}
	named := *server
	named.Policies = []string{"prod/no"}
	other := *client
	other.CanonicalRevision = "v2"
	for _, c := range []struct {
		name   string
		before mesh.Delta // arrives before the connection
		change mesh.Delta
		cut    bool
	}{
		{"a new policy", mesh.Delta{}, mesh.Delta{Policies: []*mesh.Policy{{Name: "no", Namespace: "prod", Scope: mesh.ScopeNamespace, Action: mesh.Deny, Rules: all}}}, true},
		{"a policy is deleted", mesh.Delta{Policies: []*mesh.Policy{
			{Name: "a", Namespace: "prod", Scope: mesh.ScopeNamespace, Rules: all}, {Name: "b", Namespace: "prod", Scope: mesh.ScopeNamespace}}},
			mesh.Delta{RemovedPolicies: []string{"prod/a"}}, true},
		{"the pod comes to name a policy", mesh.Delta{Policies: []*mesh.Policy{{Name: "no", Namespace: "prod", Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny, Rules: all}}},
			mesh.Delta{Workloads: []*mesh.Workload{&named}}, true},
		{"another pod", mesh.Delta{}, mesh.Delta{Workloads: []*mesh.Workload{&other}}, false},
		{"a policy of others", mesh.Delta{}, mesh.Delta{Policies: []*mesh.Policy{{Name: "no", Namespace: "default", Scope: mesh.ScopeNamespace, Action: mesh.Deny, Rules: all}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, false, "info")
				b.store = mesh.NewStore() // of this bubble
				b.table.store = b.store
				apply := func(d mesh.Delta) {
					next := mesh.NewBuilder(b.store.Load())
					next.Apply(d)
					b.store.Swap(next.Build())
					synctest.Wait()
				}
				apply(mesh.Delta{Workloads: []*mesh.Workload{server, client}})
				apply(c.before)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); _ = b.table.Run(ctx) }()
				synctest.Wait()
				conn := b.table.Accept(b.pod, Destination)
				f := facts()
				f.Check = &Check{Workload: server, Conn: authz.Conn{Src: f.Src, Dst: f.Dst}}
				conn.Open(f)
				apply(c.change)
				if cut := conn.Err() != nil; cut != c.cut {
					t.Errorf("cut %t, want %t: %v", cut, c.cut, conn.Err())
				}
				conn.End(nil)
				cancel()
				<-done
			})
		})
	}
}

// BenchmarkRecheck is a change of the mesh with 10 000 connections open.
func BenchmarkRecheck(b *testing.B) {
	for name, change := range map[string]func(i int) mesh.Delta{
		"a policy": func(i int) mesh.Delta {
			return mesh.Delta{Policies: []*mesh.Policy{{Name: "a", Namespace: "prod", Scope: mesh.ScopeNamespace,
				Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{SourceIPs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 8+i%2)}}}}}}}}}}
		},
		"another pod": func(i int) mesh.Delta {
			w := *client
			w.Health = mesh.Health(i % 2)
			return mesh.Delta{Workloads: []*mesh.Workload{&w}}
		},
	} {
		b.Run(name, func(b *testing.B) {
			x := newBench(b, false, "info")
			apply := func(d mesh.Delta) {
				next := mesh.NewBuilder(x.store.Load())
				next.Apply(d)
				x.store.Swap(next.Build())
			}
			apply(mesh.Delta{Workloads: []*mesh.Workload{server, client}})
			for range 10000 {
				conn := x.table.Accept(x.pod, Destination)
				f := facts()
				f.Check = &Check{Workload: server, Conn: authz.Conn{Src: f.Src, Dst: f.Dst}}
				conn.Open(f)
			}
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				before := x.store.Load().Mark()
				apply(change(i))
				b.StartTimer()
				s := x.store.Load()
				changes, _ := x.store.Changes(before, s)
				x.table.recheck(s, func(w string) bool { return concerns(changes, w) })
			}
		})
	}
}
