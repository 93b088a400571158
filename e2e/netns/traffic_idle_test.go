package netns_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// impatient restarts the ztunnels with a quick keepalive: a question every
// 500 ms, and time for the answer that a busy machine does not need.
func (w *world) impatient(t testing.TB) {
	t.Helper()
	for _, n := range []*node{w.a, w.b} {
		n.zt.kill()
		n.zt = n.startZtunnel([]string{"HTTP2_PING_INTERVAL=500ms", "HTTP2_PING_TIMEOUT=5s"})
	}
	w.waitReady(w.a, w.b)
}

// Connections on which nobody says anything stay, through any number of
// keepalives of ztunnel's and of the applications', and so do the tunnels that
// carry them.
//
//ambit:feature traffic-idle
func TestIdleConnections(t *testing.T) { each(t, idleConnections, onlyIPv4, onlyIPv6) }

func idleConnections(t *testing.T, f families) {
	if testing.Short() {
		t.Skip("waits for many keepalives")
	}
	w := newWorldOf(t, f)
	client, server, plain := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.a, "plain")
	ext := w.outside(t)
	server.listen(9000, echo)
	ext.listen(9000, echo)
	w.impatient(t)
	w.enrol(client, server)
	var idle []*net.TCPConn
	idle = append(idle, hold(t, client, server.at(9000), 20)...)
	idle = append(idle, hold(t, client, ext.at(9000), 5)...)
	idle = append(idle, hold(t, plain, server.at(9000), 5)...)
	for _, c := range idle {
		if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}); err != nil {
			t.Fatal(err)
		}
	}
	opened := w.b.metric(t, "process_open_fds")
	<-time.After(6 * time.Second)
	for i, c := range idle {
		if err := exchange(c, "after the silence"); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if now := w.b.metric(t, "process_open_fds"); now > opened {
		t.Errorf("%v descriptors, before the silence %v", now, opened)
	}
	for i, c := range idle {
		c.CloseWrite()
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("end of connection %d: %v", i, err)
		}
	}
	for _, n := range []*node{w.a, w.b} {
		if failed := n.metric(t, "ambit_connections_failed_total"); failed != 0 {
			t.Errorf("%s: %v connections failed", n.name, failed)
		}
	}
}

// Minutes of silence, with the timers that an installation has: connections in a
// tunnel, in plain TCP to outside and from it. Most other tests run meanwhile.
// Tunnels without a connection are given up after 20 s, so that those which stay
// do so because they are used.
//
//ambit:feature traffic-idle-minutes
func TestIdleMinutes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	t.Parallel()
	const silence = 150 * time.Second
	w := newWorldOf(t, dual)
	client, server, plain := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.a, "plain")
	ext := w.outside(t)
	server.listen(9000, echo)
	ext.listen(9000, echo)
	for _, n := range []*node{w.a, w.b} {
		n.zt.kill()
		n.zt = n.startZtunnel([]string{"POOL_UNUSED_RELEASE_TIMEOUT=20s"})
	}
	w.waitReady(w.a, w.b)
	w.enrol(client, server)
	var idle []*net.TCPConn
	for i := range dual {
		to := func(p *pod) string { return netip.AddrPortFrom(p.addrs[i], 9000).String() }
		for _, c := range []struct{ from, to *pod }{{client, server}, {client, ext}, {plain, server}} {
			for n := range 5 {
				nc := c.from.mustDial(t, to(c.to))
				nc.SetDeadline(time.Now().Add(silence + 4*patience))
				if err := exchange(nc, fmt.Sprint("before the silence ", n)); err != nil {
					t.Fatal(err)
				}
				idle = append(idle, nc)
			}
		}
	}
	began := time.Now()
	<-time.After(silence)
	for i, c := range idle {
		if err := exchange(c, "after the silence"); err != nil {
			t.Errorf("connection %d (%s to %s): %v", i, c.LocalAddr(), c.RemoteAddr(), err)
		}
	}
	t.Logf("%d connections were silent for %s", len(idle), time.Since(began).Round(time.Second))
	w.noFailures(t)
}

// link sets a device up, with the routes and the IPv6 address that go when it is
// down, or down.
func (n *node) link(t testing.TB, name string, up bool, prefix string, routes ...route) {
	t.Helper()
	within(t, n.ns, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if !up {
			return netlink.LinkSetDown(l)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, p := range []string{prefix, router(n.number)} {
			a, err := netlink.ParseAddr(p)
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrReplace(l, a); err != nil {
				return fmt.Errorf("address %s: %w", p, err)
			}
		}
		for _, r := range routes {
			_, dst, err := net.ParseCIDR(r.to)
			if err != nil {
				return err
			}
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.ParseIP(r.via)}); err != nil {
				return fmt.Errorf("route %s: %w", r.to, err)
			}
		}
		return nil
	})
}

// The cable between the nodes is cut while connections are idle: nobody is
// told anything, and still both ends learn it in the time the keepalive has,
// with a reason. When the cable is back, so are new connections.
//
//ambit:feature traffic-cable-cut
func TestCableCut(t *testing.T) { each(t, cableCut, onlyIPv4, onlyIPv6) }

func cableCut(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	ended := make(chan error, 1)
	server.listen(9000, echo)
	server.listen(9001, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 5))
		c.Write([]byte("hello"))
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	w.impatient(t)
	w.enrol(client, server)
	c := client.mustDial(t, server.at(9001))
	pingPong(t, c, "hello")

	w.b.link(t, "wire0", false, "")
	began := time.Now()
	// One that comes while the tunnel is not known to be dead.
	late := make(chan error, 1)
	go func() {
		nc, err := client.dial(server.at(9000))
		if err == nil {
			nc.SetDeadline(time.Now().Add(patience))
			err = exchange(nc, "into the void")
			nc.Close()
		}
		late <- err
	}()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %v, not a reset", err)
	}
	clients := time.Since(began)
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server read %v, not a reset", err)
		}
	case <-time.After(patience):
		t.Fatal("the server's end of the connection lives on")
	}
	t.Logf("the client learned it after %s, the server after %s", clients.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	for _, n := range []*node{w.a, w.b} {
		n.zt.wantLog(t, "connection complete", "dst.hbone_addr="+server.at(9001), "no answer from", `reason="tunnel_lost"`)
	}

	if err := <-late; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection made meanwhile: %v, not a reset", err)
	}
	line := w.a.zt.wantLog(t, "connection complete", "dst.hbone_addr="+server.at(9000), "reason=")
	t.Logf("a connection made meanwhile was given up after %s: %s", time.Since(began).Round(time.Millisecond), line[strings.Index(line, "error="):])

	w.b.link(t, "wire0", true, f.used().wire(2), route{f.used().pods(1), f.used().wireAddr(1)})
	again := client.mustDial(t, server.at(9000))
	pingPong(t, again, "the cable is back")
}
