package redirect

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// TestNeighbourComesFirst: a destination on the pod's own link that nobody has
// is not captured, because its link layer address is asked for before any
// program sees a packet. The application learns what it would without a mesh,
// and nothing leaves the pod.
//
//ambit:feature redirect-neighbour
func TestNeighbourComesFirst(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		for _, f := range []struct{ version, nobody string }{{"ipv4", "10.77.0.99"}, {"ipv6", "fd77::99"}} {
			sysctl(t, c.pod, "net/"+f.version+"/neigh/eth0/retrans_time_ms", "20")
			before := c.stat(t, "outbound_captured")
			_, err := dialFor(t, c.pod, netip.AddrPort{}, at(netip.MustParseAddr(f.nobody), 80), netns.SocketOptions{}, patience)
			if !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("%s: %v", f.nobody, err)
			}
			if now := c.stat(t, "outbound_captured"); now != before {
				t.Errorf("%s: captured %d times", f.nobody, now-before)
			}
		}
	})
}

// TestRoutingRemoved: without our rule, which a privileged process of the pod
// can take away, new connections get nowhere, whether or not the pod forwards.
//
//ambit:feature redirect-fail-closed
func TestRoutingRemoved(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		within(t, c.pod, func() error {
			return errors.Join(netlink.RuleDel(captureRule(unix.AF_INET)), netlink.RuleDel(captureRule(unix.AF_INET6)))
		})
		for _, forwarding := range []string{"0", "1"} {
			sysctl(t, c.pod, "net/ipv4/ip_forward", forwarding)
			sysctl(t, c.pod, "net/ipv6/conf/all/forwarding", forwarding)
			for _, f := range bothFamilies {
				before := c.stat(t, "outbound_captured")
				conn, err := dialFor(t, c.pod, netip.AddrPort{}, at(f.peer, 8080), netns.SocketOptions{}, unanswered)
				if err == nil {
					t.Errorf("%s, forwarding %s: answered: %s", f.name, forwarding, conn.line(t))
				}
				if c.stat(t, "outbound_captured") == before {
					t.Errorf("%s, forwarding %s: the SYN was not turned around: %v", f.name, forwarding, err)
				}
				if got := seen(t, c.peer, f.pod); got != 0 {
					t.Errorf("%s, forwarding %s: the peer has %d connections with the pod", f.name, forwarding, got)
				}
			}
		}
	})
}

// seen counts a namespace's connections with an address, half-open ones too.
func seen(t *testing.T, ns *netns.NS, with netip.Addr) (n int) {
	t.Helper()
	all, err := ns.Connections()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Remote.Addr().Unmap() == with {
			n++
		}
	}
	return n
}

// TestHintsFull: a SYN on an old socket for which there is no room is dropped,
// and counted, rather than let past the proxy.
//
//ambit:feature redirect-time-wait
func TestHintsFull(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		m, err := ebpf.LoadPinnedMap(filepath.Join(c.r.opt.PinRoot, c.cfg.ContainerID, bpf.CaptureMapHints), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if m.Type() != ebpf.Hash {
			t.Fatalf("hints are a %s: one that is evicted is a way past the proxy", m.Type())
		}
		fill := func() {
			for i := range m.MaxEntries() {
				key := bpf.CaptureHint{Remote: mapped(netip.AddrFrom4([4]byte{192, 0, byte(2 + i>>16), 1})), RemotePort: uint16(i)}
				if err := m.Put(key, uint64(0)); err != nil {
					t.Fatal(err)
				}
			}
		}
		fill()
		for _, f := range bothFamilies {
			// A SYN for a connection that stands is one on an old socket.
			in := dial(t, c.peer, at(f.pod, 8080))
			in.expect(t, "inbound", f.peer, at(f.pod, 8080))
			in.expect(t, "app", f.peer, at(f.pod, 8080))
			local := in.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
			before := c.stat(t, "drop_hints_full")
			src, dst := at(f.peer, local.Port()), at(f.pod, 8080)
			if f.pod.Is4() {
				sendRaw(t, c.peer, dst.Addr(), [][]byte{ipv4Packet(src.Addr(), dst.Addr(), 1, 0, synSegment(src, dst))})
			} else {
				sendRaw(t, c.peer, dst.Addr(), [][]byte{ipv6Packet(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, synSegment(src, dst))})
			}
			eventually(t, f.name+": a drop", func() bool { return c.stat(t, "drop_hints_full") > before })
			in.ping(t, "not harmed")
		}
	})
}

// TestPacketSockets: a process with CAP_NET_RAW that writes whole frames is
// captured like anybody, unless it asks the kernel to leave out the layer where
// programs run (PACKET_QDISC_BYPASS). Then its SYN gets past: capture of what
// leaves a pod is no boundary against CAP_NET_RAW.
//
//ambit:feature redirect-raw-frames
func TestPacketSockets(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		for i, f := range bothFamilies {
			dial(t, c.pod, at(f.peer, 8080)) // so that neighbours are known
			m, err := dialFor(t, c.pod, netip.AddrPort{}, at(f.peer, 8080), netns.SocketOptions{Mark: netns.Mark}, patience)
			if err != nil {
				t.Fatal(err)
			}
			m.expect(t, "peer", f.pod, at(f.peer, 8080))
			syn := func(port uint16) []byte {
				src, dst := at(f.pod, port), at(f.peer, 8080)
				if f.pod.Is4() {
					return ipv4Packet(f.pod, f.peer, port, 0, synSegment(src, dst))
				}
				return ipv6Packet(f.pod, f.peer, unix.IPPROTO_TCP, synSegment(src, dst))
			}
			captured, resets := c.stat(t, "outbound_captured"), resetsSent(t, c.pod)
			sendFrame(t, c.pod, f.peer, syn(uint16(21000+i)), false)
			if now := c.stat(t, "outbound_captured"); now != captured+1 {
				t.Errorf("%s: a frame was captured %d times", f.name, now-captured)
			}
			captured = c.stat(t, "outbound_captured")
			sendFrame(t, c.pod, f.peer, syn(uint16(22000+i)), true)
			// The peer's SYN-ACK is for nobody here.
			eventually(t, f.name+": an answer of the peer", func() bool { return resetsSent(t, c.pod) > resets })
			if now := c.stat(t, "outbound_captured"); now != captured {
				t.Errorf("%s: a frame that leaves out the qdisc layer was captured", f.name)
			}
		}
	})
}

