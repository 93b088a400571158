package redirect

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ambitmesh/ambit/cni/netns"
)

// TestProbesPassByStamp: the node's own connections to the probe port, and
// nobody else's. A neighbour that has learnt the stamp is worse off than before.
//
//ambit:feature probe-tcp probe-port-only probe-forged
func TestProbesPassByStamp(t *testing.T) {
	var wire *netns.NS
	c := prepareCaptured(t, func(_ *Options, cfg *Config) {
		cfg.ProbePorts = []uint16{8080}
		// Not used while stamps are had: a source is no proof.
		cfg.ProbeSources = []netip.Prefix{netip.PrefixFrom(wireAddr4, 32), netip.PrefixFrom(peerAddr4, 32)}
	})
	wire = c.wire
	c.cfg.Host = wire
	startProxy(t, c.pod, c.cfg.Listeners)
	startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
	startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 9090))
	c.set(t)
	if err := c.r.Check(c.cfg); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		name    string
		node    netip.Addr
		pod     netip.Addr
		peer    netip.Addr
		cookies string
	}{{"IPv4", wireAddr4, podAddr4, peerAddr4, "1"}, {"IPv6", wireAddr6, podAddr6, peerAddr6, "1"}, {"IPv4 with cookies", wireAddr4, podAddr4, peerAddr4, "2"}} {
		t.Run(p.name, func(t *testing.T) {
			sysctl(t, c.pod, "net/ipv4/tcp_syncookies", p.cookies)
			probe := dial(t, wire, at(p.pod, 8080))
			probe.expect(t, "app", p.node, at(p.pod, 8080))
			probe.ping(t, "probe")
			// Another port of the node, and the probe port from a neighbour.
			dial(t, wire, at(p.pod, 9090)).expect(t, "inbound", p.node, at(p.pod, 9090))
			dial(t, c.peer, at(p.pod, 8080)).expect(t, "inbound", p.peer, at(p.pod, 8080))
		})
	}
	t.Run("forged", func(t *testing.T) {
		sw, err := readSwitches(c.r.opt.PinRoot + "/" + c.cfg.ContainerID)
		if err != nil {
			t.Fatal(err)
		}
		dropped := c.stat(t, "stamp_forged")
		within(t, c.peer, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetHardwareAddr(l, sw.Stamp[:])
		})
		if conn, err := dialFor(t, c.peer, netip.AddrPort{}, at(podAddr4, 8080), netns.SocketOptions{}, unanswered); err == nil {
			t.Errorf("a neighbour with the stamp was answered: %s", conn.line(t))
		}
		eventually(t, "forged frames counted", func() bool { return c.stat(t, "stamp_forged") > dropped })
	})
}

// TestProbesBySource is what is left where no stamp can be attached.
//
//ambit:feature probe-fallback-address
func TestProbesBySource(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, append(changes, func(_ *Options, cfg *Config) {
			cfg.ProbePorts = []uint16{8080}
			cfg.ProbeSources = []netip.Prefix{netip.PrefixFrom(wireAddr4, 32), netip.PrefixFrom(wireAddr6, 128)}
		})...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 9090))
		dial(t, c.wire, at(podAddr4, 8080)).expect(t, "app", wireAddr4, at(podAddr4, 8080))
		dial(t, c.wire, at(podAddr6, 8080)).expect(t, "app", wireAddr6, at(podAddr6, 8080))
		dial(t, c.wire, at(podAddr4, 9090)).expect(t, "inbound", wireAddr4, at(podAddr4, 9090))
		dial(t, c.peer, at(podAddr4, 8080)).expect(t, "inbound", peerAddr4, at(podAddr4, 8080))
	})
}
