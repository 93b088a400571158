package netns_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

//	           controller 10.99.1.1, 10.99.2.1
//	            /                        \
//	node a 192.168.77.1 ---- wire ---- node b 192.168.77.2
//	  |       |                          |
//	pods 10.77.1.x                     pods 10.77.2.x
//
// With IPv6: fd99:0:0:N::, fd88::N and fd77:0:0:N::.
//
// A node is a router. A pod has one address of each family, and a route to
// everything through its end of a veth pair, as with the ptp CNI.

func newNS(t testing.TB) *netns.NS {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func within(t testing.TB, ns *netns.NS, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// join makes a veth pair with an end in each namespace.
func join(t testing.TB, a *netns.NS, nameA string, b *netns.NS, nameB string) {
	t.Helper()
	within(t, a, func() error {
		return withFD(b.File(), func(fd int) error {
			return netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(fd)})
		})
	})
}

func withFD(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = fn(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// link is what a device gets besides its name.
type link struct {
	prefixes []string
	routes   []route
}

// up gives a device an address and routes.
func up(t testing.TB, ns *netns.NS, name, prefix string, routes ...route) {
	t.Helper()
	configure(t, ns, name, link{prefixes: []string{prefix}, routes: routes})
}

// configure gives a device what it gets, and switches it on.
func configure(t testing.TB, ns *netns.NS, name string, with link) {
	t.Helper()
	within(t, ns, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		// No link-local address: it would come, and change what is watched, at
		// a moment of its own.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0o644)
		for _, prefix := range with.prefixes {
			a, err := netlink.ParseAddr(prefix)
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD // usable at once
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("add %s to %s: %w", prefix, name, err)
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, r := range with.routes {
			dst := netip.MustParsePrefix(r.to)
			nr := &netlink.Route{LinkIndex: l.Attrs().Index,
				Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())}}
			if r.via == "" {
				nr.Scope = netlink.SCOPE_LINK
			} else {
				nr.Gw = net.ParseIP(r.via)
			}
			if err := netlink.RouteAdd(nr); err != nil {
				return fmt.Errorf("route %s via %q dev %s: %w", r.to, r.via, name, err)
			}
		}
		return nil
	})
}

type route struct{ to, via string }

// router is the link-local address of a node's end of a link: the kernel asks
// for IPv6 neighbours with it when it forwards.
func router(n int) string { return fmt.Sprintf("fe80::%d/64", n) }

func forward(t testing.TB, ns *netns.NS) {
	t.Helper()
	within(t, ns, func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644))
	})
}

// ifIndex is called inside a namespace.
func ifIndex(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}
