package outbound

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func vip(network, a string) mesh.NetworkAddress {
	ip := addr(a)
	return mesh.NetworkAddress{Network: network, Prefix: netip.PrefixFrom(ip, ip.BitLen())}
}

func waypointAt(a string) *mesh.GatewayAddress {
	return &mesh.GatewayAddress{Address: vip("", a), HBONEPort: 15008}
}

// workload makes a meshed pod in namespace ns1; change adjusts it.
func workload(name string, change func(*mesh.Workload), ips ...string) *mesh.Workload {
	w := &mesh.Workload{
		UID: "c//Pod/ns1/" + name, Name: name, Namespace: "ns1", Protocol: mesh.ProtocolHBONE,
		ServiceAccount: "sa-" + name, Node: "node-1",
	}
	for _, ip := range ips {
		w.Addresses = append(w.Addresses, addr(ip))
	}
	if change != nil {
		change(w)
	}
	return w
}

func member(svc string, ports ...mesh.Port) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Services = map[string][]mesh.Port{"ns1/" + svc: ports} }
}

func service(host string, change func(*mesh.Service), vips ...string) *mesh.Service {
	v := &mesh.Service{Name: host, Namespace: "ns1", Hostname: host, Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}}}
	for _, ip := range vips {
		v.Addresses = append(v.Addresses, vip("", ip))
	}
	if change != nil {
		change(v)
	}
	return v
}

func snapshot(objects ...any) *mesh.Snapshot {
	var d mesh.Delta
	for _, o := range objects {
		switch o := o.(type) {
		case *mesh.Workload:
			d.Workloads = append(d.Workloads, o)
		case *mesh.Service:
			d.Services = append(d.Services, o)
		case *mesh.Policy:
			d.Policies = append(d.Policies, o)
		}
	}
	b := mesh.NewBuilder(nil)
	b.Apply(d)
	return b.Build()
}

// text is a route in one line.
func text(r Route) string {
	if r.Kind == Refuse {
		return "refuse " + string(r.Refusal.Reason)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.Kind, r.Addr)
	if !r.Addr.Addr().IsValid() {
		fmt.Fprintf(&b, " at %s:%d", r.Upstream.Hostname, r.Addr.Port())
	}
	ids := func(as string, list []identity.ID) {
		b.WriteString(as)
		for _, id := range list {
			b.WriteString(" " + id.Namespace + "/" + id.ServiceAccount)
		}
	}
	if r.Kind.tunnelled() {
		fmt.Fprintf(&b, " for %s", r.authority())
		ids(" as", r.Expect)
	}
	if r.Kind == Gateway {
		ids(" then as", r.Inner)
		b.WriteString(" to " + r.Remote.Name)
	}
	if r.Service != nil {
		fmt.Fprintf(&b, " of %s", r.Service.Hostname)
	}
	return b.String()
}

