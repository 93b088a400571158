package netns_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A headless service has no virtual address: what a client dials is a pod, and
// it is as a workload that the mesh knows it.
//
//ambit:feature traffic-headless
func TestHeadlessService(t *testing.T) { each(t, headlessService) }

func headlessService(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client := w.newPod(w.a, "client")
	near, far := w.newPod(w.a, "db-0"), w.newPod(w.b, "db-1")
	svc := &mesh.Service{Name: "db", Namespace: "demo", Hostname: "db.demo.svc.cluster.local",
		Ports: []mesh.Port{{ServicePort: 8080, TargetPort: 8080}}}
	for _, p := range []*pod{near, far} {
		p.serveHTTP(8080)
		p.serveHTTP(8081) // not a port of the service
		p.change = func(rec *mesh.Workload) { rec.Services = map[string][]mesh.Port{svc.Key(): nil} }
	}
	w.control.apply(mesh.Delta{Services: []*mesh.Service{svc}})
	w.enrol(client, near, far)
	wire := capturing(t, w.a.ns, "wire0")
	for _, p := range []*pod{near, far} {
		for _, port := range []uint16{8080, 8081} {
			body := client.mustCurl(t, p.at(port), "token-headless")
			if !strings.Contains(body, "to "+p.name+":") {
				t.Errorf("%s answered: %q", p.at(port), body)
			}
			p.node.zt.wantLog(t, "connection complete", `direction="inbound"`, "dst.hbone_addr="+p.at(port),
				`src.identity="`+client.id().String()+`"`, `dst.workload="`+p.name+`"`)
		}
	}
	if wire.contains("token-") {
		t.Error("plaintext between the nodes")
	}
}

// A process in the node's own namespace has no identity: it reaches a meshed
// pod in plaintext, and the application sees the node's address. The other way
// round the connection passes in plaintext as well.
//
//ambit:feature traffic-host-network traffic-api-server
func TestHostNetwork(t *testing.T) { each(t, hostNetwork) }

func hostNetwork(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, near, far := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far")
	near.serveHTTP(8080)
	far.serveHTTP(8080)
	host := &pod{node: w.a, ns: w.a.ns, name: "on-the-node", addr: netip.MustParseAddr(f.used().wireAddr(1))}
	// The mesh knows a workload at the node's address. It must not lend its
	// identity to whatever runs on the node.
	api := &mesh.Service{Name: "kubernetes", Namespace: "default", Hostname: "kubernetes.default.svc.cluster.local",
		Ports: []mesh.Port{{ServicePort: 443, TargetPort: 8088}}}
	for _, vip := range f.vip(1) {
		api.Addresses = append(api.Addresses, mesh.NetworkAddress{Prefix: netip.PrefixFrom(vip, vip.BitLen())})
	}
	w.control.apply(mesh.Delta{Services: []*mesh.Service{api}, Workloads: []*mesh.Workload{{
		UID: "test//Pod/demo/on-the-node", Name: "on-the-node", Namespace: "demo", ServiceAccount: "on-the-node",
		Addresses: []netip.Addr{host.addr}, Node: "node-a", ClusterID: "test", HostNetwork: true,
		Services: map[string][]mesh.Port{api.Key(): nil},
	}}})
	w.enrol(client, near, far)

	for _, c := range []struct {
		to   *pod
		from netip.Addr
	}{{far, host.addr}, {near, f.used().pod(1, 1)}} {
		body := host.mustCurl(t, c.to.at(8080), "token-host")
		if !sentFrom(body, c.from) {
			t.Errorf("%s sees %q, not the node's address %s", c.to.name, body, c.from)
		}
		from := &pod{addr: c.from}
		line := c.to.node.zt.wantLog(t, "connection complete", "src.addr="+from.host()+":", "dst.addr="+c.to.at(8080), `direction="inbound"`)
		if strings.Contains(line, "src.identity") {
			t.Errorf("a process of the node has an identity: %s", line)
		}
	}
	host.serveHTTP(8088)
	if body := client.mustCurl(t, host.at(8088), "token-to-host"); !client.sent(body) {
		t.Errorf("the node sees %q, not the pod's address", body)
	}
	w.a.zt.wantLog(t, "connection complete", "dst.addr="+host.at(8088), `direction="outbound"`)
	// As the API server has it: a service whose endpoints are the nodes'.
	client.mustCurl(t, f.vipAt(1, 443), "token-to-the-service-on-the-host")
	w.a.zt.wantLog(t, "connection complete", "dst.addr="+host.at(8088), `dst.service="kubernetes.default.svc.cluster.local"`)
}

