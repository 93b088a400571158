package outbound

import (
	"slices"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// far puts a workload into another network, behind g.
func far(g *mesh.GatewayAddress, change ...func(*mesh.Workload)) func(*mesh.Workload) {
	return func(w *mesh.Workload) {
		w.Network, w.NetworkGateway = "far", g
		for _, c := range change {
			c(w)
		}
	}
}

func inFar(a string, port uint16) *mesh.GatewayAddress {
	return &mesh.GatewayAddress{Address: vip("far", a), HBONEPort: port}
}

func sans(list ...string) func(*mesh.Service) {
	return func(v *mesh.Service) { v.SubjectAltNames = list }
}

// Where connections to what is in another network go, and why some go nowhere.
//
//ambit:feature gateway-double-hbone
func TestResolveGateway(t *testing.T) {
	const remote = "spiffe://cluster.local/ns/x/sa/remote"
	source := workload("client", nil, "10.0.0.1")
	gw := workload("gw", func(w *mesh.Workload) { w.Network = "far" }, "9.9.9.9")
	web := service("web", sans(remote), "10.1.0.1")
	way := func(change func(*mesh.Service)) *mesh.Service {
		return service("way.svc", func(v *mesh.Service) {
			v.Ports = []mesh.Port{{ServicePort: 15008, TargetPort: 15008}}
			if change != nil {
				change(v)
			}
		}, "10.1.0.9")
	}
	byWay := &mesh.GatewayAddress{Namespace: "ns1", Hostname: "way.svc", HBONEPort: 15008}
	for _, tt := range []struct {
		name    string
		objects []any
		dst     string
		want    string
	}{
		{name: "gateway by address",
			objects: []any{gw, web, workload("s", far(inFar("9.9.9.9", 15008), member("web")))},
			want:    "gateway 9.9.9.9:15008 for web:80 as ns1/sa-gw then as x/remote to s of web"},
		{name: "an endpoint's own address does not matter",
			objects: []any{gw, web, workload("s", far(inFar("9.9.9.9", 15008), member("web")), "10.0.0.2")},
			want:    "gateway 9.9.9.9:15008 for web:80 as ns1/sa-gw then as x/remote to s of web"},
		{name: "gateway by host name, port mapped",
			objects: []any{
				service("gw.svc", func(v *mesh.Service) {
					v.Ports = []mesh.Port{{ServicePort: 15009, TargetPort: 15008}}
					v.SubjectAltNames = []string{"spiffe://cluster.local/ns/g/sa/extra"}
				}, "10.1.0.8"),
				workload("gw", func(w *mesh.Workload) { w.Network = "far"; member("gw.svc")(w) }, "9.9.9.9"), web,
				workload("s", far(&mesh.GatewayAddress{Namespace: "ns1", Hostname: "gw.svc", HBONEPort: 15009}, member("web")))},
			want: "gateway 9.9.9.9:15008 for web:80 as ns1/sa-gw g/extra then as x/remote to s of web"},
		{name: "gateway by the host name of a workload", objects: []any{
			workload("gw", func(w *mesh.Workload) { w.Network, w.Hostname = "far", "gw.example" }, "9.9.9.9"), web,
			workload("s", far(&mesh.GatewayAddress{Namespace: "ns1", Hostname: "gw.example", HBONEPort: 15009}, member("web")))},
			want: "gateway 9.9.9.9:15009 for web:80 as ns1/sa-gw then as x/remote to s of web"},
		{name: "gateway that is a host name", objects: []any{
			workload("gw", func(w *mesh.Workload) { w.Network, w.Hostname = "far", "gw.example" }), web,
			workload("s", far(&mesh.GatewayAddress{Namespace: "ns1", Hostname: "gw.example", HBONEPort: 15008}, member("web")))},
			want: "gateway invalid AddrPort at gw.example:15008 for web:80 as ns1/sa-gw then as x/remote to s of web"},
		{name: "port that the gateway's service lacks", objects: []any{
			service("gw.svc", nil, "10.1.0.8"), workload("gw", func(w *mesh.Workload) {
				w.AppTunnel = &mesh.AppTunnel{Port: 15008} // would do for a waypoint
				member("gw.svc")(w)
			}, "9.9.9.9"), web,
			workload("s", far(&mesh.GatewayAddress{Namespace: "ns1", Hostname: "gw.svc", HBONEPort: 15009}, member("web")))},
			want: "refuse unknown_gateway"},
		{name: "no gateway", objects: []any{web, workload("s", far(nil, member("web")), "10.0.0.2")}, want: "refuse unknown_gateway"},
		{name: "unknown gateway", objects: []any{web, workload("s", far(inFar("9.9.9.8", 15008), member("web")))}, want: "refuse unknown_gateway"},
		{name: "nobody may answer there", objects: []any{gw, service("web", nil, "10.1.0.1"), workload("s", far(inFar("9.9.9.9", 15008), member("web")))},
			want: "refuse unknown_gateway"},
		{name: "neither address nor gateway", objects: []any{web, workload("s", func(w *mesh.Workload) { w.Network = "far"; member("web")(w) })},
			want: "refuse no_healthy_upstream"},
		{name: "a gateway is of no use in one's own network", objects: []any{web, workload("s", func(w *mesh.Workload) {
			w.NetworkGateway = inFar("9.9.9.9", 15008)
			member("web")(w)
		})}, want: "refuse no_healthy_upstream"},
		{name: "waypoint in another network", objects: []any{gw, way(sans("spiffe://cluster.local/ns/w/sa/way")),
			service("web", func(v *mesh.Service) { sans(remote)(v); v.Waypoint = byWay }, "10.1.0.1"),
			workload("way", far(inFar("9.9.9.9", 15008), member("way.svc")))},
			want: "gateway 9.9.9.9:15008 for web:80 as ns1/sa-gw then as w/way to way of web"},
		{name: "waypoint here and in another network", objects: []any{gw, way(func(v *mesh.Service) {
			sans("spiffe://cluster.local/ns/w/sa/way")(v)
			v.LoadBalancing = mesh.LoadBalancing{Mode: mesh.ModeFailover, Preference: []mesh.Scope{mesh.ScopeNetwork}}
		}), service("web", func(v *mesh.Service) { v.Waypoint = byWay }, "10.1.0.1"),
			workload("far-way", far(inFar("9.9.9.9", 15008), member("way.svc"))), workload("near-way", member("way.svc"), "10.0.0.50")},
			want: "waypoint 10.0.0.50:15008 for 10.1.0.1:80 as ns1/sa-near-way w/way of web"},
		{name: "a workload's waypoint in another network has nothing to be asked for by", dst: "10.0.0.2:80", objects: []any{gw,
			way(sans("spiffe://cluster.local/ns/w/sa/way")), workload("way", far(inFar("9.9.9.9", 15008), member("way.svc"))),
			workload("s", func(w *mesh.Workload) { w.Waypoint = byWay }, "10.0.0.2")}, want: "refuse unknown_gateway"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.dst == "" {
				tt.dst = "10.1.0.1:80"
			}
			s := snapshot(append([]any{source}, tt.objects...)...)
			if got := text(Resolve(s, source, addrPort(tt.dst), Choice{})); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// With failover to other networks the own one serves as long as it can, and then
// the other does.
//
//ambit:feature gateway-failover
func TestFailoverToAnotherNetwork(t *testing.T) {
	source := workload("client", nil, "10.0.0.1")
	for _, lb := range []mesh.LoadBalancing{
		{Mode: mesh.ModeFailover, Preference: []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion}},
		{Mode: mesh.ModeFailover, Preference: []mesh.Scope{mesh.ScopeNetwork}},
	} {
		web := service("web", func(v *mesh.Service) { sans("spiffe://cluster.local/ns/x/sa/y")(v); v.LoadBalancing = lb }, "10.1.0.1")
		objects := []any{source, web, workload("gw", func(w *mesh.Workload) { w.Network = "far" }, "9.9.9.9"),
			workload("there", far(inFar("9.9.9.9", 15008), member("web"))),
			workload("nowhere", far(nil, member("web")), "10.0.0.9")}
		here := workload("here", member("web"), "10.0.0.2")
		sick := workload("here", func(w *mesh.Workload) { member("web")(w); w.Health = mesh.Unhealthy }, "10.0.0.2")
		for _, c := range []struct {
			here   *mesh.Workload
			choice Choice
			want   Kind
		}{{here, Choice{}, HBONE}, {sick, Choice{}, Gateway}, {here, Choice{Skip: []string{here.UID}}, Gateway}} {
			s := snapshot(append(slices.Clone(objects), c.here)...)
			if r := Resolve(s, source, addrPort("10.1.0.1:80"), c.choice); r.Kind != c.want {
				t.Errorf("%v: %s", c.choice.Skip, text(r))
			}
		}
	}
}

// A workload with a host name instead of an address is dialled at what DNS says.
//
//ambit:feature waypoint-host-name
func TestResolveHostNames(t *testing.T) {
	source := workload("client", nil, "10.0.0.1")
	named := func(name, host string, change ...func(*mesh.Workload)) *mesh.Workload {
		return workload(name, func(w *mesh.Workload) {
			w.Hostname = host
			for _, c := range change {
				c(w)
			}
		})
	}
	byHost := &mesh.GatewayAddress{Namespace: "ns1", Hostname: "way.example", HBONEPort: 15008}
	plain := func(w *mesh.Workload) { w.Protocol = mesh.ProtocolTCP }
	for _, tt := range []struct {
		name    string
		objects []any
		dst     string
		want    [2]string // before and after DNS
	}{
		{"endpoint", []any{service("web", nil, "10.1.0.1"), named("s", "s.example", member("web"), plain)}, "10.1.0.1:80",
			[2]string{"tcp invalid AddrPort at s.example:8080 of web", "tcp 10.7.7.7:8080 of web"}},
		{"meshed endpoint", []any{service("web", nil, "10.1.0.1"), named("s", "s.example", member("web"))}, "10.1.0.1:80",
			[2]string{"hbone invalid AddrPort at s.example:15008 for invalid AddrPort as ns1/sa-s of web", "hbone 10.7.7.7:15008 for 10.7.7.7:8080 as ns1/sa-s of web"}},
		{"waypoint of a service, by a workload's host name", []any{service("web", func(v *mesh.Service) { v.Waypoint = byHost }, "10.1.0.1"), named("way", "way.example")}, "10.1.0.1:80",
			[2]string{"waypoint invalid AddrPort at way.example:15008 for 10.1.0.1:80 as ns1/sa-way of web", "waypoint 10.7.7.7:15008 for 10.1.0.1:80 as ns1/sa-way of web"}},
		{"waypoint of a workload, by a workload's host name", []any{workload("s", func(w *mesh.Workload) { w.Waypoint = byHost }, "10.0.0.2"),
			workload("way", func(w *mesh.Workload) { w.Hostname = "way.example" }, "10.0.0.50")}, "10.0.0.2:80",
			[2]string{"waypoint 10.0.0.50:15008 for 10.0.0.2:80 as ns1/sa-way", ""}},
		{"host name of another namespace", []any{workload("s", func(w *mesh.Workload) {
			w.Waypoint = &mesh.GatewayAddress{Namespace: "ns2", Hostname: "way.example", HBONEPort: 15008}
		}, "10.0.0.2"), named("way", "way.example")}, "10.0.0.2:80", [2]string{"refuse unknown_waypoint", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Resolve(snapshot(append([]any{source}, tt.objects...)...), source, addrPort(tt.dst), Choice{})
			if got := text(r); got != tt.want[0] {
				t.Errorf("got  %s\nwant %s", got, tt.want[0])
			}
			if got := text(r.resolved(addr("10.7.7.7"))); tt.want[1] != "" && got != tt.want[1] {
				t.Errorf("resolved: got  %s\nwant %s", got, tt.want[1])
			}
		})
	}
	// The waypoint itself, known by its host name, goes direct.
	way := workload("way", func(w *mesh.Workload) { w.Hostname = "way.example" }, "10.0.0.50")
	s := snapshot(way, workload("s", func(w *mesh.Workload) { w.Waypoint = byHost }, "10.0.0.2"))
	if r := Resolve(s, way, addrPort("10.0.0.2:80"), Choice{}); r.Kind != HBONE {
		t.Error(text(r))
	}
}

// What each kind of hop asks for, to the byte but for the random trace context.
//
//ambit:feature waypoint-headers
func TestRequestOfEachHop(t *testing.T) {
	const baggage = "baggage: k8s.cluster.name=c1,k8s.namespace.name=ns1,k8s.pod.name=shell,service.name=shell,service.version=v1"
	source := workload("client", func(w *mesh.Workload) {
		w.WorkloadName, w.CanonicalName, w.CanonicalRevision, w.ClusterID, w.Type = "shell", "shell", "v1", "c1", mesh.TypePod
		w.Network = "near"
	}, "10.0.0.1")
	web := service("web.ns1.svc.cluster.local", nil)
	none := &mesh.Workload{}
	four, six := addrPort("10.0.0.1:4000"), addrPort("[fd00::1]:4000")
	trace := "traceparent: *"
	for _, tt := range []struct {
		name  string
		route Route
		inner bool
		want  []string
	}{
		{"to a workload", Route{Kind: HBONE, Authority: addrPort("10.0.0.2:80")}, false,
			[]string{"10.0.0.2:80", baggage, `forwarded: for="10.0.0.1:4000"`, trace}},
		{"to a service's workload", Route{Kind: HBONE, Authority: addrPort("10.0.0.2:8080"), Service: web}, false,
			[]string{"10.0.0.2:8080", baggage, `forwarded: for="10.0.0.1:4000";host=web.ns1.svc.cluster.local`, trace}},
		{"to a workload's waypoint", Route{Kind: Waypoint, Authority: addrPort("10.0.0.2:80")}, false,
			[]string{"10.0.0.2:80", baggage, `forwarded: for="10.0.0.1:4000"`, trace}},
		{"to a service's waypoint", Route{Kind: Waypoint, Authority: addrPort("10.1.0.1:80"), Service: web}, false,
			[]string{"10.1.0.1:80", baggage, `forwarded: for="10.0.0.1:4000";host=web.ns1.svc.cluster.local`, trace}},
		{"to a gateway", Route{Kind: Gateway, Service: web, Port: 80, Remote: none}, false,
			[]string{"web.ns1.svc.cluster.local:80", baggage, `forwarded: for="10.0.0.1:4000";host=web.ns1.svc.cluster.local`, trace}},
		{"through a gateway", Route{Kind: Gateway, Service: web, Port: 80, Remote: none}, true,
			[]string{"web.ns1.svc.cluster.local:80", baggage, `forwarded: for="10.0.0.1:4000";host=web.ns1.svc.cluster.local`, trace, "x-forwarded-network: near"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := request(&tt.route, source, four)
			if tt.inner {
				outer := slices.Clone(got.Header)
				got = inner(got, source.Network)
				if !slices.Equal(got.Header[:len(outer)], outer) {
					t.Error("the inner request differs in more than the network: one connection, one trace")
				}
			}
			lines := []string{got.Authority}
			for _, h := range got.Header {
				if h.Name == "traceparent" && len(h.Value) == 55 {
					h.Value = "*"
				}
				lines = append(lines, h.Name+": "+h.Value)
			}
			if !slices.Equal(lines, tt.want) {
				t.Errorf("got  %q\nwant %q", lines, tt.want)
			}
		})
	}
	if got := request(&Route{Kind: HBONE, Authority: addrPort("[fd00::2]:80")}, none, six); got.Authority != "[fd00::2]:80" ||
		got.Header[0] != (hbone.Header{Name: "baggage", Value: "k8s.cluster.name=Kubernetes"}) ||
		got.Header[1] != (hbone.Header{Name: "forwarded", Value: `for="[fd00::1]:4000"`}) {
		t.Errorf("%+v", got)
	}
}

// What a peer in another network says of itself is who the connection is with.
func TestBeyond(t *testing.T) {
	peer := hbonetest.ServerID
	c := hbonetest.Pair(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		s, err := in.Accept(hbone.Header{Name: "baggage", Value: in.Get("say")})
		if err == nil {
			s.Close()
		}
	})
	remote := workload("split", nil)
	r := &Route{Kind: Gateway, Remote: remote}
	for say, want := range map[string]string{"k8s.namespace.name=n,k8s.pod.name=p": "p", "": "split"} {
		s, err := c.Open(t.Context(), hbone.Request{Authority: "web:80", Header: []hbone.Header{{Name: "say", Value: say}}})
		if err != nil {
			t.Fatal(err)
		}
		w, id := beyond(r, nested{tunnelled: tunnelled{s}, inner: c})
		if w.Name != want || id != peer {
			t.Errorf("%q: %+v, %s", say, w, id)
		}
		s.Close()
	}
	if w, id := beyond(r, nil); w != remote || id != (identity.ID{}) {
		t.Errorf("%+v, %s", w, id)
	}
}

var _ carrier = nested{}
var _ live.Counter = nested{}
