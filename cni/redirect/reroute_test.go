package redirect

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ambitmesh/ambit/cni/netns"
)

var (
	doorAddr4, doorAddr6   = netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("fd30::1")
	innerAddr4, innerAddr6 = netip.MustParseAddr("172.30.0.2"), netip.MustParseAddr("fd30::2")
)

// behind gives the pod a bridge of its own with somebody behind it, as a
// container engine or a virtual machine in a pod has it.
func (n *topology) behind(t testing.TB) *netns.NS {
	t.Helper()
	inner := newNS(t)
	within(t, n.pod, func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		if err := up("docker0", doorAddr4, doorAddr6); err != nil {
			return err
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "inner0"}, PeerName: "eth0"}
		if err := withFd(inner.File(), func(fd int) error { veth.PeerNamespace = netlink.NsFd(fd); return netlink.LinkAdd(veth) }); err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, bridge); err != nil {
			return err
		}
		return up("inner0")
	})
	within(t, inner, func() error {
		if err := up("eth0", innerAddr4, innerAddr6); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, gw := range []netip.Addr{doorAddr4, doorAddr6} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	})
	return inner
}

// TestRerouted: what comes in over a named device is captured as if the pod had
// dialled it, before any NAT and whatever the reverse path filter; what it dials
// of the pod itself is not outbound. A device that comes later counts from the
// next Set on, and open connections live through a drain.
//
//ambit:feature enrol-reroute
func TestRerouted(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, append(changes, func(_ *Options, cfg *Config) { cfg.Reroute = []string{"docker0", "kvm9"} })...)
		inner := c.behind(t)
		for _, key := range []string{"all", "docker0"} {
			sysctl(t, c.pod, "net/ipv4/conf/"+key+"/rp_filter", "1")
		}
		if err := c.r.Check(c.cfg); err == nil {
			t.Error("the new device is not missed")
		}
		if err := c.r.Set(c.cfg); err != nil {
			t.Fatal(err)
		}
		if err := c.r.Check(c.cfg); err != nil {
			t.Error(err)
		}
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		var open []*client
		for i, from := range []netip.Addr{innerAddr4, innerAddr6} {
			f := bothFamilies[i]
			out := dial(t, inner, at(f.vip, 80))
			out.expect(t, "outbound", from, at(f.vip, 80))
			out.ping(t, "there and back")
			peer := dial(t, inner, at(f.peer, 8080))
			peer.expect(t, "outbound", from, at(f.peer, 8080))
			open = append(open, out, peer)
			in := dial(t, inner, at(f.pod, 8080))
			in.expect(t, "inbound", from, at(f.pod, 8080))
			in.expect(t, "app", from, at(f.pod, 8080))
			dial(t, c.pod, at(f.vip, 80)).expect(t, "outbound", f.pod, at(f.vip, 80))
		}
		if n := c.stat(t, "rerouted"); n != 4 {
			t.Errorf("%d connections are counted, want 4", n)
		}
		if err := c.r.Drain(c.cfg.ContainerID); err != nil {
			t.Fatal(err)
		}
		for _, o := range open {
			o.ping(t, "through the drain")
		}
	})
}

// TestNotRerouted: without being named the same device leads nowhere past
// capture, and nowhere into it.
//
//ambit:feature enrol-reroute
func TestNotRerouted(t *testing.T) {
	c := newCaptured(t)
	inner := c.behind(t)
	if err := c.r.Set(c.cfg); err != nil {
		t.Fatal(err)
	}
	if o, err := dialFor(t, inner, netip.AddrPort{}, at(bothFamilies[0].vip, 80), netns.SocketOptions{}, unanswered); err == nil {
		t.Errorf("answered: %s", o.line(t))
	}
}
