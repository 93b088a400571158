package inbound

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

func named(ns, sa string) identity.ID {
	return identity.ID{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}
}

// Who may speak for clients: the waypoints that the workload or its services are
// configured to have, and nobody else.
//
//ambit:feature waypoint-original-client
func TestJudged(t *testing.T) {
	way, spare, other := named("ns", "way"), named("ns", "spare"), named("ns", "other")
	pod := func(name, ip string, id identity.ID, change func(*mesh.Workload)) *mesh.Workload {
		w := &mesh.Workload{UID: "c//Pod/ns/" + name, Name: name, Namespace: id.Namespace, ServiceAccount: id.ServiceAccount, Protocol: mesh.ProtocolHBONE,
			Addresses: []netip.Addr{netip.MustParseAddr(ip)}}
		if change != nil {
			change(w)
		}
		return w
	}
	of := func(keys ...string) func(*mesh.Workload) {
		return func(w *mesh.Workload) {
			w.Services = map[string][]mesh.Port{}
			for _, k := range keys {
				w.Services[k] = nil
			}
		}
	}
	service := func(host, vip string, g *mesh.GatewayAddress) *mesh.Service {
		return &mesh.Service{Name: host, Namespace: "ns", Hostname: host, Addresses: []mesh.NetworkAddress{single(vip)}, Waypoint: g}
	}
	byHost := &mesh.GatewayAddress{Namespace: "ns", Hostname: "way.svc"}
	web, wayService := service("web", "10.1.0.1", byHost), service("way.svc", "10.1.0.9", nil)
	byAddress := service("addressed", "10.1.0.2", &mesh.GatewayAddress{Address: single("10.1.0.9")})
	byPod := service("podded", "10.1.0.3", &mesh.GatewayAddress{Address: single("10.0.0.50")})
	byName := service("named", "10.1.0.4", &mesh.GatewayAddress{Namespace: "ns", Hostname: "spare.example"})
	split := service("split", "10.1.0.5", &mesh.GatewayAddress{Address: single("10.0.0.52")})
	split.Weighted = []mesh.WeightedWaypoint{{Destination: *byHost, Weight: 1}}
	workloads := []*mesh.Workload{
		pod("way", "10.0.0.50", way, of("ns/way.svc")), pod("other", "10.0.0.52", other, nil),
		pod("spare", "10.0.0.51", spare, func(w *mesh.Workload) { w.Hostname = "spare.example" }),
	}
	services := []*mesh.Service{web, wayService, byAddress, byPod, byName, split, service("plain", "10.1.0.6", nil)}

	client := named("far", "client")
	claim := []hbone.Header{{Name: hbone.ClientHeader, Value: client.String()}, {Name: "forwarded", Value: `for="10.9.9.9:99";host=web`}}
	src := netip.MustParseAddrPort("10.0.0.50:1") // the waypoint's, but for those that others have
	at := map[string]string{"by the host name of a workload": "10.0.0.51:1", "the other of weighted ones": "10.0.0.52:1",
		"another pod of the waypoint's account": "10.0.0.52:1"}
	for _, tt := range []struct {
		name     string
		peer     identity.ID
		of       []string
		waypoint *mesh.GatewayAddress
		header   []hbone.Header
		believed bool
		reason   live.Reason
	}{
		{"waypoint of a service", way, []string{"ns/web"}, nil, claim, true, ""},
		{"by the address of a service", way, []string{"ns/addressed"}, nil, claim, true, ""},
		{"by the address of a pod", way, []string{"ns/podded"}, nil, claim, true, ""},
		{"by the host name of a workload", spare, []string{"ns/named"}, nil, claim, true, ""},
		{"one of weighted ones", way, []string{"ns/split"}, nil, claim, true, ""},
		{"the other of weighted ones", other, []string{"ns/split"}, nil, claim, true, ""},
		{"of one of several services", way, []string{"ns/plain", "ns/gone", "ns/web"}, nil, claim, true, ""},
		{"waypoint of the workload", way, nil, byHost, claim, true, ""},
		{"another pod of the waypoint's account", way, []string{"ns/web"}, nil, claim, false, ""},
		{"says nothing", way, []string{"ns/web"}, nil, nil, false, ""},
		{"waypoint of another service", spare, []string{"ns/web"}, nil, claim, false, ""},
		{"no waypoint", other, []string{"ns/web"}, nil, claim, false, ""},
		{"no waypoint at all", way, []string{"ns/plain"}, nil, claim, false, ""},
		{"nobody", identity.ID{}, []string{"ns/web"}, nil, claim, false, ""},
		{"a waypoint of that name elsewhere", identity.ID{TrustDomain: "evil", Namespace: "ns", ServiceAccount: "way"}, []string{"ns/web"}, nil, claim, false, ""},
		{"no identity", way, []string{"ns/web"}, nil, []hbone.Header{{Name: hbone.ClientHeader, Value: "x"}, claim[1]}, false, live.BadRequest},
		{"two identities", way, []string{"ns/web"}, nil, append([]hbone.Header{claim[0]}, claim...), false, live.BadRequest},
		{"another trust domain's client", way, []string{"ns/web"}, nil, []hbone.Header{{Name: hbone.ClientHeader, Value: "spiffe://evil/ns/a/sa/b"}, claim[1]}, false, live.BadRequest},
		{"no address", way, []string{"ns/web"}, nil, claim[:1], false, live.BadRequest},
		{"no address that is one", way, []string{"ns/web"}, nil, []hbone.Header{claim[0], {Name: "forwarded", Value: "for=unknown"}}, false, live.BadRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := pod("server", "10.0.0.1", named("ns", "server"), of(tt.of...))
			w.Waypoint = tt.waypoint
			src := src
			if a := at[tt.name]; a != "" {
				src = netip.MustParseAddrPort(a)
			}
			snap := build(append(workloads, w), services)
			c, err := judged(snap, w, tt.peer, src, hbone.Request{Header: tt.header}, nil)
			if reason(err) != tt.reason {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			if believed := c.Peer == client && c.Through == tt.peer && c.Src.String() == "10.9.9.9:99"; believed != tt.believed {
				t.Errorf("%+v", c)
			}
			if !tt.believed && (c.Peer != tt.peer || !c.Through.IsZero() || c.Src != src) {
				t.Errorf("not believed, and yet %+v", c)
			}
		})
	}
	// While the mesh's trust domain is changed its old name is an alias of it.
	{
		aliased := way
		aliased.TrustDomain = "old.example"
		theirs := client
		theirs.TrustDomain = "old.example"
		old := hbone.Request{Header: []hbone.Header{{Name: hbone.ClientHeader, Value: theirs.String()}, claim[1]}}
		snap := build(append(workloads, pod("server", "10.0.0.1", named("ns", "server"), of("ns/web"))), services)
		w := snap.Workload("c//Pod/ns/server")
		terms := &identity.Terms{Aliases: func() []string { return []string{"old.example"} }}
		if c, err := judged(snap, w, aliased, src, old, terms); err != nil || c.Peer != theirs || c.Through != aliased {
			t.Errorf("of an alias: %+v, %v", c, err)
		}
		if c, _ := judged(snap, w, aliased, src, old, nil); !c.Through.IsZero() {
			t.Errorf("of no alias: %+v", c)
		}
	}
	// A waypoint that ends is not ready any more, and still has requests to pass on.
	w := pod("server", "10.0.0.1", named("ns", "server"), of("ns/web"))
	ending := *workloads[0]
	ending.Health = mesh.Unhealthy
	if c, err := judged(build([]*mesh.Workload{w, &ending}, services), w, way, src, hbone.Request{Header: claim}, nil); err != nil || c.Peer != client {
		t.Errorf("%+v, %v", c, err)
	}
}