// sendFrame writes an IP packet to the link layer address of a neighbour.
func sendFrame(t *testing.T, ns *netns.NS, to netip.Addr, packet []byte, bypass bool) {
	t.Helper()
	within(t, ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		neighbours, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		sa := &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6}
		for _, n := range neighbours {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == to {
				copy(sa.Addr[:], n.HardwareAddr)
			}
		}
		if sa.Addr[0] == 0 && sa.Addr[5] == 0 {
			return errors.New("no neighbour " + to.String())
		}
		protocol := uint16(unix.ETH_P_IPV6)
		if to.Is4() {
			protocol = unix.ETH_P_IP
		}
		sa.Protocol = binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, protocol))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if bypass {
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
				return err
			}
		}
		return unix.Sendto(fd, packet, 0, sa)
	})
}

// TestForwarding: what a pod routes for others, in either direction, is neither
// to it nor from it: it goes on as it came, without the pod's identity.
//
//ambit:feature redirect-forwarding
func TestForwarding(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		inner := newNS(t)
		within(t, c.pod, func() error {
			if err := withFd(inner.File(), func(fd int) error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd)})
			}); err != nil {
				return err
			}
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			// Who forwards asks for IPv6 neighbours by a link-local address.
			return errors.Join(addAddr(l, netip.MustParseAddr("fe80::2")),
				up("eth1", netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("fd99::1"), netip.MustParseAddr("fe80::1")))
		})
		within(t, inner, func() error { return up("eth0", netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("fd99::2")) })
		startApp(t, inner, "inner", at(netip.IPv6Unspecified(), 8080))
		sysctl(t, c.pod, "net/ipv4/ip_forward", "1")
		sysctl(t, c.pod, "net/ipv6/conf/all/forwarding", "1")
		c.set(t)
		route := func(ns *netns.NS, to, via netip.Addr, bits int) {
			within(t, ns, func() error {
				p := netip.PrefixFrom(to, bits).Masked()
				return netlink.RouteAdd(&netlink.Route{Gw: via.AsSlice(),
					Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(bits, to.BitLen())}})
			})
		}
		for _, f := range []struct {
			pod, peer, door, inner netip.Addr
			bits                   int
		}{
			{podAddr4, peerAddr4, netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2"), 24},
			{podAddr6, peerAddr6, netip.MustParseAddr("fd99::1"), netip.MustParseAddr("fd99::2"), 64},
		} {
			route(c.peer, f.inner, f.pod, f.bits)
			route(inner, f.peer, f.door, f.bits)
			in := dial(t, c.peer, at(f.inner, 8080))
			in.expect(t, "inner", f.peer, at(f.inner, 8080))
			in.ping(t, "forwarded")
			out := dial(t, inner, at(f.peer, 8080))
			out.expect(t, "peer", f.inner, at(f.peer, 8080))
			out.ping(t, "forwarded")
			// The pod's address on that side is its own, and so is its client.
			dial(t, inner, at(f.door, 8080)).expect(t, "inbound", f.inner, at(f.door, 8080))
			dial(t, c.pod, at(f.inner, 8080)).expect(t, "outbound", f.door, at(f.inner, 8080))
		}
		if c.stat(t, "inbound_forwarded") == 0 {
			t.Error("nothing counted as forwarded")
		}
	})
}

// TestStampIsOfThePod: a stamp is secret by being random, each pod's its own,
// and an address that no device has by itself.
//
//ambit:feature redirect-stamp
func TestStampIsOfThePod(t *testing.T) {
	stamps := map[[6]uint8]bool{}
	for range 3 {
		c := prepareCaptured(t, func(_ *Options, cfg *Config) { cfg.ProbePorts = []uint16{8080} })
		c.cfg.Host = c.wire
		c.set(t)
		sw, err := readSwitches(filepath.Join(c.r.opt.PinRoot, c.cfg.ContainerID))
		if err != nil {
			t.Fatal(err)
		}
		if sw.Stamp[0]&3 != 2 {
			t.Errorf("stamp %x is not a locally administered unicast address", sw.Stamp)
		}
		stamps[sw.Stamp] = true
	}
	if len(stamps) != 3 {
		t.Errorf("three pods have %d stamps", len(stamps))
	}
}

// TestNothingIsSpliced: sockets of the pod are found by the programs, never
// joined to one another. With sk_msg an application that reads by splice(2)
// loses data.
//
//ambit:feature redirect-no-splice
func TestNothingIsSpliced(t *testing.T) {
	spec, err := bpf.LoadCapture()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		if p.Type != ebpf.SchedCLS && p.Type != ebpf.SkLookup {
			t.Errorf("program %s is a %s", name, p.Type)
		}
	}
}
