package redirect

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestLook(t *testing.T) {
	n := newTopology(t)
	s, err := Look(n.wire, n.pod)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Device{Name: "eth0", Kind: "veth", HostEnd: "vpod"}); len(s.Devices) != 1 || s.Devices[0] != want || !s.HostEnd() {
		t.Errorf("%+v, want %+v", s.Devices, want)
	}
	if !slices.Contains(s.Addrs, podAddr4) || !slices.Contains(s.Addrs, podAddr6) || slices.Contains(s.Addrs, netip.IPv6Loopback()) {
		t.Errorf("addresses %v", s.Addrs)
	}
	// From another namespace the device has an end with the same number at most.
	if s, err = Look(n.peer, n.pod); err != nil || s.HostEnd() {
		t.Errorf("the peer holds an end: %+v, %v", s, err)
	}
	if why := s.ForeignStack([]netip.Addr{podAddr4, podAddr6}); why != "" {
		t.Error(why)
	}
	// A machine's network card.
	within(t, n.pod, func() error {
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0_kata"}, Mode: netlink.TUNTAP_MODE_TAP}
		return netlink.LinkAdd(tap)
	})
	if s, err = Look(n.wire, n.pod); err != nil {
		t.Fatal(err)
	}
	if why := s.ForeignStack([]netip.Addr{podAddr4}); !strings.Contains(why, "tap0_kata") {
		t.Errorf("%+v: %q", s.Devices, why)
	}
}

func TestForeignStack(t *testing.T) {
	veth := []Device{{Name: "eth0", Kind: "veth"}}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for _, c := range []struct {
		name  string
		s     Survey
		addrs []netip.Addr
		want  string
	}{
		{"ordinary", Survey{veth, []netip.Addr{a, b}}, []netip.Addr{a, b}, ""},
		{"one address of two", Survey{veth, []netip.Addr{b}}, []netip.Addr{a, b}, ""},
		{"none", Survey{veth, []netip.Addr{b}}, []netip.Addr{a}, "none of its addresses is on a device of its namespace, eth0 (veth)"},
		{"no address known", Survey{veth, nil}, nil, ""},
		{"no device, only lo", Survey{nil, nil}, []netip.Addr{a}, ""},
		{"mapped", Survey{veth, []netip.Addr{a}}, []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}, ""},
		{"machine", Survey{[]Device{{Name: "net1", Kind: "macvtap", Machine: true}}, []netip.Addr{a}}, []netip.Addr{a}, "a virtual machine has the network card net1 (macvtap)"},
	} {
		if got := c.s.ForeignStack(c.addrs); (c.want == "") != (got == "") || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if got := (Survey{Devices: append(veth, Device{Name: "ib0", Kind: "ipoib"})}).Untested(); !slices.Equal(got, []string{"ib0 (ipoib)"}) {
		t.Errorf("untested %q", got)
	}
}

func TestSurveySame(t *testing.T) {
	a, b, lo := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("127.0.0.1")
	s := Survey{[]Device{{Name: "eth0"}, {Name: "eth1"}}, []netip.Addr{a, b}}
	for _, c := range []struct {
		addrs   []netip.Addr
		devices []string
		want    bool
	}{
		{[]netip.Addr{lo, b, a, netip.IPv6Loopback()}, []string{"eth1", "eth0"}, true},
		{[]netip.Addr{lo, a}, []string{"eth0", "eth1"}, false},
		{[]netip.Addr{a, b, netip.MustParseAddr("10.0.0.2")}, []string{"eth0", "eth1"}, false},
		{[]netip.Addr{a, b}, []string{"eth0"}, false},
		{[]netip.Addr{a, b}, []string{"eth0", "eth2"}, false},
	} {
		if got := s.Same(c.addrs, c.devices); got != c.want {
			t.Errorf("%v %v: %v", c.addrs, c.devices, got)
		}
	}
}

// What was not tried, because there is no way, is told apart from what failed.
func TestProofWithoutAWay(t *testing.T) {
	c := newCaptured(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addrs := []netip.Addr{podAddr4, podAddr6}
	if err := Prove(ctx, c.wire, c.pod, addrs); err != nil {
		t.Fatal(err)
	}
	var away *UnreachableError
	nowhere := newNS(t)
	if err := Prove(ctx, nowhere, c.pod, addrs); !errors.As(err, &away) || !slices.Equal(away.Addrs, addrs) || !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("from a namespace without a route: %v", err)
	}
	if err := Prove(ctx, nil, c.pod, addrs); !errors.As(err, &away) {
		t.Errorf("without a node: %v", err)
	}
	// One that answers in the pod's place is no missing way.
	within(t, c.wire, func() error {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return addAddr(l, podAddr4)
	})
	short, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	if err := Prove(short, c.wire, c.pod, addrs); err == nil || errors.As(err, &away) {
		t.Errorf("with somebody else at the address: %v", err)
	}
	// Nor is a pod that is not captured.
	plain := newTopology(t)
	again, end := context.WithTimeout(ctx, time.Second)
	defer end()
	if err := Prove(again, plain.wire, plain.pod, addrs); err == nil || errors.As(err, &away) {
		t.Errorf("without capture: %v", err)
	}
}
