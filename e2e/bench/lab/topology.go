package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/vishvananda/netlink"
)

type route struct{ to, via string }

// connect makes a veth pair with an end in each namespace.
func connect(a *netns.NS, nameA string, b *netns.NS, nameB string) error {
	return a.Do(func() error {
		raw, err := b.File().SyscallConn()
		if err != nil {
			return err
		}
		cerr := raw.Control(func(fd uintptr) {
			err = netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(fd)})
		})
		if err = errors.Join(err, cerr); err != nil {
			return fmt.Errorf("connect %s and %s: %w", nameA, nameB, err)
		}
		return nil
	})
}

// up gives a device an address and routes.
func up(ns *netns.NS, name, prefix string, routes ...route) error {
	return ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		// No link-local address: nothing here needs IPv6 neighbours.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0o644)
		a, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add %s to %s: %w", prefix, name, err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, r := range routes {
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

// cut removes a device and so the pair.
func cut(ns *netns.NS, name string) error {
	return ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		return nil
	})
}

// devices counts those of a namespace.
func devices(ns *netns.NS) (n int, err error) {
	err = ns.Do(func() error {
		links, err := netlink.LinkList()
		n = len(links)
		return err
	})
	return n, err
}

func sysctl(ns *netns.NS, name, value string) error {
	return ns.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) })
}
