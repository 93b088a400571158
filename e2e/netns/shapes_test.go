package netns_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shape is how a CNI plugin connects the pods of a world to their nodes.
type shape interface {
	// wire connects the nodes by a device wire0 on each.
	wire(w *world)
	// prepare makes what all pods of a node share; the wire is up.
	prepare(w *world, n *node)
	// connect gives the pod its eth0; host is the name of the node's end.
	connect(w *world, p *pod, host string)
}

// direct is the part that most shapes have in common: a veth pair between the
// nodes, and nothing shared.
type direct struct{}

func (direct) wire(w *world)         { join(w.t, w.a.ns, "wire0", w.b.ns, "wire0") }
func (direct) prepare(*world, *node) {}

// ptpShape is a veth pair per pod and a route to it on the node: the ptp
// plugin, and what kubelab has. mtu is of both ends, 0 for the kernel's default.
type ptpShape struct {
	direct
	mtu int
}

var ptp = ptpShape{}

func (s ptpShape) connect(w *world, p *pod, host string) {
	p.device = host
	w.plug(p, host, "eth0", p.addrs, 1, family.everything)
	s.resize(w.t, p)
}

func (s ptpShape) resize(t testing.TB, p *pod) {
	t.Helper()
	if s.mtu == 0 {
		return
	}
	within(t, p.node.ns, func() error { return setMTU(p.device, s.mtu) })
	within(t, p.ns, func() error { return setMTU("eth0", s.mtu) })
}

// bridgeShape is one bridge per node that all its pods hang on, and that is
// their gateway: the bridge plugin (kubenet's cbr0), flannel.
type bridgeShape struct {
	direct
	hairpin bool
	// filtered sends bridged frames through iptables, as Kubernetes nodes do.
	filtered bool
}

func (s bridgeShape) prepare(w *world, n *node) {
	t := w.t
	within(t, n.ns, func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cbr0"}}) })
	for _, v := range []string{"", "6"} {
		// Per namespace, and not there without br_netfilter.
		on := "0"
		if s.filtered {
			on = "1"
		}
		within(t, n.ns, func() error {
			err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-ip"+v+"tables", []byte(on), 0o644)
			if errors.Is(err, os.ErrNotExist) && !s.filtered {
				return nil
			}
			return err
		})
	}
	gateway := link{prefixes: []string{router(1)}}
	for _, f := range w.families {
		gateway.prefixes = append(gateway.prefixes, wide(f, f.pod(n.number, 1)))
	}
	configure(t, n.ns, "cbr0", gateway)
}

func (s bridgeShape) connect(w *world, p *pod, host string) {
	t := w.t
	p.device = host
	join(t, p.node.ns, host, p.ns, "eth0")
	within(t, p.node.ns, func() error {
		bridge, err := netlink.LinkByName("cbr0")
		if err != nil {
			return err
		}
		l, err := netlink.LinkByName(host)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(l, bridge), netlink.LinkSetHairpin(l, s.hairpin), netlink.LinkSetUp(l))
	})
	inside := link{}
	for _, a := range p.addrs {
		f := familyOf(a)
		inside.prefixes = append(inside.prefixes, wide(f, a))
		inside.routes = append(inside.routes, route{f.everything(), f.pod(p.node.number, 1).String()})
	}
	configure(t, p.ns, "eth0", inside)
}

// wide is an address with the prefix of all pods of its node.
func wide(f family, a netip.Addr) string { return a.String() + f.pick("/24", "/64") }

// gatewayShape gives a pod one address without a network, and a gateway that
// nobody has: the node answers for it. Calico (proxy_arp) and, static, the
// Amazon VPC plugin, which adds routing rules of its own.
type gatewayShape struct {
	direct
	static bool
}

const (
	gateway4 = "169.254.1.1"
	gateway6 = "fe80::ecee:eeff:feee:eeee" // of the MAC below (RFC 4291, appendix A)
)

var gatewayMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

func (s gatewayShape) prepare(w *world, n *node) {
	// proxy_arp answers for what the node has a route to, over another device.
	within(w.t, n.ns, func() error {
		l, err := netlink.LinkByName("wire0")
		if err != nil {
			return err
		}
		for _, f := range w.families {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(f.wireAddr(3 - n.number))}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s gatewayShape) connect(w *world, p *pod, host string) {
	t := w.t
	p.device = host
	join(t, p.node.ns, host, p.ns, "eth0")
	outside, inside := link{prefixes: []string{gateway6 + "/64"}}, link{}
	for _, a := range p.addrs {
		gw := familyOf(a).pick(gateway4, gateway6)
		outside.routes = append(outside.routes, route{single(a), ""})
		inside.prefixes = append(inside.prefixes, single(a))
		inside.routes = append(inside.routes, route{single(netip.MustParseAddr(gw)), ""}, route{familyOf(a).everything(), gw})
	}
	within(t, p.node.ns, func() error {
		l, err := netlink.LinkByName(host)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(l, gatewayMAC); err != nil || s.static {
			return err
		}
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/conf/"+host+"/proxy_arp", []byte("1"), 0o644),
			os.WriteFile("/proc/sys/net/ipv4/neigh/"+host+"/proxy_delay", []byte("0"), 0o644))
	})
	configure(t, p.node.ns, host, outside)
	configure(t, p.ns, "eth0", inside)
	if !s.static {
		return
	}
	within(t, p.ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, a := range p.addrs {
			err := netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: net.ParseIP(familyOf(a).pick(gateway4, gateway6)), HardwareAddr: gatewayMAC})
			if err != nil {
				return err
			}
		}
		return nil
	})
	// To the pod by the main table, from it by the table of its network card.
	within(t, p.node.ns, func() error {
		wire, err := netlink.LinkByName("wire0")
		if err != nil {
			return err
		}
		for _, a := range p.addrs {
			f := familyOf(a)
			card := &netlink.Route{LinkIndex: wire.Attrs().Index, Table: 2, Gw: net.ParseIP(f.wireAddr(3 - p.node.number))}
			if err := netlink.RouteReplace(card); err != nil {
				return err
			}
			one := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
			to, from := netlink.NewRule(), netlink.NewRule()
			to.Dst, to.Priority, to.Table = one, 512, unix.RT_TABLE_MAIN
			from.Src, from.Priority, from.Table = one, 1536, 2
			if err := errors.Join(netlink.RuleAdd(to), netlink.RuleAdd(from)); err != nil {
				return err
			}
		}
		return nil
	})
}

