package client_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
	"github.com/ambitmesh/ambit/controller/xds/client"
	"github.com/ambitmesh/ambit/controller/xds/server"
)

const patience = 20 * time.Second // only ever spent when a test fails

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// run starts a client of addr and stops it with the test.
func run(t *testing.T, c client.Config) (*client.Client, *mesh.Store) {
	t.Helper()
	c.Store = mesh.NewStore()
	x := client.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return x, c.Store
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// control is a control plane that can go away and come back.
type control struct {
	store *mesh.Store
	xds   *server.Server
	grpc  *grpc.Server
	done  chan error
}

func serve(ln net.Listener, store *mesh.Store) *control {
	c := &control{store: store, grpc: grpc.NewServer(server.Options()...), done: make(chan error, 1)}
	c.xds = server.New(server.Config{Store: store, Authenticate: func(ctx context.Context) (server.Caller, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer secret" {
			return server.Caller{}, errors.New("no valid token")
		}
		return server.Caller{Node: "n1"}, nil
	}})
	c.xds.Register(c.grpc)
	go func() { c.done <- c.grpc.Serve(ln) }()
	return c
}

func (c *control) stop() {
	c.xds.Stop()
	c.grpc.GracefulStop()
	c.xds.Wait()
	<-c.done
}

func (c *control) apply(d mesh.Delta) {
	b := mesh.NewBuilder(c.store.Load())
	b.Apply(d)
	c.store.Swap(b.Build())
}

func workload(name string, last byte) *mesh.Workload {
	return &mesh.Workload{UID: "c//Pod/ns/" + name, Name: name, Namespace: "ns", Node: "n1", Protocol: mesh.ProtocolHBONE,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last})},
		Services:  map[string][]mesh.Port{"ns/s.ns.svc": {{ServicePort: 80, TargetPort: 8080}}}}
}

func secret() (string, error) { return "secret", nil }

// equal compares what two snapshots hold.
func equal(a, b *mesh.Snapshot) bool {
	dump := func(s *mesh.Snapshot) (map[string]any, int) {
		out := make(map[string]any)
		for w := range s.AllWorkloads() {
			out[w.UID] = w
		}
		for v := range s.AllServices() {
			out[v.Key()] = v
		}
		for p := range s.AllPolicies() {
			out["policy "+p.Key()] = p
		}
		return out, len(out)
	}
	x, _ := dump(a)
	y, _ := dump(b)
	return reflect.DeepEqual(x, y)
}

//ambit:feature controller-reconnect xds-conversation
func TestStoresStayInStepAcrossOutages(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("lab", func(t *testing.T) {
		ln := listen(t, "127.0.0.1:0")
		addr := ln.Addr().String()
		c := serve(ln, mesh.NewStore())
		c.apply(mesh.Delta{
			Workloads: []*mesh.Workload{workload("a", 1), workload("b", 2)},
			Services: []*mesh.Service{{Name: "s", Namespace: "ns", Hostname: "s.ns.svc", Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}},
				Addresses: []mesh.NetworkAddress{{Prefix: netip.MustParsePrefix("10.96.0.1/32")}}}},
			Policies: []*mesh.Policy{{Name: "p", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny}},
		})
		x, store := run(t, client.Config{Address: addr, Token: secret, NodeID: "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local", Metadata: map[string]string{"NODE_NAME": "n1"}})
		select {
		case <-x.Synced():
		case <-time.After(patience):
			t.Fatal("not synced")
		}
		eventually(t, "equal stores", func() bool { return equal(store.Load(), c.store.Load()) })
		if got := c.xds.Clients(); len(got) != 1 || !strings.HasPrefix(got[0].NodeID, "ztunnel~") {
			t.Errorf("clients %+v", got)
		}
		c.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 9)}, RemovedWorkloads: []string{"c//Pod/ns/b"}})
		eventually(t, "equal stores", func() bool { return equal(store.Load(), c.store.Load()) })

		held := store.Load()
		c.stop()
		if store.Load() != held {
			t.Error("the outage changed the state")
		}
		// Another replica: other objects, one gone, one new.
		next := serve(listen(t, addr), mesh.NewStore())
		next.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 9), workload("c", 3)},
			Policies: []*mesh.Policy{{Name: "p", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny}}})
		eventually(t, "equal stores", func() bool { return equal(store.Load(), next.store.Load()) })
		if store.Load().Workload("c//Pod/ns/a") != held.Workload("c//Pod/ns/a") {
			t.Error("an unchanged workload was sent again")
		}
		t.Cleanup(next.stop)
	})
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