// Where a connection goes, by the mesh's configuration.
//
//ambit:feature waypoint-hairpin waypoint-ingress traffic-service-ports traffic-endpoint-by-hand
func TestResolve(t *testing.T) {
	source := workload("client", nil, "10.0.0.1")
	way := workload("way", nil, "10.0.0.50")
	plain := func(w *mesh.Workload) { w.Protocol = mesh.ProtocolTCP }
	tests := []struct {
		name    string
		objects []any
		source  *mesh.Workload
		dst     string
		want    string
	}{
		{name: "unknown destination passes", dst: "1.2.3.4:80", want: "pass-through 1.2.3.4:80"},
		{name: "unknown destination on our port", dst: "1.2.3.4:15008", want: "refuse self_call"},
		{name: "loopback on our port", dst: "127.0.0.1:15001", want: "refuse self_call"},
		{name: "loopback otherwise", dst: "127.0.0.1:80", want: "pass-through 127.0.0.1:80"},
		{name: "mapped address is plain IPv4", dst: "[::ffff:10.0.0.2]:80",
			objects: []any{workload("s", nil, "10.0.0.2")}, want: "hbone 10.0.0.2:15008 for 10.0.0.2:80 as ns1/sa-s"},
		{name: "meshed pod", dst: "10.0.0.2:80",
			objects: []any{workload("s", nil, "10.0.0.2")}, want: "hbone 10.0.0.2:15008 for 10.0.0.2:80 as ns1/sa-s"},
		{name: "meshed pod on the same node goes through HBONE too", dst: "10.0.0.2:80",
			objects: []any{workload("s", func(w *mesh.Workload) { w.Node = "node-1" }, "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:80 as ns1/sa-s"},
		{name: "meshed IPv6 pod", dst: "[fd00::2]:80",
			objects: []any{workload("s", nil, "10.0.0.2", "fd00::2")}, want: "hbone [fd00::2]:15008 for [fd00::2]:80 as ns1/sa-s"},
		{name: "a service that claims a meshed pod's address does not uncover it", dst: "10.0.0.2:9090",
			objects: []any{service("web", nil, "10.0.0.2"), workload("s", nil, "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:9090 as ns1/sa-s"},
		{name: "nor does one in passthrough mode", dst: "10.0.0.2:80",
			objects: []any{service("web", func(s *mesh.Service) { s.LoadBalancing.Mode = mesh.ModePassthrough }, "10.0.0.2"), workload("s", nil, "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:80 as ns1/sa-s"},
		{name: "an endpoint written by hand at a meshed pod's address is that pod", dst: "10.1.0.1:80",
			objects: []any{service("web", nil, "10.1.0.1"), workload("s", nil, "10.0.0.2"), workload("byhand", func(w *mesh.Workload) { plain(w); member("web")(w) }, "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ns1/sa-s of web"},
		{name: "so is one of a slice", dst: "10.1.0.1:80",
			objects: []any{service("web", nil, "10.1.0.1"), workload("s", nil, "10.0.0.2"), workload("byhand", func(w *mesh.Workload) { plain(w); w.HostNetwork = true; member("web")(w) }, "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ns1/sa-s of web"},
		{name: "unmeshed pod", dst: "10.0.0.2:80",
			objects: []any{workload("s", plain, "10.0.0.2")}, want: "tcp 10.0.0.2:80"},
		{name: "host-network pod is unknown", dst: "10.0.0.2:80",
			objects: []any{workload("s", func(w *mesh.Workload) { w.HostNetwork = true }, "10.0.0.2")}, want: "pass-through 10.0.0.2:80"},
		{name: "pod of another network is unknown by its address", dst: "10.0.0.2:80",
			objects: []any{workload("s", func(w *mesh.Workload) { w.Network = "far" }, "10.0.0.2")}, want: "pass-through 10.0.0.2:80"},

		{name: "service", dst: "10.1.0.1:80",
			objects: []any{service("web", nil, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ns1/sa-s of web"},
		{name: "service with alternative names", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) {
				v.SubjectAltNames = []string{"spiffe://cluster.local/ns/x/sa/y", "not spiffe"}
			}, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")},
			want: "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ns1/sa-s x/y of web"},
		{name: "service's unmeshed endpoint", dst: "10.1.0.1:80",
			objects: []any{service("web", nil, "10.1.0.1"), workload("s", func(w *mesh.Workload) { member("web")(w); plain(w) }, "10.0.0.2")},
			want:    "tcp 10.0.0.2:8080 of web"},
		{name: "service without endpoints", dst: "10.1.0.1:80",
			objects: []any{service("web", nil, "10.1.0.1")}, want: "refuse no_healthy_upstream"},
		{name: "unknown port of a known service", dst: "10.1.0.1:81",
			objects: []any{service("web", nil, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")}, want: "refuse no_healthy_upstream"},
		{name: "unhealthy endpoints only", dst: "10.1.0.1:80",
			objects: []any{service("web", nil, "10.1.0.1"), workload("s", func(w *mesh.Workload) { member("web")(w); w.Health = mesh.Unhealthy }, "10.0.0.2")},
			want:    "refuse no_healthy_upstream"},
		{name: "unhealthy endpoint of a service that takes all", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.LoadBalancing.AllowAll = true }, "10.1.0.1"),
				workload("s", func(w *mesh.Workload) { member("web")(w); w.Health = mesh.Unhealthy }, "10.0.0.2")},
			want: "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ns1/sa-s of web"},
		{name: "endpoint's own port mapping", dst: "10.1.0.1:80",
			objects: []any{service("web", nil, "10.1.0.1"), workload("s", member("web", mesh.Port{ServicePort: 80, TargetPort: 9999}), "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:9999 as ns1/sa-s of web"},
		{name: "named port", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.Ports[0].TargetPort = 0 }, "10.1.0.1"),
				workload("s", member("web", mesh.Port{ServicePort: 80, TargetPort: 9999}), "10.0.0.2")},
			want: "hbone 10.0.0.2:15008 for 10.0.0.2:9999 as ns1/sa-s of web"},
		{name: "named port the endpoint lacks", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.Ports[0].TargetPort = 0 }, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")},
			want:    "refuse no_healthy_upstream"},
		{name: "zero capacity", dst: "10.1.0.1:80",
			objects: []any{service("web", nil, "10.1.0.1"), workload("s", func(w *mesh.Workload) { member("web")(w); w.Capacity = new(uint32) }, "10.0.0.2")},
			want:    "refuse no_healthy_upstream"},
		{name: "address family follows the VIP", dst: "[fd01::1]:80",
			objects: []any{service("web", nil, "10.1.0.1", "fd01::1"), workload("s", member("web"), "10.0.0.2", "fd00::2")},
			want:    "hbone [fd00::2]:15008 for [fd00::2]:8080 as ns1/sa-s of web"},
		{name: "address family falls back", dst: "[fd01::1]:80",
			objects: []any{service("web", nil, "fd01::1"), workload("s", member("web"), "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ns1/sa-s of web"},
		{name: "service's families restrict", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.IPFamilies = mesh.FamiliesIPv6 }, "10.1.0.1"), workload("s", member("web"), "10.0.0.2", "fd00::2")},
			want:    "hbone [fd00::2]:15008 for [fd00::2]:8080 as ns1/sa-s of web"},
		{name: "no address of the allowed family", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.IPFamilies = mesh.FamiliesIPv6 }, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")},
			want:    "refuse no_address"},
		{name: "pass-through service", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.LoadBalancing.Mode = mesh.ModePassthrough }, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")},
			want:    "pass-through 10.1.0.1:80 of web"},
		{name: "service hidden from other namespaces", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.NamespaceOnly, v.Namespace = true, "ns2" }, "10.1.0.1")},
			want:    "pass-through 10.1.0.1:80"},

		{name: "workload waypoint", dst: "10.0.0.2:80",
			objects: []any{way, workload("s", func(w *mesh.Workload) { w.Waypoint = waypointAt("10.0.0.50") }, "10.0.0.2")},
			want:    "waypoint 10.0.0.50:15008 for 10.0.0.2:80 as ns1/sa-way"},
		{name: "workload waypoint is not for service traffic", dst: "10.1.0.1:80",
			objects: []any{way, service("web", nil, "10.1.0.1"), workload("s", func(w *mesh.Workload) {
				member("web")(w)
				w.Waypoint = waypointAt("10.0.0.50")
			}, "10.0.0.2")},
			want: "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ns1/sa-s of web"},
		{name: "the waypoint itself goes direct", source: way, dst: "10.0.0.2:80",
			objects: []any{workload("s", func(w *mesh.Workload) { w.Waypoint = waypointAt("10.0.0.50") }, "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:80 as ns1/sa-s"},
		{name: "the source's own waypoint does not matter", source: workload("client", func(w *mesh.Workload) { w.Waypoint = waypointAt("10.0.0.50") }, "10.0.0.1"),
			dst: "10.0.0.2:80", objects: []any{way, workload("s", nil, "10.0.0.2")},
			want: "hbone 10.0.0.2:15008 for 10.0.0.2:80 as ns1/sa-s"},
		{name: "unknown waypoint is never bypassed", dst: "10.0.0.2:80",
			objects: []any{workload("s", func(w *mesh.Workload) { w.Waypoint = waypointAt("10.0.0.99") }, "10.0.0.2")},
			want:    "refuse unknown_waypoint"},
		{name: "service waypoint keeps the VIP as authority", dst: "10.1.0.1:80",
			objects: []any{way, service("web", func(v *mesh.Service) { v.Waypoint = waypointAt("10.0.0.50") }, "10.1.0.1")},
			want:    "waypoint 10.0.0.50:15008 for 10.1.0.1:80 as ns1/sa-way of web"},
		{name: "service waypoint by host name", dst: "10.1.0.1:80",
			objects: []any{workload("way", member("way.svc"), "10.0.0.50"),
				service("way.svc", func(v *mesh.Service) {
					v.Ports = []mesh.Port{{ServicePort: 15008, TargetPort: 15008}}
					v.SubjectAltNames = []string{"spiffe://cluster.local/ns/w/sa/extra"}
				}, "10.1.0.9"),
				service("web", func(v *mesh.Service) {
					v.Waypoint = &mesh.GatewayAddress{Namespace: "ns1", Hostname: "way.svc", HBONEPort: 15008}
				}, "10.1.0.1")},
			want: "waypoint 10.0.0.50:15008 for 10.1.0.1:80 as ns1/sa-way w/extra of web"},
		{name: "pass-through service with a waypoint", dst: "10.1.0.1:80",
			objects: []any{way, service("web", func(v *mesh.Service) {
				v.LoadBalancing.Mode = mesh.ModePassthrough
				v.Waypoint = waypointAt("10.0.0.50")
			}, "10.1.0.1")},
			want: "waypoint 10.0.0.50:15008 for 10.1.0.1:80 as ns1/sa-way of web"},
		{name: "a waypoint for ingress is for gateways to use", dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.IngressWaypoint = true }, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")},
			want:    "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ns1/sa-s of web"},
		{name: "and takes nothing from the service's waypoint", dst: "10.1.0.1:80",
			objects: []any{way, service("web", func(v *mesh.Service) { v.IngressWaypoint, v.Waypoint = true, waypointAt("10.0.0.50") }, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")},
			want:    "waypoint 10.0.0.50:15008 for 10.1.0.1:80 as ns1/sa-way of web"},
		{name: "a service's waypoint that calls the service goes to itself", source: way, dst: "10.1.0.1:80",
			objects: []any{service("web", func(v *mesh.Service) { v.Waypoint = waypointAt("10.0.0.50") }, "10.1.0.1"), workload("s", member("web"), "10.0.0.2")},
			want:    "waypoint 10.0.0.50:15008 for 10.1.0.1:80 as ns1/sa-way of web"},
		{name: "another pod of the waypoint's account does not go direct", dst: "10.0.0.2:80",
			source:  workload("twin", func(w *mesh.Workload) { w.ServiceAccount = "sa-way" }, "10.0.0.51"),
			objects: []any{way, workload("s", func(w *mesh.Workload) { w.Waypoint = waypointAt("10.0.0.50") }, "10.0.0.2")},
			want:    "waypoint 10.0.0.50:15008 for 10.0.0.2:80 as ns1/sa-way"},
		{name: "a workload wins over a service of the same address", dst: "10.1.0.1:80",
			objects: []any{way, workload("s", nil, "10.1.0.1"), service("web", func(v *mesh.Service) { v.Waypoint = waypointAt("10.0.0.50") }, "10.1.0.1")},
			want:    "hbone 10.1.0.1:15008 for 10.1.0.1:80 as ns1/sa-s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := tt.source
			if src == nil {
				src = source
			}
			s := snapshot(append([]any{src}, tt.objects...)...)
			if got := text(Resolve(s, src, addrPort(tt.dst), Choice{})); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

//ambit:feature traffic-load-balancing
func TestResolveModes(t *testing.T) {
	preference := []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone}
	source := workload("client", func(w *mesh.Workload) { w.Locality = mesh.Locality{Region: "r1", Zone: "z1"} }, "10.0.0.1")
	at := func(name, region, zone, ip string) *mesh.Workload {
		return workload(name, func(w *mesh.Workload) {
			member("web")(w)
			w.Locality = mesh.Locality{Region: region, Zone: zone}
		}, ip)
	}
	endpoints := []any{source, at("same", "r1", "z1", "10.0.0.2"), at("region", "r1", "z2", "10.0.0.3"), at("far", "r2", "z9", "10.0.0.4")}
	tests := []struct {
		name string
		lb   mesh.LoadBalancing
		skip []string
		want []string
	}{
		{"all", mesh.LoadBalancing{}, nil, []string{"far", "region", "same"}},
		{"all but one that failed", mesh.LoadBalancing{}, []string{"c//Pod/ns1/same"}, []string{"far", "region"}},
		{"strict", mesh.LoadBalancing{Mode: mesh.ModeStrict, Preference: preference}, nil, []string{"same"}},
		{"strict without a match", mesh.LoadBalancing{Mode: mesh.ModeStrict, Preference: preference}, []string{"c//Pod/ns1/same"}, nil},
		{"failover", mesh.LoadBalancing{Mode: mesh.ModeFailover, Preference: preference}, nil, []string{"same"}},
		{"failover, second", mesh.LoadBalancing{Mode: mesh.ModeFailover, Preference: preference}, []string{"c//Pod/ns1/same"}, []string{"region"}},
		{"failover, last", mesh.LoadBalancing{Mode: mesh.ModeFailover, Preference: preference},
			[]string{"c//Pod/ns1/same", "c//Pod/ns1/region"}, []string{"far"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := snapshot(append(slices.Clone(endpoints), service("web", func(v *mesh.Service) { v.LoadBalancing = tt.lb }, "10.1.0.1"))...)
			seen := map[string]bool{}
			for n := range uint64(3) { // every choice there can be
				r := Resolve(s, source, addrPort("10.1.0.1:80"), Choice{Skip: tt.skip, Rand: func(total uint64) uint64 { return min(n, total-1) }})
				if r.Kind != Refuse {
					seen[r.Upstream.Name] = true
				}
			}
			var got []string
			for n := range seen {
				got = append(got, n)
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

//ambit:feature traffic-load-balancing
func TestRank(t *testing.T) {
	a := &mesh.Workload{Network: "n", Locality: mesh.Locality{Region: "r", Zone: "z"}}
	p := []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone}
	for _, tt := range []struct {
		network, region, zone string
		want                  int
	}{
		{"n", "r", "z", 5}, {"n", "r", "-", 4}, {"n", "-", "z", 3}, {"-", "r", "z", 2}, {"-", "r", "-", 1}, {"-", "-", "z", 0},
	} {
		b := &mesh.Workload{Network: tt.network, Locality: mesh.Locality{Region: tt.region, Zone: tt.zone}}
		if got := rank(p, a, b); got != tt.want {
			t.Errorf("%+v: rank %d", tt, got)
		}
	}
}

// The choice by capacity is proportional: every residue of the total goes to
// exactly one endpoint, as often as its capacity.
//
//ambit:feature traffic-load-balancing
func TestCapacity(t *testing.T) {
	weighted := func(name, ip string, n uint32) *mesh.Workload {
		return workload(name, func(w *mesh.Workload) { member("web")(w); w.Capacity = &n }, ip)
	}
	source := workload("client", nil, "10.0.0.1")
	s := snapshot(source, service("web", nil, "10.1.0.1"), weighted("a", "10.0.0.2", 3), weighted("b", "10.0.0.3", 0), weighted("c", "10.0.0.4", 5))
	count := map[string]int{}
	for n := range uint64(8) {
		r := Resolve(s, source, addrPort("10.1.0.1:80"), Choice{Rand: func(total uint64) uint64 {
			if total != 8 {
				t.Fatalf("total %d", total)
			}
			return n
		}})
		count[r.Upstream.Name]++
	}
	if count["a"] != 3 || count["b"] != 0 || count["c"] != 5 {
		t.Errorf("%v", count)
	}
}

//ambit:feature waypoint-weighted
func TestWeightedWaypoints(t *testing.T) {
	svc := service("web", func(v *mesh.Service) {
		v.Waypoint = waypointAt("10.0.0.9")
		v.Weighted = []mesh.WeightedWaypoint{{Destination: *waypointAt("10.0.0.1"), Weight: 1}, {Destination: *waypointAt("10.0.0.2"), Weight: 2}}
	})
	var got []string
	for n := range uint64(3) {
		got = append(got, pickWaypoint(svc, Choice{Rand: func(uint64) uint64 { return n }}).Address.Prefix.Addr().String())
	}
	if want := []string{"10.0.0.1", "10.0.0.2", "10.0.0.2"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	svc.Weighted = []mesh.WeightedWaypoint{{Destination: *waypointAt("10.0.0.1")}}
	if g := pickWaypoint(svc, Choice{}); g.Address.Prefix.Addr() != addr("10.0.0.9") {
		t.Errorf("all weights zero: %v", g)
	}
}

// A replica of a waypoint that has just failed is left out, however the waypoint
// was named, and when none is left the connection is refused, not sent past it.
func TestFailedWaypointIsLeftOut(t *testing.T) {
	replica := func(name, ip string) *mesh.Workload { return workload(name, member("way.svc"), ip) }
	way := service("way.svc", func(v *mesh.Service) { v.Ports = []mesh.Port{{ServicePort: 15008, TargetPort: 15008}} }, "10.1.0.9")
	byName := &mesh.GatewayAddress{Namespace: "ns1", Hostname: "way.svc", HBONEPort: 15008}
	source := workload("client", nil, "10.0.0.1")
	for _, c := range []struct {
		name, dst string
		object    any
	}{
		{"service, by host name", "10.1.0.1:80", service("web", func(v *mesh.Service) { v.Waypoint = byName }, "10.1.0.1")},
		{"service, by address", "10.1.0.1:80", service("web", func(v *mesh.Service) { v.Waypoint = waypointAt("10.1.0.9") }, "10.1.0.1")},
		{"workload, by host name", "10.0.0.2:80", workload("s", func(w *mesh.Workload) { w.Waypoint = byName }, "10.0.0.2")},
		{"workload, by address", "10.0.0.2:80", workload("s", func(w *mesh.Workload) { w.Waypoint = waypointAt("10.1.0.9") }, "10.0.0.2")},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := snapshot(source, way, replica("way-a", "10.0.0.51"), replica("way-b", "10.0.0.52"), c.object)
			for n := range uint64(2) {
				choice := Choice{Skip: []string{"c//Pod/ns1/way-a"}, Rand: func(total uint64) uint64 { return min(n, total-1) }}
				if r := Resolve(s, source, addrPort(c.dst), choice); r.Kind != Waypoint || r.Upstream.Name != "way-b" {
					t.Errorf("choice %d: %s", n, text(r))
				}
			}
			none := Choice{Skip: []string{"c//Pod/ns1/way-a", "c//Pod/ns1/way-b"}}
			if r := Resolve(s, source, addrPort(c.dst), none); r.Kind != Refuse || r.Refusal.Reason != live.UnknownWaypoint {
				t.Errorf("none left: %s", text(r))
			}
		})
	}
	alone := workload("way", nil, "10.0.0.50")
	s := snapshot(source, alone, workload("s", func(w *mesh.Workload) { w.Waypoint = waypointAt("10.0.0.50") }, "10.0.0.2"))
	if r := Resolve(s, source, addrPort("10.0.0.2:80"), Choice{Skip: []string{alone.UID}}); r.Kind != Refuse {
		t.Errorf("the only one: %s", text(r))
	}
}

func TestRequest(t *testing.T) {
	source := workload("client", func(w *mesh.Workload) {
		w.WorkloadName, w.CanonicalName, w.CanonicalRevision, w.ClusterID = "shell", "shell", "v1", "c1"
		w.Locality = mesh.Locality{Region: "r", Zone: "z"}
	}, "10.0.0.1")
	r := Route{Kind: HBONE, Authority: addrPort("[fd00::2]:8080"), Service: service("web.ns1.svc.cluster.local", nil)}
	got := request(&r, source, addrPort("[fd00::1]:4000"))
	if got.Authority != "[fd00::2]:8080" {
		t.Errorf("authority %q", got.Authority)
	}
	want := []string{
		"baggage: k8s.cluster.name=c1,k8s.namespace.name=ns1,k8s.deployment.name=shell,service.name=shell,service.version=v1,cloud.region=r,cloud.availability_zone=z",
		`forwarded: for="[fd00::1]:4000";host=web.ns1.svc.cluster.local`,
	}
	for i, w := range want {
		if h := got.Header[i]; h.Name+": "+h.Value != w {
			t.Errorf("header %d: %s: %s\nwant %s", i, h.Name, h.Value, w)
		}
	}
	tp := got.Header[2]
	if tp.Name != "traceparent" || len(tp.Value) != 55 || !strings.HasPrefix(tp.Value, "00-") || !strings.HasSuffix(tp.Value, "-00") {
		t.Errorf("traceparent %q", tp.Value)
	}
	if forwarded(addrPort("10.0.0.1:1"), nil) != `for="10.0.0.1:1"` {
		t.Error(forwarded(addrPort("10.0.0.1:1"), nil))
	}
}

func TestExpectedDefaults(t *testing.T) {
	if ids := expected(nil, workload("s", nil)); len(ids) != 1 || ids[0] != (identity.ID{TrustDomain: "cluster.local", Namespace: "ns1", ServiceAccount: "sa-s"}) {
		t.Errorf("%v", ids)
	}
}

//ambit:feature model-cost
func TestResolveAllocations(t *testing.T) {
	source := workload("client", nil, "10.0.0.1")
	objects := []any{source, service("web", nil, "10.1.0.1")}
	for i := range 100 {
		objects = append(objects, workload(fmt.Sprint("s", i), member("web"), fmt.Sprintf("10.0.1.%d", i)))
	}
	s := snapshot(objects...)
	dst := addrPort("10.1.0.1:80")
	n := testing.AllocsPerRun(100, func() { Resolve(s, source, dst, Choice{}) })
	if n > 1 { // the list of expected identities
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkResolveService(b *testing.B) {
	source := workload("client", nil, "10.0.0.1")
	objects := []any{source, service("web", nil, "10.1.0.1")}
	for i := range 1000 {
		objects = append(objects, workload(fmt.Sprint("s", i), member("web"), fmt.Sprintf("10.0.%d.%d", 1+i/250, i%250)))
	}
	s := snapshot(objects...)
	dst := addrPort("10.1.0.1:80")
	for b.Loop() {
		Resolve(s, source, dst, Choice{})
	}
}
