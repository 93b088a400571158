package redirect

import (
	"net/netip"
	"testing"

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
