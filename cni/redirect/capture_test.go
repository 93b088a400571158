package redirect

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
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

//ambit:feature redirect-outbound
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

//ambit:feature redirect-mark
func TestMarkedSocketsPass(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		for _, f := range bothFamilies {
			startApp(t, c.peer, "peer", at(f.peer, 8080))
			m, err := dialFor(t, c.pod, netip.AddrPort{}, at(f.peer, 8080), netns.SocketOptions{Mark: netns.Mark}, patience)
			if err != nil {
				t.Fatal(err)
			}
			m.expect(t, "peer", f.pod, at(f.peer, 8080))
		}
	})
}

//ambit:feature redirect-self
func TestPodReachesItselfDirectly(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		for _, a := range []netip.Addr{podAddr4, podAddr6, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.1.2.3"), netip.IPv6Loopback()} {
			self := a
			if a.String() == "127.1.2.3" {
				self = netip.MustParseAddr("127.0.0.1")
			}
			dial(t, c.pod, at(a, 8080)).expect(t, "app", self, at(a, 8080))
		}
	})
}

// TestInboundKeepsTheSource: the proxy's own connection to the application, from
// the client's address, is not captured once more.
//
//ambit:feature redirect-inbound
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

//ambit:feature redirect-closed-port
func TestInboundToAClosedPort(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		for _, f := range bothFamilies {
			in := dial(t, c.peer, at(f.pod, 9))
			if got := in.line(t); !strings.HasSuffix(got, "failed") {
				t.Fatalf("got %q, want the dial to a closed port to fail at once", got)
			}
		}
	})
}

// Link-local addresses belong to a link, so a connection to one cannot be taken
// over lo: the application's socket is bound to its device. It goes direct.
//
//ambit:feature redirect-link-local
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

// TestReversePathFilter: whatever the pod says about where packets of an address
// may come from, what is turned around into lo arrives.
//
//ambit:feature redirect-rp-filter
func TestReversePathFilter(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		for _, filter := range []string{"0", "1", "2"} {
			for _, device := range []string{"all", "default", "lo", "eth0"} {
				sysctl(t, c.pod, "net/ipv4/conf/"+device+"/rp_filter", filter)
			}
			for _, f := range bothFamilies {
				dial(t, c.pod, at(f.vip, 80)).expect(t, "outbound", f.pod, at(f.vip, 80))
				in := dial(t, c.peer, at(f.pod, 8080))
				in.expect(t, "inbound", f.peer, at(f.pod, 8080))
				in.expect(t, "app", f.peer, at(f.pod, 8080))
			}
		}
	})
}

// TestBulk: many segments, and those of many packets that the kernel cuts only
// at the device (GSO), go through the programs unharmed.
//
//ambit:feature redirect-bulk
func TestBulk(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		const size = 30 << 20
		for _, f := range bothFamilies {
			out := dial(t, c.pod, at(f.vip, 80))
			out.expect(t, "outbound", f.pod, at(f.vip, 80))
			in := dial(t, c.peer, at(f.pod, 8080))
			in.expect(t, "inbound", f.peer, at(f.pod, 8080))
			in.expect(t, "app", f.peer, at(f.pod, 8080))
			for _, conn := range []*client{out, in} {
				if err := conn.SetDeadline(time.Now().Add(12 * patience)); err != nil {
					t.Fatal(err)
				}
				sent := make(chan error, 1)
				go func() {
					_, err := io.CopyN(conn.TCPConn, rand.NewChaCha8([32]byte{}), size)
					sent <- err
				}()
				want, got := sha256.New(), sha256.New()
				_, _ = io.CopyN(want, rand.NewChaCha8([32]byte{}), size)
				if _, err := io.CopyN(got, conn.r, size); err != nil {
					t.Fatal(err)
				}
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
					t.Errorf("%s %s: other bytes than were sent", f.name, conn.RemoteAddr())
				}
			}
		}
	})
}
