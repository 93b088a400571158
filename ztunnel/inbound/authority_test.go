package inbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

func reason(err error) live.Reason {
	var e *live.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func TestParseAuthority(t *testing.T) {
	for _, tt := range []struct{ in, addr, host string }{
		{"10.0.0.1:80", "10.0.0.1:80", ""},
		{"[fd00::1]:80", "[fd00::1]:80", ""},
		{"[::ffff:10.0.0.1]:80", "10.0.0.1:80", ""},
		{"web.ns.svc.cluster.local:80", "", "web.ns.svc.cluster.local"},
		{"WEB:65535", "", "web"},
		{"", "", ""}, {"10.0.0.1", "", ""}, {"10.0.0.1:", "", ""}, {"10.0.0.1:0", "", ""}, {"10.0.0.1:65536", "", ""},
		{"10.0.0.256:80", "", ""}, {"fd00::1:80", "", ""}, {"[fd00::1%eth0]:80", "", ""}, {"web", "", ""}, {"web:+80", "", ""},
		{"web:http", "", ""}, {":80", "", ""}, {"-web:80", "", ""}, {"we b:80", "", ""}, {"user@web:80", "", ""},
		{"web..x:80", "", ""}, {"http://web:80", "", ""}, {strings.Repeat("a", 300) + ":80", "", ""},
	} {
		a, err := parseAuthority(tt.in)
		if tt.addr == "" && tt.host == "" {
			if reason(err) != live.BadAuthority {
				t.Errorf("%q: %+v, %v", tt.in, a, err)
			}
			continue
		}
		if err != nil || a.host != tt.host || tt.addr != "" && a.addr != netip.MustParseAddrPort(tt.addr) {
			t.Errorf("%q: %+v, %v", tt.in, a, err)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:80", "web.ns:80", "[::ffff:1.2.3.4]:1", "a:b:c", "%:1", "[]:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAuthority(s)
		if err != nil {
			if reason(err) != live.BadAuthority {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if a.port == 0 || a.addr.IsValid() == (a.host != "") || a.addr.Addr().Is4In6() || len(a.host) > maxAuthority {
			t.Fatalf("%q: %+v", s, a)
		}
	})
}

func build(workloads []*mesh.Workload, services []*mesh.Service) *mesh.Snapshot {
	b := mesh.NewBuilder(nil)
	b.Apply(mesh.Delta{Workloads: workloads, Services: services})
	return b.Build()
}

func single(a string) mesh.NetworkAddress {
	ip := netip.MustParseAddr(a)
	return mesh.NetworkAddress{Prefix: netip.PrefixFrom(ip, ip.BitLen())}
}

// What may be asked for, and where in the pod it leads.
//
//ambit:feature waypoint-authority waypoint-weighted
func TestTarget(t *testing.T) {
	pod := func(change func(*mesh.Workload)) *mesh.Workload {
		w := &mesh.Workload{UID: "c//Pod/ns/pod", Name: "pod", Namespace: "ns", Protocol: mesh.ProtocolHBONE,
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
		if change != nil {
			change(w)
		}
		return w
	}
	web := &mesh.Service{Name: "web", Namespace: "ns", Hostname: "web.ns", Addresses: []mesh.NetworkAddress{single("10.1.0.1")},
		Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 81}}}
	hidden := &mesh.Service{Name: "hidden", Namespace: "other", Hostname: "hidden.other", NamespaceOnly: true, Ports: web.Ports}
	of := func(ports ...mesh.Port) func(*mesh.Workload) {
		return func(w *mesh.Workload) { w.Services = map[string][]mesh.Port{"ns/web.ns": ports} }
	}
	here := mesh.GatewayAddress{Address: single("10.0.0.1"), HBONEPort: 15008}
	behind := &mesh.Workload{UID: "c//Pod/ns/behind", Name: "behind", Namespace: "ns",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")}, Waypoint: &here}
	other := &mesh.Workload{UID: "c//Pod/ns/other", Name: "other", Namespace: "ns", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.8")}}
	fronted := &mesh.Service{Name: "fronted", Namespace: "ns", Hostname: "fronted.ns", Addresses: []mesh.NetworkAddress{single("10.1.0.2")},
		Waypoint: &mesh.GatewayAddress{Namespace: "ns", Hostname: "web.ns", HBONEPort: 15008}}
	proxied := func(port uint16) func(*mesh.Workload) {
		return func(w *mesh.Workload) { w.AppTunnel = &mesh.AppTunnel{Proxy: true, Port: port} }
	}
	bare := &mesh.Service{Name: "bare", Namespace: "ns", Hostname: "bare.ns", Ports: web.Ports}
	weighted := func(name, vip string, weights ...uint32) *mesh.Service {
		s := &mesh.Service{Name: name, Namespace: "ns", Hostname: name + ".ns", Addresses: []mesh.NetworkAddress{single(vip)},
			Waypoint: &mesh.GatewayAddress{Address: single("10.0.0.8"), HBONEPort: 15008}}
		for i, g := range []*mesh.GatewayAddress{{Address: single("10.0.0.8")}, fronted.Waypoint} {
			s.Weighted = append(s.Weighted, mesh.WeightedWaypoint{Destination: *g, Weight: weights[i]})
		}
		return s
	}
	byHost := &mesh.Service{Name: "h", Namespace: "ns", Hostname: "h.ns", Addresses: []mesh.NetworkAddress{single("10.1.0.5")},
		Waypoint: &mesh.GatewayAddress{Namespace: "ns", Hostname: "pod.example", HBONEPort: 15008}}
	for _, tt := range []struct {
		name, authority string
		change          func(*mesh.Workload)
		want            string
		reason          live.Reason
	}{
		{"own address", "10.0.0.1:80", nil, "10.0.0.1:80", ""},
		{"own port", "10.0.0.1:15008", nil, "", live.SelfCall},
		{"another pod's address", "10.0.0.8:80", nil, "", live.AddressMismatch},
		{"an unknown address", "9.9.9.9:80", nil, "", live.AddressMismatch},
		{"as waypoint of a workload", "10.0.0.7:80", nil, "10.0.0.1:80", ""},
		{"as waypoint of a service", "10.1.0.2:80", of(), "10.0.0.1:80", ""},
		{"not a member of the waypoint's service", "10.1.0.2:80", nil, "", live.AddressMismatch},
		{"service without a waypoint", "10.1.0.1:80", of(), "", live.AddressMismatch},
		{"service by name", "web.ns:80", of(), "10.0.0.1:8080", ""},
		{"own mapping of a named port", "web.ns:81", of(mesh.Port{ServicePort: 81, TargetPort: 9090}), "10.0.0.1:9090", ""},
		{"named port it lacks", "web.ns:81", of(), "", live.UnknownDestination},
		{"unknown service", "nope.ns:80", nil, "", live.UnknownDestination},
		{"hidden service", "hidden.other:80", nil, "", live.UnknownDestination},
		{"application tunnel port", "9.9.9.9:80", func(w *mesh.Workload) { w.AppTunnel = &mesh.AppTunnel{Port: 1234} }, "10.0.0.1:1234", ""},
		{"application tunnel does not need a service's port", "9.9.9.9:80", func(w *mesh.Workload) { of()(w); w.AppTunnel = &mesh.AppTunnel{Port: 15088} }, "10.0.0.1:15088", ""},
		{"application tunnel without a port", "9.9.9.9:80", func(w *mesh.Workload) { w.AppTunnel = &mesh.AppTunnel{} }, "10.0.0.1:80", ""},
		{"application tunnel to our port", "10.0.0.1:80", func(w *mesh.Workload) { w.AppTunnel = &mesh.AppTunnel{Port: 15006} }, "", live.SelfCall},
		{"application tunnel with PROXY", "10.0.0.1:80", proxied(0), "10.0.0.1:80 by 127.0.0.1:80 for 10.0.0.1:80", ""},
		{"application tunnel with PROXY and a port", "9.9.9.9:80", proxied(15088), "10.0.0.1:15088 by 127.0.0.1:15088 for 9.9.9.9:80", ""},
		{"PROXY for a service by name", "web.ns:80", func(w *mesh.Workload) { of()(w); proxied(15088)(w) }, "10.0.0.1:15088 by 127.0.0.1:15088 for 10.1.0.1:80", ""},
		{"PROXY for a service without an address", "bare.ns:80", proxied(15088), "", live.UnknownDestination},
		{"tunnel of a service by name", "bare.ns:80", func(w *mesh.Workload) { w.AppTunnel = &mesh.AppTunnel{Port: 15088} }, "10.0.0.1:15088", ""},
		{"as one of weighted waypoints", "10.1.0.3:80", of(), "10.0.0.1:80", ""},
		{"as a waypoint that has no weight any more", "10.1.0.4:80", of(), "10.0.0.1:80", ""},
		{"as a waypoint by the host name of a workload", "10.1.0.5:80", func(w *mesh.Workload) { w.Hostname = "pod.example" }, "10.0.0.1:80", ""},
		{"another workload's host name", "10.1.0.5:80", nil, "", live.AddressMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := pod(tt.change)
			s := build([]*mesh.Workload{w, behind, other}, []*mesh.Service{web, hidden, fronted, bare,
				weighted("both", "10.1.0.3", 1, 2), weighted("draining", "10.1.0.4", 1, 0), byHost})
			a, err := parseAuthority(tt.authority)
			if err != nil {
				t.Fatal(err)
			}
			h, err := target(s, w, netip.MustParseAddr("10.0.0.1"), a, true)
			got := h.app.String()
			if h.proxy.IsValid() {
				got += " by " + h.dial().String() + " for " + h.proxy.String()
			}
			if reason(err) != tt.reason || tt.want != "" && got != tt.want {
				t.Errorf("%s, %v; want %s %s", got, err, tt.want, tt.reason)
			}
			if h, _ := target(s, w, netip.MustParseAddr("10.0.0.1"), a, false); h.dial() != h.app {
				t.Errorf("without loopback: %s", h.dial())
			}
		})
	}
}

func TestDestinationService(t *testing.T) {
	a := &mesh.Service{Name: "a", Namespace: "ns", Hostname: "a.ns", Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}}}
	b := &mesh.Service{Name: "b", Namespace: "ns", Hostname: "b.ns", Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 90}}}
	w := &mesh.Workload{UID: "u", Name: "p", Namespace: "ns", Services: map[string][]mesh.Port{
		"ns/a.ns": nil, "ns/b.ns": {{ServicePort: 90, TargetPort: 9999}}, "ns/gone.ns": nil}}
	s := build([]*mesh.Workload{w}, []*mesh.Service{a, b})
	for _, tt := range []struct {
		forwarded string
		port      uint16
		want      string
	}{
		{"", 8080, "a.ns"}, {"", 9999, "b.ns"}, {"", 1, ""},
		{`for="1.2.3.4:5";host=b.ns`, 8080, "b.ns"}, {`for="1.2.3.4:5";Host="b.ns", host=a.ns`, 8080, "b.ns"},
		{`host=stranger.ns`, 8080, "a.ns"}, {`host=`, 8080, "a.ns"}, {`;;=,`, 8080, "a.ns"},
	} {
		got := ""
		if v := destinationService(s, w, tt.forwarded, tt.port); v != nil {
			got = v.Hostname
		}
		if got != tt.want {
			t.Errorf("%q port %d: %q, want %q", tt.forwarded, tt.port, got, tt.want)
		}
	}
}

