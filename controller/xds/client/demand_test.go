package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
	"github.com/ambitmesh/ambit/controller/xds/client"
)

func elsewhere(name string, last byte) *mesh.Workload {
	w := workload(name, last)
	w.Node = "n2"
	return w
}

func svc() *mesh.Service {
	return &mesh.Service{Name: "s", Namespace: "ns", Hostname: "s.ns.svc", Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}},
		Addresses: []mesh.NetworkAddress{{Prefix: netip.MustParsePrefix("10.96.0.1/32")}}}
}

func uids(s *mesh.Snapshot) []string {
	var out []string
	for w := range s.AllWorkloads() {
		out = append(out, w.Name)
	}
	slices.Sort(out)
	return out
}

// Ours with ours: services come by themselves, workloads when they are asked
// for, and what is known to be absent is told when it appears.
//
//ambit:feature xds-on-demand
func TestOnDemand(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	addr := ln.Addr().String()
	c := serve(ln, mesh.NewStore())
	alone := elsewhere("alone", 9)
	alone.Services = nil
	c.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("local", 1), elsewhere("b", 2), elsewhere("c", 3), alone}, Services: []*mesh.Service{svc()}})
	x, store := run(t, client.Config{Address: addr, Token: secret, OnDemand: true})
	<-x.Synced()
	d := x.Demand()
	ctx := context.Background()
	fetch := func(name string) {
		t.Helper()
		if err := d.Fetch(ctx, "pod", name); err != nil {
			t.Fatal(err)
		}
	}
	// What the node has is sent unasked; of the rest nothing but services.
	eventually(t, "the first answer", func() bool { return store.Load().Service("ns/s.ns.svc") != nil })
	if got := uids(store.Load()); !reflect.DeepEqual(got, []string{"local"}) {
		t.Fatalf("workloads %v", got)
	}
	fetch("/10.0.0.9")
	if store.Load().WorkloadAt("", netip.MustParseAddr("10.0.0.9")) == nil {
		t.Fatal("answered, but the store does not have it")
	}
	if d.Known("ns/s.ns.svc") {
		t.Fatal("a service counts as complete that was never asked for")
	}
	fetch("ns/s.ns.svc")
	if got := uids(store.Load()); !reflect.DeepEqual(got, []string{"alone", "b", "c", "local"}) || !d.Known("ns/s.ns.svc") {
		t.Fatalf("workloads %v, complete %v", got, d.Known("ns/s.ns.svc"))
	}
	// A new endpoint of a service that was asked for, a change, a removal.
	c.apply(mesh.Delta{Workloads: []*mesh.Workload{elsewhere("d", 4)}, RemovedWorkloads: []string{"c//Pod/ns/c"}})
	eventually(t, "the service's endpoints follow", func() bool {
		return reflect.DeepEqual(uids(store.Load()), []string{"alone", "b", "d", "local"})
	})
	// A pod nobody asked for does not.
	other := elsewhere("other", 5)
	other.Services = nil
	late := elsewhere("late", 77)
	late.Services = nil
	fetch("/10.0.0.77")
	if !d.Known("/10.0.0.77") {
		t.Fatal("an absent name is asked for again and again")
	}
	c.apply(mesh.Delta{Workloads: []*mesh.Workload{other, late}})
	eventually(t, "what was absent appears", func() bool { return store.Load().Workload(late.UID) != nil })
	// The store comes first: who finds nothing in it and asks then, asks in vain at worst.
	eventually(t, "it is not taken for absent any more", func() bool { return !d.Known("/10.0.0.77") })
	if store.Load().Workload(other.UID) != nil {
		t.Error("a workload nobody asked for was sent")
	}
	// Another replica, meanwhile one has gone and one has come.
	held := store.Load().Workload("c//Pod/ns/b")
	fetch("/10.0.0.78")
	c.stop()
	next := serve(listen(t, addr), mesh.NewStore())
	t.Cleanup(next.stop)
	last := elsewhere("last", 78)
	last.Services = nil
	next.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("local", 1), elsewhere("b", 2), elsewhere("e", 6), last, other}, Services: []*mesh.Service{svc()}})
	eventually(t, "the state of the other replica", func() bool {
		return reflect.DeepEqual(uids(store.Load()), []string{"b", "e", "last", "local"})
	})
	if store.Load().Workload("c//Pod/ns/b") != held {
		t.Error("an unchanged workload was sent again")
	}
	next.apply(mesh.Delta{RemovedServices: []string{"ns/s.ns.svc"}})
	eventually(t, "the service is gone", func() bool { return !d.Known("ns/s.ns.svc") })
}

