package kubelab

import (
	"fmt"
	"net/netip"
	"strings"
)

// The IPv6 half of a dual-stack cluster: the same shape as the IPv4 one, the
// last byte (or the fourth group of a pod network) tells the node.
var controlPlaneIP6 = netip.MustParseAddr("fd30::a")

const (
	podCIDR6     = "fd44::/48"
	serviceCIDR6 = "fd96::/112"
	dnsIP6       = "fd96::a"
)

func nodeIP6(i int) netip.Addr {
	a := netip.MustParseAddr("fd30::").As16()
	a[15] = byte(10 + i)
	return netip.AddrFrom16(a)
}

func nodeCIDR6(i int) netip.Prefix {
	a := netip.MustParseAddr("fd44::").As16()
	a[7] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// families writes settings that take one value per family. The first is the
// primary family: of status.podIP, of probes, of Services that ask for none.
func (o Options) families(v4, v6 string) []string {
	switch {
	case o.IPv6First:
		return []string{v6, v4}
	case o.DualStack:
		return []string{v4, v6}
	}
	return []string{v4}
}

// primary is the first of families.
func (o Options) primary(v4, v6 string) string { return o.families(v4, v6)[0] }

func (o Options) joined(v4, v6 string) string { return strings.Join(o.families(v4, v6), ",") }

// podNetwork is the node's part of the pod network, one per family.
func (o Options) podNetwork(node int) []string {
	return o.families(nodeCIDR(node).String(), nodeCIDR6(node).String())
}

// nodeAddresses are what the node is known by, with the prefix of its link.
func (o Options) nodeAddresses(node int) []netip.Prefix {
	v4, v6 := nodeIP(node), nodeIP6(node)
	if node == 0 {
		v4, v6 = controlPlaneIP, controlPlaneIP6
	}
	out := []netip.Prefix{netip.PrefixFrom(v4, 24)}
	if o.DualStack {
		out = append(out, netip.PrefixFrom(v6, 64))
	}
	return out
}

// path is a route: to a network, or to everything when that is not valid.
type path struct {
	to  netip.Prefix
	via netip.Addr
}

// podPaths lead to the pods of the other nodes.
func (o Options) podPaths(from int) []path {
	var out []path
	for i := 1; i <= o.Nodes; i++ {
		if i == from {
			continue
		}
		out = append(out, path{nodeCIDR(i), nodeIP(i)})
		if o.DualStack {
			out = append(out, path{nodeCIDR6(i), nodeIP6(i)})
		}
	}
	return out
}

// defaultPaths lead to the control plane, which is all the outside there is.
func (o Options) defaultPaths() []path {
	out := []path{{via: controlPlaneIP}}
	if o.DualStack {
		out = append(out, path{via: controlPlaneIP6})
	}
	return out
}

// forwarding are the sysctls that make a router of a namespace.
func (o Options) forwarding(more map[string]string) map[string]string {
	more["net/ipv4/ip_forward"] = "1"
	if o.DualStack {
		more["net/ipv6/conf/all/forwarding"] = "1"
	}
	return more
}

// conflistFor: no masquerade, so that pods see each other's addresses across
// nodes. The addresses in use are kept on the node's /run, which a reboot
// empties.
func (o Options) conflistFor(node int) string {
	var ranges, routes []string
	for _, p := range o.podNetwork(node) {
		ranges = append(ranges, fmt.Sprintf(`[{"subnet": %q}]`, p))
	}
	for _, r := range o.families("0.0.0.0/0", "::/0") {
		routes = append(routes, fmt.Sprintf(`{"dst": %q}`, r))
	}
	return fmt.Sprintf(conflist, o.shape(node).plugin(), strings.Join(ranges, ", "), strings.Join(routes, ", "))
}