// script is a server that sends what a test says and shows what comes.
type script struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	streams chan discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	end     chan error
}

func (s *script) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s.streams <- stream
	select {
	case err := <-s.end:
		return err
	case <-stream.Context().Done():
		return nil
	}
}

func newScript(t *testing.T) (*script, string) {
	s := &script{streams: make(chan discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer), end: make(chan error)}
	g := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
	ln := listen(t, "127.0.0.1:0")
	done := make(chan error, 1)
	go func() { done <- g.Serve(ln) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return s, ln.Addr().String()
}

type scripted struct {
	t *testing.T
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (s *script) next(t *testing.T) scripted {
	t.Helper()
	select {
	case x := <-s.streams:
		return scripted{t, x}
	case <-time.After(patience):
		t.Fatal("no stream")
		return scripted{}
	}
}

func (s scripted) recv() *discovery.DeltaDiscoveryRequest {
	s.t.Helper()
	m, err := s.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// say sends a response and returns the error detail of the answer.
func (s scripted) say(m *discovery.DeltaDiscoveryResponse) string {
	s.t.Helper()
	if err := s.Send(m); err != nil {
		s.t.Fatal(err)
	}
	a := s.recv()
	if a.TypeUrl != m.TypeUrl || a.ResponseNonce != m.Nonce || a.Node != nil || a.ErrorDetail.GetCode() != 0 {
		s.t.Fatalf("answer %v", a)
	}
	return a.ErrorDetail.GetMessage()
}

func resource(t *testing.T, name, version, url string, marshal func() ([]byte, error)) *discovery.Resource {
	t.Helper()
	b, err := marshal()
	if err != nil {
		t.Fatal(err)
	}
	return &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: url, Value: b}}
}

// Requests and answers message by message, with resources that are refused.
//
//ambit:feature xds-partial-refusal xds-conversation
func TestConversation(t *testing.T) {
	s, addr := newScript(t)
	reg := prometheus.NewRegistry()
	x, store := run(t, client.Config{Address: addr, Token: secret, ClusterID: "Kubernetes", NodeID: "ztunnel~1", Metadata: map[string]string{"NODE_NAME": "n1"}, Registerer: reg})
	st := s.next(t)
	md, _ := metadata.FromIncomingContext(st.Context())
	if md.Get("authorization")[0] != "Bearer secret" || md.Get("clusterid")[0] != "Kubernetes" {
		t.Errorf("metadata %v", md)
	}
	for _, url := range []string{wire.TypeAddress, wire.TypeAuthorization} {
		r := st.recv()
		if r.TypeUrl != url || r.Node.GetId() != "ztunnel~1" || r.Node.GetMetadata().GetFields()["NODE_NAME"].GetStringValue() != "n1" ||
			len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe)+len(r.InitialResourceVersions) != 0 {
			t.Fatalf("first request %v", r)
		}
	}
	a := workload("a", 1)
	good := resource(t, a.UID, "v1", wire.TypeAddress, func() ([]byte, error) { return wire.MarshalWorkload(a) })
	garbage := &discovery.Resource{Name: "bad", Version: "v1", Resource: &anypb.Any{TypeUrl: wire.TypeAddress, Value: []byte{0xff}}}
	wrong := resource(t, "other", "v1", wire.TypeAddress, func() ([]byte, error) { return wire.MarshalWorkload(a) })
	hollow := &discovery.Resource{Name: "hollow"}

	// Nothing but refusals is no state.
	st.say(&discovery.DeltaDiscoveryResponse{TypeUrl: wire.TypeAddress, Nonce: "0", Resources: []*discovery.Resource{garbage}})
	if nack := st.say(&discovery.DeltaDiscoveryResponse{TypeUrl: wire.TypeAuthorization, Nonce: "2"}); nack != "" {
		t.Errorf("NACK %q", nack)
	}
	select {
	case <-x.Synced():
		t.Error("synced although nothing could be used")
	default:
	}
	// The good one counts although others are refused, which will not be sent
	// again: one resource must not keep a node from being ready.
	nack := st.say(&discovery.DeltaDiscoveryResponse{TypeUrl: wire.TypeAddress, Nonce: "1", Resources: []*discovery.Resource{garbage, good, wrong, hollow}})
	for _, want := range []string{"bad: address of 1 bytes", "; other: resource holds workload c//Pod/ns/a", "; hollow: resource is empty"} {
		if !strings.Contains(nack, want) {
			t.Errorf("NACK %q lacks %q", nack, want)
		}
	}
	snapshot := store.Load()
	if snapshot.Version() != 1 || snapshot.Workload(a.UID) == nil {
		t.Fatalf("version %d", snapshot.Version())
	}
	<-x.Synced()
	if nack := st.say(&discovery.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/what.Ever", Nonce: "3"}); nack != "" {
		t.Errorf("NACK %q", nack)
	}
	if nack := st.say(&discovery.DeltaDiscoveryResponse{TypeUrl: wire.TypeAddress, Nonce: "4", RemovedResources: []string{"no/such.host", "c//Pod/ns/none"}}); nack != "" {
		t.Errorf("NACK %q", nack)
	}

	// A new stream tells what is held, and nothing of what was refused.
	s.end <- nil
	st = s.next(t)
	r := st.recv()
	if want := map[string]string{a.UID: "v1"}; !reflect.DeepEqual(r.InitialResourceVersions, want) {
		t.Errorf("holds %v", r.InitialResourceVersions)
	}
	st.recv()
	st.say(&discovery.DeltaDiscoveryResponse{TypeUrl: wire.TypeAddress, Nonce: "1", RemovedResources: []string{a.UID}})
	if store.Load().Workload(a.UID) != nil {
		t.Error("not removed")
	}
	want := map[string]float64{"istio_xds_connection_terminations_total": 1, "istio_xds_message_total": 6}
	families, _ := reg.Gather()
	for _, f := range families {
		sum := 0.0
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue()
		}
		if w, ok := want[f.GetName()]; ok && w != sum {
			t.Errorf("%s = %v, want %v", f.GetName(), sum, w)
		}
	}
}

//ambit:feature xds-conversation
func TestTokenIsReadPerStream(t *testing.T) {
	s, addr := newScript(t)
	tokens := make(chan string, 2)
	tokens <- "first"
	tokens <- "second"
	run(t, client.Config{Address: addr, Token: func() (string, error) { return <-tokens, nil }})
	for _, want := range []string{"Bearer first", "Bearer second"} {
		st := s.next(t)
		md, _ := metadata.FromIncomingContext(st.Context())
		if got := md.Get("authorization"); len(got) != 1 || got[0] != want {
			t.Errorf("authorization %v", got)
		}
		if want == "Bearer first" {
			s.end <- nil
		}
	}
}

func TestWrongTokenIsRetriedAndNeverSyncs(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	c := serve(ln, mesh.NewStore())
	t.Cleanup(c.stop)
	attempts := make(chan struct{}, 100)
	x, _ := run(t, client.Config{Address: ln.Addr().String(), Token: func() (string, error) { attempts <- struct{}{}; return "wrong", nil }})
	for range 3 {
		<-attempts
	}
	select {
	case <-x.Synced():
		t.Error("synced")
	default:
	}
}