// asked is a control plane that tells what it is asked for.
type asked struct {
	store *mesh.Store
	all   map[string]mesh.Delta
	err   error
	known map[string]bool
}

func (a *asked) Known(name string) bool { return a.known[name] }

func (a *asked) Fetch(_ context.Context, _, name string) error {
	b := mesh.NewBuilder(a.store.Load())
	b.Apply(a.all[name])
	a.store.Swap(b.Build())
	a.known[name] = true
	return a.err
}

// Where workloads are only sent when asked for, a waypoint that speaks for a client
// is asked for first.
func TestWaypointsOnDemand(t *testing.T) {
	way := &mesh.Workload{UID: "c//Pod/ns/way", Name: "way", Namespace: "ns", ServiceAccount: "way", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.50")},
		Services: map[string][]mesh.Port{"ns/way.svc": nil}}
	self := &mesh.Workload{UID: "c//Pod/ns/server", Name: "server", Namespace: "ns", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Services: map[string][]mesh.Port{"ns/web": nil}}
	web := &mesh.Service{Name: "web", Namespace: "ns", Hostname: "web", Addresses: []mesh.NetworkAddress{single("10.1.0.1")},
		Waypoint: &mesh.GatewayAddress{Namespace: "ns", Hostname: "way.svc"}}
	wayService := &mesh.Service{Name: "way", Namespace: "ns", Hostname: "way.svc", Addresses: []mesh.NetworkAddress{single("10.1.0.9")}}
	for _, tt := range []struct {
		err  error
		want bool
	}{{nil, true}, {errors.New("no answer"), false}} {
		store := mesh.NewStore()
		store.Swap(build([]*mesh.Workload{self}, []*mesh.Service{web, wayService}))
		if hasWaypoint(store.Load(), self, way.Identity(), way.Addresses[0], nil) {
			t.Fatal("known before it was asked for")
		}
		d := &asked{store: store, all: map[string]mesh.Delta{"ns/way.svc": {Workloads: []*mesh.Workload{way}}}, err: tt.err, known: map[string]bool{}}
		p := New(Config{Store: store, Table: table(), Demand: d, Pod: &live.Pod{UID: "u"}})
		snap, err := p.waypoints(t.Context(), store.Load(), self)
		if reason(err) != map[bool]live.Reason{true: "", false: live.LookupUnanswered}[tt.want] {
			t.Errorf("%v", err)
		}
		if tt.want && !hasWaypoint(snap, self, way.Identity(), way.Addresses[0], nil) {
			t.Error("not known after it was asked for")
		}
	}
}

