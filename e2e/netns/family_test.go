package netns_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// family has the addresses of one IP version in a world.
type family struct{ v6 bool }

// families are those that everything in a world has.
type families []family

var (
	four, six = family{}, family{v6: true}

	onlyIPv4 = families{four}
	onlyIPv6 = families{six}
	dual     = families{four, six}
)

func (f families) String() string {
	switch {
	case len(f) > 1:
		return "dual-stack"
	case f[0].v6:
		return "IPv6"
	}
	return "IPv4"
}

// each runs a test in a world of each kind, one after the other, beside the test
// that waits for minutes.
func each(t *testing.T, test func(t *testing.T, f families), kinds ...families) {
	t.Parallel()
	if len(kinds) == 0 {
		kinds = []families{onlyIPv4, onlyIPv6, dual}
	}
	for _, f := range kinds {
		t.Run(f.String(), func(t *testing.T) { test(t, f) })
	}
}

// used is the family whose addresses tests take: in a dual-stack world the
// second, because the first gets every default.
func (f families) used() family { return f[len(f)-1] }

func (f families) list(of func(family) string) []string {
	var out []string
	for _, one := range f {
		out = append(out, of(one))
	}
	return out
}

func routes(f families, of func(family) route) []route {
	var out []route
	for _, one := range f {
		out = append(out, of(one))
	}
	return out
}

// vip is the n-th virtual address of each family; the last is the one to use.
func (f families) vip(n int) []netip.Addr {
	var out []netip.Addr
	for _, one := range f {
		out = append(out, netip.MustParseAddr(one.pick(fmt.Sprintf("10.96.0.%d", n), fmt.Sprintf("fd96::%x", n))))
	}
	return out
}

// vipAt is the n-th virtual address to use, with a port.
func (f families) vipAt(n int, port uint16) string {
	vips := f.vip(n)
	return netip.AddrPortFrom(vips[len(vips)-1], port).String()
}

func familyOf(a netip.Addr) family { return family{v6: a.Is6()} }

func (f family) pick(v4, v6 string) string {
	if f.v6 {
		return v6
	}
	return v4
}

func (f family) wire(node int) string {
	return f.pick(fmt.Sprintf("192.168.77.%d/24", node), fmt.Sprintf("fd88::%d/64", node))
}

func (f family) wireAddr(node int) string { return netip.MustParsePrefix(f.wire(node)).Addr().String() }

func (f family) control(node, end int) string {
	return f.pick(fmt.Sprintf("10.99.%d.%d/24", node, end), fmt.Sprintf("fd99:0:0:%d::%d/64", node, end))
}

func (f family) pods(node int) string {
	return f.pick(fmt.Sprintf("10.77.%d.0/24", node), fmt.Sprintf("fd77:0:0:%d::/64", node))
}

func (f family) pod(node, n int) netip.Addr {
	return netip.MustParseAddr(f.pick(fmt.Sprintf("10.77.%d.%d", node, n), fmt.Sprintf("fd77:0:0:%d::%x", node, n)))
}

// any is the unspecified address.
func (f family) any() string { return f.pick("0.0.0.0", "::") }

func (f family) loopback() string { return f.pick("127.0.0.1", "::1") }

// allPods is where the pods of all nodes are.
func (f family) allPods() string { return f.pick("10.77.0.0/16", "fd77::/48") }

// beyond is an address that the mesh knows nothing about, on the link of node a
// to the world outside; 1 is the node's own.
func (f family) beyond(n int) netip.Addr {
	return netip.MustParseAddr(f.pick(fmt.Sprintf("203.0.113.%d", n), fmt.Sprintf("2001:db8:113::%x", n)))
}

// nowhere is an address without a route.
func (f family) nowhere() netip.Addr {
	return netip.MustParseAddr(f.pick("198.51.100.1", "2001:db8:51::1"))
}

// domain is the family as socket(2) has it.
func (f family) domain() int {
	if f.v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// network is the name that package net has for a protocol in this family alone.
func (f family) network(protocol string) string { return protocol + f.pick("4", "6") }

func (f family) everything() string { return f.pick("0.0.0.0/0", "::/0") }

// single is the prefix of one address.
func single(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