// What a pod sends to its own address never leaves it and is nobody's
// business; what it sends to its own service is a call like any other.
//
//ambit:feature traffic-self
func TestPodToItself(t *testing.T) { each(t, podToItself) }

func podToItself(t *testing.T, f families) {
	w := newWorldOf(t, f)
	p := w.newPod(w.a, "solo")
	p.serveHTTP(8080)
	w.enrol(p)
	w.serviceAt("solo", f.vip(20), 80, 8080, p)
	to := f.vipAt(20, 80)

	t.Run("own address", func(t *testing.T) {
		for _, to := range []string{p.at(8080), net.JoinHostPort(f.used().loopback(), "8080")} {
			body := p.mustCurl(t, to, "token-self")
			if !sentFrom(body, netip.MustParseAddrPort(to).Addr()) {
				t.Errorf("call to %s came from %q", to, body)
			}
		}
		if l, ok := w.a.zt.log("dst.addr=" + p.at(8080)); ok {
			t.Errorf("the mesh had a part in it: %s", l)
		}
	})
	t.Run("own service", func(t *testing.T) {
		body := p.mustCurl(t, to, "token-own-service")
		if !p.sent(body) {
			t.Errorf("call came from %q", body)
		}
		w.a.zt.wantLog(t, "connection complete", `direction="inbound"`, `src.identity="`+p.id().String()+`"`, `dst.identity="`+p.id().String()+`"`)
	})
	t.Run("own service, many", func(t *testing.T) {
		for range 50 {
			p.mustCurl(t, to, "token-own-service")
		}
	})
}

func (p *pod) packetConn(t testing.TB, network, addr string) (c net.PacketConn) {
	t.Helper()
	within(t, p.ns, func() (err error) {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// Only TCP is the mesh's: datagrams of captured pods, also fragmented ones, go
// and come as before, with the addresses they had. On the wire each is seen once.
//
//ambit:feature traffic-udp
func TestUDPUntouched(t *testing.T) { each(t, udpUntouched) }

func udpUntouched(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, near, far := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far")
	w.enrol(client, near, far)
	udp, any := f.used().network("udp"), f.used().any()
	wire := capturing(t, w.a.ns, "wire0")
	from := client.packetConn(t, udp, net.JoinHostPort(any, "0"))
	for _, to := range []*pod{near, far} {
		server := to.packetConn(t, udp, net.JoinHostPort(any, "5353"))
		for _, size := range []int{1, 1200, 8000} { // the last in IP fragments
			mark := fmt.Sprintf("<%s %d>", to.name, size)
			sent := []byte(mark + strings.Repeat("u", size))
			if _, err := from.WriteTo(sent, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to.at(5353)))); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1<<16)
			n, src, err := server.ReadFrom(buf)
			if err != nil || string(buf[:n]) != string(sent) {
				t.Fatalf("%d bytes to %s: %d arrived, %v", size, to.name, n, err)
			}
			if got := src.(*net.UDPAddr).AddrPort().Addr().Unmap(); got != client.addr {
				t.Errorf("%s sees the client as %s", to.name, got)
			}
			if _, err := server.WriteTo(buf[:n], src); err != nil {
				t.Fatal(err)
			}
			if n, _, err = from.ReadFrom(buf); err != nil || string(buf[:n]) != string(sent) {
				t.Fatalf("answer of %s to %d bytes: %d came, %v", to.name, size, n, err)
			}
			want := 0 // on one node nothing crosses the wire
			if to == far {
				want = 2
			}
			wire.wantCount(t, mark, want)
		}
	}
	w.nothingLost(t, client, near, far)

	// Errors come back as well: nobody listens on this port.
	var c net.Conn
	within(t, client.ns, func() (err error) { c, err = net.Dial(udp, far.at(5354)); return err })
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte("anybody?"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("datagram to a closed port: %v", err)
	}
}