func TestForwardedFor(t *testing.T) {
	for in, want := range map[string]string{
		`for="10.0.0.1:80"`: "10.0.0.1:80", `host=a;For="[fd00::1]:80"`: "[fd00::1]:80", `for="[::ffff:10.0.0.1]:80"`: "10.0.0.1:80",
		`for="10.0.0.1:80", for="10.0.0.2:80"`: "10.0.0.1:80", `for=10.0.0.1`: "", `by="10.0.0.1:80"`: "", ``: "", `for="[fe80::1%eth0]:80"`: "",
	} {
		if got, ok := forwardedFor(in); ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %s, %v; want %q", in, got, ok, want)
		}
	}
}

func FuzzForwardedFor(f *testing.F) {
	for _, s := range []string{`for="10.0.0.1:80";host=a`, `for="[fd00::1]:80",for=x`, `;;=,"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a, ok := forwardedFor(s); ok && (!a.IsValid() || a.Addr().Is4In6() || a.Addr().Zone() != "") {
			t.Errorf("%q: %v", s, a)
		}
		forwardedHost(s)
	})
}

// What logs and metrics say of a client: what the mesh knows of its address, and
// what it says itself where that is nothing, or somebody else.
//
//ambit:feature waypoint-baggage
func TestSourceOf(t *testing.T) {
	self := &mesh.Workload{UID: "c//Pod/ns/server", Name: "server", Namespace: "ns", Network: "near", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	known := &mesh.Workload{UID: "c//Pod/ns/known", Name: "known", Namespace: "ns", ServiceAccount: "known", Network: "near",
		WorkloadName: "known", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}
	snap := build([]*mesh.Workload{self, known}, nil)
	says := hbone.Header{Name: "baggage", Value: "k8s.namespace.name=ns,k8s.deployment.name=said,service.name=said"}
	from := func(n string) hbone.Header { return hbone.Header{Name: hbone.NetworkHeader, Value: n} }
	other := named("ns", "other")
	for _, tt := range []struct {
		name      string
		peer      identity.ID
		src       string
		header    []hbone.Header
		noBaggage bool
		want      string
	}{
		{"known", known.Identity(), "10.0.0.2", []hbone.Header{says}, false, "known"},
		{"known, of this network", known.Identity(), "10.0.0.2", []hbone.Header{says, from("NEAR")}, false, "known"},
		{"of another network", other, "10.0.0.2", []hbone.Header{says, from("far")}, false, "said"},
		{"of the network without a name", known.Identity(), "10.0.0.2", []hbone.Header{from("")}, false, ""},
		{"of another network, silent", other, "10.0.0.2", []hbone.Header{from("far")}, false, ""},
		{"unknown", other, "10.0.0.3", []hbone.Header{says}, false, "said"},
		{"unknown, silent", other, "10.0.0.3", nil, false, ""},
		{"the address of somebody else", other, "10.0.0.2", []hbone.Header{says}, false, "said"},
		{"the address of somebody else, silent", other, "10.0.0.2", nil, false, "known"},
		{"says to be of another namespace", other, "10.0.0.3", []hbone.Header{{Name: "baggage", Value: "k8s.namespace.name=kube-system,service.name=x"}}, false, ""},
		{"in two headers", other, "10.0.0.3", []hbone.Header{says, {Name: "Baggage", Value: "k8s.deployment.name=later"}}, false, "later"},
		{"switched off", other, "10.0.0.3", []hbone.Header{says}, true, ""},
		{"switched off, the address of somebody else", other, "10.0.0.2", []hbone.Header{says}, true, "known"},
		{"too long", other, "10.0.0.3", []hbone.Header{says, {Name: "baggage", Value: strings.Repeat("x", 5000)}}, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := New(Config{NoBaggage: tt.noBaggage, Table: table()})
			got := ""
			if w := p.sourceOf(snap, self, tt.peer, netip.MustParseAddr(tt.src), hbone.Request{Header: tt.header}); w != nil {
				got = w.Name
				if got != "known" && w.Identity() != tt.peer {
					t.Errorf("identity %s", w.Identity())
				}
			}
			if got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func table() *live.Table {
	return live.New(live.Config{Store: mesh.NewStore(), Metrics: live.NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
}