// With a server of Istio's kind: the exact form of the requests, an answer by
// the name of the resource, one by that of the address, and an absent one, of
// which it may never say more.
//
//ambit:feature xds-on-demand
func TestOnDemandConversation(t *testing.T) {
	s, addr := newScript(t)
	x, store := run(t, client.Config{Address: addr, NodeID: "ztunnel~1", OnDemand: true})
	st := s.next(t)
	r := st.recv()
	if r.TypeUrl != wire.TypeAddress || !slices.Equal(r.ResourceNamesSubscribe, []string{"*"}) || !slices.Equal(r.ResourceNamesUnsubscribe, []string{"*"}) ||
		len(r.InitialResourceVersions) != 0 || r.Node.GetMetadata().GetFields()[wire.MetadataServices].GetStringValue() != "all" {
		t.Fatalf("first request %v", r)
	}
	if r := st.recv(); r.TypeUrl != wire.TypeAuthorization || len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe) != 0 {
		t.Fatalf("second request %v", r)
	}
	st.say(&discovery.DeltaDiscoveryResponse{TypeUrl: wire.TypeAuthorization, Nonce: "1"})
	<-x.Synced() // of addresses there is nothing to wait for

	d := x.Demand()
	a := workload("a", 1)
	answers := map[string]*discovery.DeltaDiscoveryResponse{
		"/10.0.0.1":  {Resources: []*discovery.Resource{resource(t, a.UID, "v1", wire.TypeAddress, func() ([]byte, error) { return wire.MarshalWorkload(a) })}},
		"/10.0.0.2":  {Resources: []*discovery.Resource{resource(t, "/10.0.0.2", "v2", wire.TypeAddress, func() ([]byte, error) { return wire.MarshalWorkload(workload("b", 2)) })}},
		"/10.96.0.1": {Resources: []*discovery.Resource{resource(t, "ns/s.ns.svc", "v3", wire.TypeAddress, func() ([]byte, error) { return wire.MarshalService(svc()) })}},
		"/10.0.0.99": {RemovedResources: []string{"/10.0.0.99"}},
	}
	for _, name := range []string{"/10.0.0.1", "/10.0.0.2", "/10.96.0.1", "/10.0.0.99"} {
		done := make(chan error, 1)
		go func() { done <- d.Fetch(context.Background(), "pod", name) }()
		r := st.recv()
		if r.TypeUrl != wire.TypeAddress || !slices.Equal(r.ResourceNamesSubscribe, []string{name}) || len(r.ResourceNamesUnsubscribe) != 0 || r.ResponseNonce != "" || r.Node != nil {
			t.Fatalf("request %v", r)
		}
		m := answers[name]
		m.TypeUrl, m.Nonce = wire.TypeAddress, name
		if nack := st.say(m); nack != "" {
			t.Fatal(nack)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if got := uids(store.Load()); !reflect.DeepEqual(got, []string{"a", "b"}) {
		t.Errorf("workloads %v", got)
	}
	if !d.Known("ns/s.ns.svc") {
		t.Error("a service that came for its address came with its workloads")
	}
	if !d.Known("/10.0.0.99") {
		t.Error("nothing is remembered of an absent name")
	}
	// A new stream asks again for what matters, and says what is held.
	s.end <- nil
	st = s.next(t)
	r = st.recv()
	if want := []string{"*", "/10.0.0.99", "ns/s.ns.svc"}; !slices.Equal(r.ResourceNamesSubscribe, want) || !slices.Equal(r.ResourceNamesUnsubscribe, []string{"*"}) {
		t.Errorf("subscribes %v", r.ResourceNamesSubscribe)
	}
	if want := map[string]string{a.UID: "v1", "/10.0.0.2": "v2", "ns/s.ns.svc": "v3", "/10.0.0.99": ""}; !reflect.DeepEqual(r.InitialResourceVersions, want) {
		t.Errorf("holds %v", r.InitialResourceVersions)
	}
}

// Nobody answers: the question has its end, and nothing is known afterwards.
func TestOnDemandWithoutAnswer(t *testing.T) {
	store := mesh.NewStore()
	d := client.New(client.Config{Store: store, OnDemand: true}).Demand()
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error)
	for i := range 40 { // more than one pod may ask at once
		go func() { errs <- d.Fetch(ctx, "pod", fmt.Sprintf("/10.0.0.%d", i)) }()
	}
	cancel()
	for range 40 {
		if err := <-errs; !errors.Is(err, client.ErrUnanswered) {
			t.Errorf("error %v", err)
		}
	}
	if d.Known("/10.0.0.1") {
		t.Error("known without an answer")
	}
}
