package server

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// state is a server with a mesh of n workloads, and the snapshots before and after
// a change of one of them.
func state(t testing.TB, n int) (s *Server, from, to *mesh.Snapshot) {
	t.Helper()
	store := mesh.NewStore()
	s = New(Config{Store: store, Authenticate: func(context.Context) (Caller, error) { return Caller{}, nil }})
	workload := func(i int, revision string) *mesh.Workload {
		return &mesh.Workload{UID: fmt.Sprintf("c//Pod/ns/%d", i), Namespace: "ns", Name: fmt.Sprint(i), Node: fmt.Sprintf("node-%d", i%100), CanonicalRevision: revision,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
			Services:  map[string][]mesh.Port{fmt.Sprintf("ns/s%d", i%50): nil}}
	}
	apply := func(d mesh.Delta) *mesh.Snapshot {
		b := mesh.NewBuilder(store.Load())
		b.Apply(d)
		next := b.Build()
		store.Swap(next)
		return next
	}
	var d mesh.Delta
	for i := range n {
		d.Workloads = append(d.Workloads, workload(i, "v1"))
	}
	from = apply(d)
	return s, from, apply(mesh.Delta{Workloads: []*mesh.Workload{workload(7, "v2")}})
}

// What one change costs for one client does not grow with the mesh, nor with the
// clients: it is encoded once, and all are sent the same.
//
//ambit:feature scale-no-quadratic
func TestChangeCostsWhatChanged(t *testing.T) {
	costs := func(n int) (everything, onDemand float64) {
		s, from, to := state(t, n)
		d := &demand{node: "node-7", asked: map[string]struct{}{}, told: map[string]struct{}{}, full: map[string]struct{}{}}
		s.changes(wire.TypeAddress, from, to)
		everything = testing.AllocsPerRun(50, func() {
			if u := s.changes(wire.TypeAddress, from, to); len(u.resources) != 1 {
				t.Fatalf("%d resources", len(u.resources))
			}
		})
		onDemand = testing.AllocsPerRun(50, func() {
			clear(d.told)
			if u := s.changesDemand(d, from, to); len(u.resources) != 1 {
				t.Fatalf("%d resources", len(u.resources))
			}
		})
		return everything, onDemand
	}
	small, smallDemand := costs(500)
	large, largeDemand := costs(20_000)
	t.Logf("allocations per change and client: %v of 500 workloads, %v of 20 000; on demand %v and %v", small, large, smallDemand, largeDemand)
	if large > small+2 || largeDemand > smallDemand+2 {
		t.Error("a change costs more in a larger mesh")
	}
	s, from, to := state(t, 500)
	first := s.changes(wire.TypeAddress, from, to)
	for range 200 {
		if u := s.changes(wire.TypeAddress, from, to); u.resources[0] != first.resources[0] {
			t.Fatal("encoded again for another client")
		}
	}
}