//ambit:feature redirect-spoofed-ports
func TestSpoofedPorts(t *testing.T) {
	client := netip.MustParseAddrPort("10.0.0.1:1025")
	start := uint32(0)
	s := spoofed{rand: func(uint32) uint32 { return start }}
	want := func(port uint16) netip.AddrPort {
		t.Helper()
		pair, ok := s.take(client, false)
		if !ok || pair != netip.AddrPortFrom(client.Addr(), port) {
			t.Fatalf("took %v, want port %d", pair, port)
		}
		return pair
	}
	first := want(1024)
	want(1026) // 1025 is the client's own
	s.hold(netip.MustParseAddrPort("10.0.0.1:1027"))
	want(1028) // 1027 is another connection of the client
	s.release(first)
	want(1024)
	start = quietCount - 1
	want(32767)
	want(1029) // around the end
	if other, ok := s.take(netip.MustParseAddrPort("10.0.0.2:1"), false); !ok || other.Port() != 32767 {
		t.Errorf("another client got %v", other)
	}
	s.release(netip.AddrPort{})

	// Every one different and the client's own never; none that the client may
	// choose for its next connection, unless any will do.
	s = spoofed{}
	seen := map[netip.AddrPort]bool{client: true}
	for range 2000 {
		pair, ok := s.take(client, false)
		if p := pair.Port(); !ok || seen[pair] || p < firstPort || p >= firstEphemeral {
			t.Fatalf("took %v after %d, ok %v", pair, len(seen)-1, ok)
		}
		seen[pair] = true
	}
	for port := firstPort; port < firstEphemeral; port++ {
		s.used[netip.AddrPortFrom(client.Addr(), uint16(port))] = 1
	}
	if pair, ok := s.take(client, false); ok {
		t.Errorf("took %v although none is free", pair)
	}
	if pair, ok := s.take(client, true); !ok || pair.Port() < firstEphemeral {
		t.Errorf("took %v, ok %v, although only ephemeral ports are free", pair, ok)
	}
	for port := firstEphemeral; port < 65536; port++ {
		s.used[netip.AddrPortFrom(client.Addr(), uint16(port))] = 1
	}
	if pair, ok := s.take(client, true); ok {
		t.Errorf("took %v although none is free", pair)
	}
}