// nothingLost wants no packet of these pods dropped by capture, and none taken
// for DNS.
func (w *world) nothingLost(t testing.TB, pods ...*pod) {
	t.Helper()
	for _, p := range pods {
		s, err := p.node.agent.r.Stats(p.uid)
		if err != nil {
			t.Fatal(err)
		}
		if s.Dropped() > 0 || s["dns_captured"] > 0 {
			t.Errorf("%s: %v", p.name, s)
		}
	}
}

// echoKind is an echo request, and what an answer to it looks like.
type echoKind struct {
	network  string
	protocol int
	ask, got icmp.Type
}

func (f family) echo() echoKind {
	if f.v6 {
		return echoKind{"ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply}
	}
	return echoKind{"ip4:icmp", 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply}
}

// ICMP of captured pods, fragments included, is as it was, and crosses the wire
// readably: once as a question, once as an answer.
//
//ambit:feature traffic-icmp
func TestICMPUntouched(t *testing.T) { each(t, icmpUntouched) }

func icmpUntouched(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, near, far := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far")
	w.enrol(client, near, far)
	wire := capturing(t, w.a.ns, "wire0")
	kind := f.used().echo()
	ping := client.packetConn(t, kind.network, f.used().any())
	for i, to := range []*pod{near, far} {
		mark := "<ping of " + to.name + ">"
		data := mark + strings.Repeat("p", 3000)
		msg := icmp.Message{Type: kind.ask, Body: &icmp.Echo{ID: 77, Seq: i, Data: []byte(data)}}
		b, err := msg.Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ping.WriteTo(b, &net.IPAddr{IP: to.addr.AsSlice()}); err != nil {
			t.Fatal(err)
		}
		for {
			buf := make([]byte, 1<<16)
			n, src, err := ping.ReadFrom(buf)
			if err != nil {
				t.Fatalf("no answer of %s: %v", to.name, err)
			}
			m, err := icmp.ParseMessage(kind.protocol, buf[:n])
			if err != nil || m.Type != kind.got || src.String() != to.addr.String() {
				continue
			}
			if e := m.Body.(*icmp.Echo); e.Seq != i || string(e.Data) != data {
				t.Errorf("answer of %s: seq %d, %d bytes", to.name, e.Seq, len(e.Data))
			}
			break
		}
		want := 0
		if to == far {
			want = 2
		}
		wire.wantCount(t, mark, want)
	}
	w.nothingLost(t, client, near, far)
}

// sysctl sets a parameter of the pod's network namespace.
func (p *pod) sysctl(t testing.TB, name, value string) {
	t.Helper()
	within(t, p.ns, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
		return nil
	})
}

// outside is a host that the mesh knows nothing about, behind node a.
func (w *world) outside(t testing.TB) *pod {
	t.Helper()
	p := &pod{node: w.a, ns: newNS(t), name: "outside"}
	join(t, w.a.ns, "ext0", p.ns, "eth0")
	here, there := link{prefixes: []string{router(1)}}, link{}
	for _, f := range w.families {
		bits := 24
		if f.v6 {
			bits = 64
		}
		p.addr = f.beyond(9)
		p.addrs = append(p.addrs, p.addr)
		here.prefixes = append(here.prefixes, netip.PrefixFrom(f.beyond(1), bits).String())
		there.prefixes = append(there.prefixes, netip.PrefixFrom(p.addr, bits).String())
		there.routes = append(there.routes, route{f.allPods(), f.beyond(1).String()})
	}
	configure(t, w.a.ns, "ext0", here)
	configure(t, p.ns, "eth0", there)
	return p
}
