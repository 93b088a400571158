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
)

// A headless service has no virtual address: what a client dials is a pod, and
// it is as a workload that the mesh knows it.
func TestHeadlessService(t *testing.T) {
	w := newWorld(t)
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
func TestHostNetwork(t *testing.T) {
	w := newWorld(t)
	client, near, far := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far")
	near.serveHTTP(8080)
	far.serveHTTP(8080)
	// The mesh knows a workload at the node's address. It must not lend its
	// identity to whatever runs on the node.
	api := &mesh.Service{Name: "kubernetes", Namespace: "default", Hostname: "kubernetes.default.svc.cluster.local",
		Addresses: []mesh.NetworkAddress{{Prefix: netip.MustParsePrefix("10.96.0.1/32")}},
		Ports:     []mesh.Port{{ServicePort: 443, TargetPort: 8088}}}
	w.control.apply(mesh.Delta{Services: []*mesh.Service{api}, Workloads: []*mesh.Workload{{
		UID: "test//Pod/demo/on-the-node", Name: "on-the-node", Namespace: "demo", ServiceAccount: "on-the-node",
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.77.1")}, Node: "node-a", ClusterID: "test", HostNetwork: true,
		Services: map[string][]mesh.Port{api.Key(): nil},
	}}})
	w.enrol(client, near, far)
	host := &pod{node: w.a, ns: w.a.ns, name: "on-the-node", addr: netip.MustParseAddr("192.168.77.1")}

	for _, c := range []struct {
		to   *pod
		from string
	}{{far, "192.168.77.1"}, {near, "10.77.1.1"}} {
		body := host.mustCurl(t, c.to.at(8080), "token-host")
		if !strings.HasPrefix(body, c.from+":") {
			t.Errorf("%s sees %q, not the node's address %s", c.to.name, body, c.from)
		}
		line := c.to.node.zt.wantLog(t, "connection complete", "src.addr="+c.from+":", "dst.addr="+c.to.at(8080), `direction="inbound"`)
		if strings.Contains(line, "src.identity") {
			t.Errorf("a process of the node has an identity: %s", line)
		}
	}
	host.serveHTTP(8088)
	if body := client.mustCurl(t, host.at(8088), "token-to-host"); !strings.HasPrefix(body, client.addr.String()+":") {
		t.Errorf("the node sees %q, not the pod's address", body)
	}
	w.a.zt.wantLog(t, "connection complete", "dst.addr="+host.at(8088), `direction="outbound"`)
	// As the API server has it: a service whose endpoints are the nodes'.
	client.mustCurl(t, "10.96.0.1:443", "token-to-the-service-on-the-host")
	w.a.zt.wantLog(t, "connection complete", "dst.addr="+host.at(8088), `dst.service="kubernetes.default.svc.cluster.local"`)
}

// What a pod sends to its own address never leaves it and is nobody's
// business; what it sends to its own service is a call like any other.
func TestPodToItself(t *testing.T) {
	w := newWorld(t)
	p := w.newPod(w.a, "solo")
	p.serveHTTP(8080)
	w.enrol(p)
	w.service("solo", "10.96.0.20", 80, 8080, p)

	t.Run("own address", func(t *testing.T) {
		for _, to := range []string{p.at(8080), "127.0.0.1:8080"} {
			body := p.mustCurl(t, to, "token-self")
			if host, _, _ := net.SplitHostPort(to); !strings.HasPrefix(body, host+":") {
				t.Errorf("call to %s came from %q", to, body)
			}
		}
		if l, ok := w.a.zt.log("dst.addr=" + p.at(8080)); ok {
			t.Errorf("the mesh had a part in it: %s", l)
		}
	})
	t.Run("own service", func(t *testing.T) {
		body := p.mustCurl(t, "10.96.0.20:80", "token-own-service")
		if !strings.HasPrefix(body, p.addr.String()+":") {
			t.Errorf("call came from %q", body)
		}
		w.a.zt.wantLog(t, "connection complete", `direction="inbound"`, `src.identity="`+p.id().String()+`"`, `dst.identity="`+p.id().String()+`"`)
	})
	t.Run("own service, many", func(t *testing.T) {
		for range 50 {
			p.mustCurl(t, "10.96.0.20:80", "token-own-service")
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
// and come as before, with the addresses they had.
func TestUDPUntouched(t *testing.T) {
	w := newWorld(t)
	client, near, far := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far")
	w.enrol(client, near, far)
	from := client.packetConn(t, "udp4", "0.0.0.0:0")
	for _, to := range []*pod{near, far} {
		server := to.packetConn(t, "udp4", "0.0.0.0:5353")
		for _, size := range []int{1, 1200, 8000} { // the last in IP fragments
			sent := []byte(strings.Repeat("u", size))
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
		}
	}
	w.nothingLost(t, client, near, far)

	// Errors come back as well: nobody listens on this port.
	var c net.Conn
	within(t, client.ns, func() (err error) { c, err = net.Dial("udp4", far.at(5354)); return err })
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

func TestICMPUntouched(t *testing.T) {
	w := newWorld(t)
	client, near, far := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far")
	w.enrol(client, near, far)
	ping := client.packetConn(t, "ip4:icmp", "0.0.0.0")
	for i, to := range []*pod{near, far} {
		msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 77, Seq: i, Data: []byte(strings.Repeat("p", 3000))}}
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
			m, err := icmp.ParseMessage(1, buf[:n])
			if err != nil || m.Type != ipv4.ICMPTypeEchoReply || src.String() != to.addr.String() {
				continue
			}
			if e := m.Body.(*icmp.Echo); e.Seq != i || len(e.Data) != 3000 {
				t.Errorf("answer of %s: seq %d, %d bytes", to.name, e.Seq, len(e.Data))
			}
			break
		}
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
	p := &pod{node: w.a, ns: newNS(t), name: "outside", addr: netip.MustParseAddr("203.0.113.9")}
	join(t, w.a.ns, "ext0", p.ns, "eth0")
	up(t, w.a.ns, "ext0", "203.0.113.1/24")
	up(t, p.ns, "eth0", "203.0.113.9/24", route{"10.77.0.0/16", "203.0.113.1"})
	return p
}
