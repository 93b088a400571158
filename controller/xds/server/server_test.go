package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
	"github.com/ambitmesh/ambit/controller/xds/server"
)

const patience = 20 * time.Second // only ever spent when a test fails

// lab is a server on loopback.
type lab struct {
	t      *testing.T
	store  *mesh.Store
	server *server.Server
	addr   string
}

func newLab(t *testing.T, change ...func(*server.Config)) *lab {
	t.Helper()
	before := runtime.NumGoroutine()
	l := &lab{t: t, store: mesh.NewStore()}
	config := server.Config{Store: l.store, Authenticate: tokenOf}
	for _, f := range change {
		f(&config)
	}
	l.server = server.New(config)
	g := grpc.NewServer(server.Options()...)
	l.server.Register(g)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.addr = ln.Addr().String()
	done := make(chan error, 1)
	go func() { done <- g.Serve(ln) }()
	t.Cleanup(func() {
		l.server.Stop()
		g.GracefulStop()
		l.server.Wait()
		<-done
		eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return l
}

func tokenOf(ctx context.Context) (server.Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("authorization"); len(v) == 1 && strings.HasPrefix(v[0], "Bearer node-") {
		return server.Caller{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "z", Node: strings.TrimPrefix(v[0], "Bearer ")}, nil
	}
	return server.Caller{}, errors.New("token has expired")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (l *lab) apply(d mesh.Delta) *mesh.Snapshot {
	b := mesh.NewBuilder(l.store.Load())
	b.Apply(d)
	s := b.Build()
	l.store.Swap(s)
	return s
}

// raw is a client that shows every message.
type raw struct {
	t      *testing.T
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func (l *lab) dial(token string) *raw {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	conn, err := grpc.NewClient(l.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { cancel(); conn.Close() })
	ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", "c1")
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	return &raw{t: l.t, stream: s}
}

func (r *raw) subscribe(url string, holds map[string]string) {
	r.t.Helper()
	err := r.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: url, InitialResourceVersions: holds})
	if err != nil && !errors.Is(err, io.EOF) { // EOF: the stream has ended, Recv says why
		r.t.Fatal(err)
	}
}

func (r *raw) recv() *discovery.DeltaDiscoveryResponse {
	r.t.Helper()
	m, err := r.stream.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (r *raw) answer(m *discovery.DeltaDiscoveryResponse, nack string) {
	r.t.Helper()
	a := &discovery.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce}
	if nack != "" {
		a.ErrorDetail = &status.Status{Message: nack}
	}
	if err := r.stream.Send(a); err != nil {
		r.t.Fatal(err)
	}
}

// describe is a response in one line: A for addresses, P for policies.
func describe(m *discovery.DeltaDiscoveryResponse) string {
	kind := "A"
	if m.TypeUrl == wire.TypeAuthorization {
		kind = "P"
	}
	var parts []string
	for _, r := range m.Resources {
		parts = append(parts, "+"+r.Name)
	}
	for _, n := range m.RemovedResources {
		parts = append(parts, "-"+n)
	}
	return kind + strings.Join(parts, " ")
}

func (r *raw) expect(want string) *discovery.DeltaDiscoveryResponse {
	r.t.Helper()
	m := r.recv()
	if got := describe(m); got != want {
		r.t.Fatalf("response %q, want %q", got, want)
	}
	r.answer(m, "")
	return m
}

func workload(name string, last byte) *mesh.Workload {
	return &mesh.Workload{UID: "c//Pod/ns/" + name, Name: name, Namespace: "ns",
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last})}, Protocol: mesh.ProtocolHBONE}
}

func policy(name string) *mesh.Policy {
	return &mesh.Policy{Namespace: "ns", Name: name, Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny}
}

func TestPoliciesTravelBeforeWorkloadsAndLeaveAfter(t *testing.T) {
	l := newLab(t)
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)}, Policies: []*mesh.Policy{policy("p")}})
	r := l.dial("node-1")
	r.subscribe(wire.TypeAddress, nil)
	r.subscribe(wire.TypeAuthorization, nil)
	r.expect("P+ns/p")
	r.expect("A+c//Pod/ns/a")

	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("b", 2)}, Policies: []*mesh.Policy{policy("q")},
		RemovedWorkloads: []string{"c//Pod/ns/a"}, RemovedPolicies: []string{"ns/p"}})
	r.expect("P+ns/q")
	r.expect("A+c//Pod/ns/b -c//Pod/ns/a")
	r.expect("P-ns/p")
}