// waiting refuses what a namespace full of sockets in TIME_WAIT would.
type waiting struct {
	free  func(port uint16) bool
	dials int
}

func (w *waiting) DialTCP(_ context.Context, local, _ netip.AddrPort, _ netns.SocketOptions) (*net.TCPConn, error) {
	w.dials++
	if !w.free(local.Port()) {
		return nil, os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)
	}
	return &net.TCPConn{}, nil
}

// A client whose short connections have left their ports waiting is served from
// what remains, and told when nothing does.
func TestPortsInTimeWait(t *testing.T) {
	client, app := netip.MustParseAddrPort("10.0.0.1:50000"), netip.MustParseAddrPort("10.0.0.2:80")
	for _, tt := range []struct {
		name string
		free func(uint16) bool
		ok   bool
	}{
		{"nine of ten", func(p uint16) bool { return p%10 == 0 }, true},
		{"all that clients do not choose", func(p uint16) bool { return p >= firstEphemeral }, true},
		{"all", func(uint16) bool { return false }, false},
	} {
		d := &waiting{free: tt.free}
		p := New(Config{Dialer: d})
		_, local, err := p.dial(context.Background(), client, app)
		if (err == nil) != tt.ok || d.dials > dialAttempts {
			t.Errorf("%s: %v after %d dials", tt.name, err, d.dials)
		}
		var e *live.Error
		if !tt.ok && (!errors.As(err, &e) || e.Reason != live.ConnectFailed || len(p.ports.used) != 0) {
			t.Errorf("%s: %v, %d ports held", tt.name, err, len(p.ports.used))
		}
		if tt.ok && p.ports.used[local] != 1 {
			t.Errorf("%s: %s is not held", tt.name, local)
		}
	}
}