// childShape makes pods out of the node's own network card: macvlan, ipvlan,
// VLAN. Pods are neighbours of the nodes in one network with a router in it;
// a node cannot reach its own pods.
type childShape struct {
	make func(parent int, number int) netlink.Link
}

func (childShape) wire(w *world) {
	lan := newNS(w.t)
	forward(w.t, lan)
	within(w.t, lan, func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan"}}) })
	for _, n := range []*node{w.a, w.b} {
		port := "port" + strconv.Itoa(n.number)
		join(w.t, lan, port, n.ns, "wire0")
		within(w.t, lan, func() error {
			bridge, err := netlink.LinkByName("lan")
			if err != nil {
				return err
			}
			l, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetMaster(l, bridge), netlink.LinkSetUp(l))
		})
	}
	configure(w.t, lan, "lan", link{prefixes: append(w.list(func(f family) string { return f.lan(f.pod(0, 1)) }), router(9))})
}

// lan is an address with the prefix of all pods of all nodes.
func (f family) lan(a netip.Addr) string { return a.String() + f.pick("/16", "/48") }

// prepare makes the node a neighbour of its pods: it looks for them, and they do
// not hear it.
func (childShape) prepare(w *world, n *node) {
	configure(w.t, n.ns, "wire0", link{prefixes: w.list(func(f family) string { return f.lan(f.pod(0, 100+n.number)) })})
}

func (s childShape) connect(w *world, p *pod, _ string) {
	t := w.t
	err := p.node.ns.Do(func() error {
		parent, err := netlink.LinkByName("wire0")
		if err != nil {
			return err
		}
		child := s.make(parent.Attrs().Index, w.pods)
		if err := netlink.LinkAdd(child); err != nil {
			return err
		}
		return withFD(p.ns.File(), func(fd int) error { return netlink.LinkSetNsFd(child, fd) })
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no devices of the kind")
	}
	if err != nil {
		t.Fatal(err)
	}
	within(t, p.ns, func() error {
		l, err := netlink.LinkByName("child" + strconv.Itoa(w.pods))
		if err != nil {
			return err
		}
		return netlink.LinkSetName(l, "eth0")
	})
	inside := link{}
	for _, a := range p.addrs {
		f := familyOf(a)
		inside.prefixes = append(inside.prefixes, f.lan(a))
		inside.routes = append(inside.routes, route{f.everything(), f.pod(0, 1).String()})
	}
	configure(t, p.ns, "eth0", inside)
}

func childAttrs(parent, number int) netlink.LinkAttrs {
	return netlink.LinkAttrs{Name: "child" + strconv.Itoa(number), ParentIndex: parent}
}

var (
	macvlan = childShape{func(parent, number int) netlink.Link {
		return &netlink.Macvlan{LinkAttrs: childAttrs(parent, number), Mode: netlink.MACVLAN_MODE_BRIDGE}
	}}
	ipvlan = childShape{func(parent, number int) netlink.Link {
		return &netlink.IPVlan{LinkAttrs: childAttrs(parent, number), Mode: netlink.IPVLAN_MODE_L2}
	}}
)

// detachedShape is a pod whose other end is in a namespace between it and the
// node, as with plugins that keep a router or a switch of their own.
type detachedShape struct{ direct }

func (detachedShape) connect(w *world, p *pod, host string) {
	t := w.t
	between := newNS(t)
	forward(t, between)
	// The node's route leads to between, the pod's to everything.
	join(t, p.node.ns, host, between, "up0")
	join(t, between, "down0", p.ns, "eth0")
	up, down, outside, inside := link{prefixes: []string{router(2)}}, link{prefixes: []string{router(1)}}, link{prefixes: []string{router(1)}}, link{}
	for _, a := range p.addrs {
		f := familyOf(a)
		gw, middle := f.pod(p.node.number, 1), f.pod(p.node.number, 100+w.pods)
		outside.prefixes = append(outside.prefixes, single(gw))
		outside.routes = append(outside.routes, route{single(middle), ""}, route{single(a), middle.String()})
		up.prefixes = append(up.prefixes, single(middle))
		up.routes = append(up.routes, route{single(gw), ""}, route{f.everything(), gw.String()})
		down.prefixes = append(down.prefixes, single(middle))
		down.routes = append(down.routes, route{single(a), ""})
		inside.prefixes = append(inside.prefixes, single(a))
		inside.routes = append(inside.routes, route{single(middle), ""}, route{f.everything(), middle.String()})
	}
	configure(t, p.node.ns, host, outside)
	configure(t, between, "up0", up)
	configure(t, between, "down0", down)
	configure(t, p.ns, "eth0", inside)
}

// setMTU is called inside the device's namespace.
func setMTU(name string, mtu int) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetMTU(l, mtu)
}
