package redirect

import (
	"bufio"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ambitmesh/ambit/cni/netns"
)

// families of a test: the pod, its peer, and a service address nobody has.
var bothFamilies = []struct {
	name           string
	pod, peer, vip netip.Addr
	any            netip.Addr
}{
	{"IPv4", podAddr4, peerAddr4, netip.MustParseAddr("10.96.0.7"), netip.IPv4Unspecified()},
	{"IPv6", podAddr6, peerAddr6, netip.MustParseAddr("fd96::7"), netip.IPv6Unspecified()},
}

func TestOutboundIsCapturedWithItsDestination(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		for _, f := range bothFamilies {
			startApp(t, c.peer, "peer", at(f.peer, 8080))
			dial(t, c.pod, at(f.peer, 8080)).expect(t, "outbound", f.pod, at(f.peer, 8080))
			v := dial(t, c.pod, at(f.vip, 80))
			v.expect(t, "outbound", f.pod, at(f.vip, 80))
			v.ping(t, "through the established path")
		}
	})
}

func TestMarkedSocketsPass(t *testing.T) {
	c := newCaptured(t)
	for _, f := range bothFamilies {
		startApp(t, c.peer, "peer", at(f.peer, 8080))
		m, err := dialFor(t, c.pod, netip.AddrPort{}, at(f.peer, 8080), netns.SocketOptions{Mark: netns.Mark}, patience)
		if err != nil {
			t.Fatal(err)
		}
		m.expect(t, "peer", f.pod, at(f.peer, 8080))
	}
}

func TestPodReachesItselfDirectly(t *testing.T) {
	c := newCaptured(t)
	startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
	for _, a := range []netip.Addr{podAddr4, podAddr6, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.1.2.3"), netip.IPv6Loopback()} {
		self := a
		if a.String() == "127.1.2.3" {
			self = netip.MustParseAddr("127.0.0.1")
		}
		dial(t, c.pod, at(a, 8080)).expect(t, "app", self, at(a, 8080))
	}
}

func TestInboundKeepsTheSource(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		for _, f := range bothFamilies {
			in := dial(t, c.peer, at(f.pod, 8080))
			in.expect(t, "inbound", f.peer, at(f.pod, 8080))
			in.expect(t, "app", f.peer, at(f.pod, 8080))
			in.ping(t, "to the application and back")
		}
	})
}

func TestInboundToAClosedPort(t *testing.T) {
	c := newCaptured(t)
	for _, f := range bothFamilies {
		in := dial(t, c.peer, at(f.pod, 9))
		if got := in.line(t); got[len(got)-6:] != "failed" {
			t.Fatalf("got %q, want the dial to a closed port to fail at once", got)
		}
	}
}

// Link-local addresses belong to a link, so a connection to one cannot be taken
// over lo: the application's socket is bound to its device. It goes direct.
func TestOutboundToLinkLocalGoesDirect(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		gateway, own := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")
		var index int
		within(t, c.pod, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			index = l.Attrs().Index
			return addAddr(l, own)
		})
		within(t, c.wire, func() error {
			l, err := netlink.LinkByName("br0")
			if err != nil {
				return err
			}
			return addAddr(l, gateway)
		})
		startApp(t, c.wire, "wire", at(netip.IPv6Unspecified(), 8080))
		var conn net.Conn
		within(t, c.pod, func() (err error) {
			d := net.Dialer{Timeout: patience}
			conn, err = d.Dial("tcp6", at(gateway.WithZone(strconv.Itoa(index)), 8080).String())
			return err
		})
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(patience))
		got := &client{conn.(*net.TCPConn), bufio.NewReader(conn)}
		if line := got.line(t); !strings.HasPrefix(line, "wire [fe80::2") {
			t.Fatalf("greeting %q, want the wire's", line)
		}
		got.ping(t, "direct")
		// What only looks like it is captured: fec0::/10 was site-local.
		dial(t, c.pod, at(netip.MustParseAddr("fec0::1"), 80)).expect(t, "outbound", podAddr6, at(netip.MustParseAddr("fec0::1"), 80))
	})
}