func TestReconnectResendsNothing(t *testing.T) {
	l := newLab(t)
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)},
		Services: []*mesh.Service{{Namespace: "ns", Hostname: "s.ns", Name: "s"}}, Policies: []*mesh.Policy{policy("p")}})
	r := l.dial("node-1")
	r.subscribe(wire.TypeAddress, nil)
	first := r.expect("A+ns/s.ns +c//Pod/ns/a")
	holds := map[string]string{"c//Pod/ns/gone": "0"}
	for _, x := range first.Resources {
		holds[x.Name] = x.Version
	}
	// Another replica has other objects of equal content.
	other := newLab(t)
	other.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)},
		Services: []*mesh.Service{{Namespace: "ns", Hostname: "s.ns", Name: "s"}}})
	again := other.dial("node-1")
	again.subscribe(wire.TypeAddress, holds)
	again.expect("A-c//Pod/ns/gone")
	changed := workload("a", 9)
	other.apply(mesh.Delta{Workloads: []*mesh.Workload{changed}})
	again.expect("A+c//Pod/ns/a")
}

func TestSlowClientSkipsIntermediateStates(t *testing.T) {
	l := newLab(t)
	r := l.dial("node-1")
	r.subscribe(wire.TypeAddress, nil)
	m := r.recv() // not answered yet
	for i := range 50 {
		l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", byte(i))}})
	}
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("b", 99)}})
	r.answer(m, "")
	r.expect("A+c//Pod/ns/a +c//Pod/ns/b")
}

func TestForeignSnapshotIsComparedWhole(t *testing.T) {
	l := newLab(t)
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)}})
	r := l.dial("node-1")
	r.subscribe(wire.TypeAddress, nil)
	r.expect("A+c//Pod/ns/a")
	b := mesh.NewBuilder(nil) // no relative of what was sent
	b.Apply(mesh.Delta{Workloads: []*mesh.Workload{workload("b", 2)}})
	l.store.Swap(b.Build())
	r.expect("A+c//Pod/ns/b -c//Pod/ns/a")
}

func TestNACKIsShownAndLaterChangesGoOn(t *testing.T) {
	l := newLab(t)
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)}})
	r := l.dial("node-7")
	r.subscribe(wire.TypeAddress, nil)
	r.answer(r.recv(), "c//Pod/ns/a: too odd")
	eventually(t, "the NACK shows", func() bool {
		c := l.server.Clients()
		return len(c) == 1 && c[0].Caller.Node == "node-7" && c[0].Types[0].LastNACK == "c//Pod/ns/a: too odd" && c[0].Types[0].Acked == 0
	})
	s := l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 2)}})
	r.expect("A+c//Pod/ns/a")
	eventually(t, "the ACK shows", func() bool {
		ty := l.server.Clients()[0].Types[0]
		return ty.LastNACK == "" && ty.Acked == s.Version() && ty.Sent == s.Version()
	})
}

func TestUnauthenticatedStreamIsRefusedWithReason(t *testing.T) {
	l := newLab(t)
	r := l.dial("")
	r.subscribe(wire.TypeAddress, nil)
	_, err := r.stream.Recv()
	if grpcstatus.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "token has expired") {
		t.Fatalf("error %v", err)
	}
	if n := len(l.server.Clients()); n != 0 {
		t.Fatalf("%d clients", n)
	}
}

func TestUnknownTypeEndsTheStreamWithReason(t *testing.T) {
	l := newLab(t)
	r := l.dial("node-1")
	r.subscribe("type.googleapis.com/envoy.config.cluster.v3.Cluster", nil)
	if _, err := r.stream.Recv(); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Fatalf("error %v", err)
	}
}

func TestSingleNamesAreAnswered(t *testing.T) {
	l := newLab(t)
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)}})
	r := l.dial("node-1")
	r.subscribe(wire.TypeAddress, nil)
	r.expect("A+c//Pod/ns/a")
	err := r.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.TypeAddress, ResourceNamesSubscribe: []string{"c//Pod/ns/a", "/10.9.9.9"}})
	if err != nil {
		t.Fatal(err)
	}
	r.expect("A+c//Pod/ns/a -/10.9.9.9")
}

// A name that is asked for before the first answer must not be waited for in
// vain. The form of the first request is an Istio ztunnel's on-demand one.
func TestNamesOfTheFirstRequestAreAnswered(t *testing.T) {
	l := newLab(t)
	local := workload("a", 1)
	local.Node = "node-1" // which is always told
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{local, workload("elsewhere", 2)}})
	r := l.dial("node-1")
	for _, name := range []string{"/10.9.9.9", "/10.9.9.8"} { // the second arrives while requests are gathered
		err := r.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.TypeAddress,
			ResourceNamesSubscribe: []string{"*", name}, ResourceNamesUnsubscribe: []string{"*"}})
		if err != nil {
			t.Fatal(err)
		}
	}
	r.expect("A+c//Pod/ns/a -/10.9.9.8 -/10.9.9.9")
}

// Clients that come at once are served in turns, so that their first requests
// and answers are not all in memory.
func TestFirstAnswersTakeTurns(t *testing.T) {
	l := newLab(t, func(c *server.Config) { c.FirstAnswers = 1 })
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)}})
	first := l.dial("node-1")
	first.subscribe(wire.TypeAddress, nil)
	held := first.recv() // and not acknowledged
	second, third := l.dial("node-2"), l.dial("node-3")
	second.subscribe(wire.TypeAddress, nil)
	eventually(t, "all are connected", func() bool { return len(l.server.Clients()) == 3 })
	for _, c := range l.server.Clients() {
		if c.Caller.Node != "node-1" && len(c.Types) > 0 {
			t.Errorf("%s has been read", c.Caller.Node)
		}
	}
	first.answer(held, "")                           // its turn is over
	if err := third.stream.CloseSend(); err != nil { // one that says nothing
		t.Fatal(err)
	}
	second.expect("A+c//Pod/ns/a")
	// A change still reaches a client whose turn is over.
	l.apply(mesh.Delta{RemovedWorkloads: []string{"c//Pod/ns/a"}})
	first.expect("A-c//Pod/ns/a")
}

// A token is looked at again while its stream lives.
func TestStreamEndsWithItsCredentials(t *testing.T) {
	var code atomic.Uint32
	var asked atomic.Int32
	l := newLab(t, func(c *server.Config) {
		c.Recheck = time.Millisecond
		c.Authenticate = func(context.Context) (server.Caller, error) {
			asked.Add(1)
			return server.Caller{}, grpcstatus.Error(codes.Code(code.Load()), "its pod has ended")
		}
	})
	r := l.dial("node-1")
	r.subscribe(wire.TypeAddress, nil)
	r.expect("A")
	code.Store(uint32(codes.Unavailable)) // nobody can say: the stream goes on
	before := asked.Load()
	eventually(t, "rechecks", func() bool { return asked.Load() > before+3 })
	if n := len(l.server.Clients()); n != 1 {
		t.Fatalf("%d clients", n)
	}
	code.Store(uint32(codes.Unauthenticated))
	if _, err := r.stream.Recv(); grpcstatus.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "its pod has ended") {
		t.Fatalf("error %v", err)
	}
}

func TestStopEndsStreamsCleanly(t *testing.T) {
	l := newLab(t)
	r := l.dial("node-1")
	r.subscribe(wire.TypeAddress, nil)
	r.expect("A")
	l.server.Stop()
	if _, err := r.stream.Recv(); err == nil || grpcstatus.Code(err) != codes.Unknown && err.Error() != "EOF" {
		t.Fatalf("error %v", err)
	}
	late := l.dial("node-1")
	if _, err := late.stream.Recv(); grpcstatus.Code(err) != codes.Unavailable {
		t.Fatalf("error %v", err)
	}
}

func BenchmarkChangeToClients(b *testing.B) {
	for _, clients := range []int{1, 100} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) { benchChange(b, clients) })
	}
}

// benchChange measures one change of 10 000 workloads until every client has
// acknowledged it, over loopback TCP.
func benchChange(b *testing.B, clients int) {
	store := mesh.NewStore()
	s := server.New(server.Config{Store: store, Authenticate: tokenOf})
	g := grpc.NewServer(server.Options()...)
	s.Register(g)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go g.Serve(ln)
	defer g.Stop()
	build := mesh.NewBuilder(nil)
	for i := range 10000 {
		build.Apply(mesh.Delta{Workloads: []*mesh.Workload{workload(fmt.Sprint("w", i), byte(i))}})
	}
	store.Swap(build.Build())
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer node-1"))
	defer cancel()
	var acked atomic.Int64
	for range clients {
		conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			b.Fatal(err)
		}
		stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.TypeAddress})
		go func() {
			for {
				m, err := stream.Recv()
				if err != nil {
					return
				}
				stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce})
				acked.Add(1)
			}
		}()
	}
	want := int64(clients)
	wait := func() {
		for acked.Load() < want {
			runtime.Gosched()
		}
	}
	wait()
	b.ResetTimer()
	for i := range b.N {
		w := workload("w77", byte(i))
		w.Node = fmt.Sprint(i)
		next := mesh.NewBuilder(store.Load())
		next.Apply(mesh.Delta{Workloads: []*mesh.Workload{w}})
		store.Swap(next.Build())
		want += int64(clients)
		wait()
	}
}
