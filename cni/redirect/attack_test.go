package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// checksum is RFC 1071 over the parts in turn; all but the last are even.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// synSegment is a SYN with options, 40 bytes, so that it can be cut at 8, 16, 24.
func synSegment(src, dst netip.AddrPort) []byte {
	b := make([]byte, 40)
	be := binary.BigEndian
	be.PutUint16(b[0:], src.Port())
	be.PutUint16(b[2:], dst.Port())
	be.PutUint32(b[4:], 0x01020304)
	b[12], b[13] = 10<<4, 0x02
	be.PutUint16(b[14:], 64240)
	copy(b[20:], []byte{2, 4, 5, 0xb4}) // MSS 1460, the rest ends the list
	pseudo := make([]byte, 4)
	pseudo[1] = unix.IPPROTO_TCP
	be.PutUint16(pseudo[2:], uint16(len(b)))
	be.PutUint16(b[16:], checksum(src.Addr().AsSlice(), dst.Addr().AsSlice(), pseudo, b))
	return b
}

func ipv4Packet(src, dst netip.Addr, id, fragment uint16, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	be := binary.BigEndian
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
	be.PutUint16(b[2:], uint16(20+len(payload)))
	be.PutUint16(b[4:], id)
	be.PutUint16(b[6:], fragment)
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	be.PutUint16(b[10:], checksum(b))
	return append(b, payload...)
}

func ipv6Packet(src, dst netip.Addr, next byte, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, payload...)
}

// fragments cuts a TCP segment into two IPv4 packets.
func fragments(src, dst netip.Addr, id uint16, first int, segment []byte) [][]byte {
	return [][]byte{
		ipv4Packet(src, dst, id, 0x2000, segment[:first]),
		ipv4Packet(src, dst, id, uint16(first/8), segment[first:]),
	}
}

// option headers: padding of six bytes (RFC 8200 4.2).
func optionsHeader(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

func fragmentHeader(next byte, offset int, more bool, id uint32) []byte {
	b := []byte{next, 0, 0, 0, 0, 0, 0, 0}
	v := uint16(offset)
	if more {
		v |= 1
	}
	binary.BigEndian.PutUint16(b[2:], v)
	binary.BigEndian.PutUint32(b[4:], id)
	return b
}

// shapes are ways to hide a SYN. whole says that the parser can see through.
type shape struct {
	name  string
	whole bool
	make  func(src, dst netip.AddrPort) [][]byte
}

func shapes() []shape {
	var all []shape
	for _, first := range []int{8, 16, 24} {
		all = append(all, shape{fmt.Sprintf("IPv4 fragment %d", first), false, func(src, dst netip.AddrPort) [][]byte {
			return fragments(src.Addr(), dst.Addr(), uint16(1000+first), first, synSegment(src, dst))
		}})
		all = append(all, shape{fmt.Sprintf("IPv6 fragment %d", first), false, func(src, dst netip.AddrPort) [][]byte {
			s := synSegment(src, dst)
			id := uint32(2000 + first)
			return [][]byte{
				ipv6Packet(src.Addr(), dst.Addr(), 44, append(fragmentHeader(6, 0, true, id), s[:first]...)),
				ipv6Packet(src.Addr(), dst.Addr(), 44, append(fragmentHeader(6, first, false, id), s[first:]...)),
			}
		}})
	}
	v6 := func(name string, whole bool, first byte, headers ...[]byte) {
		all = append(all, shape{"IPv6 " + name, whole, func(src, dst netip.AddrPort) [][]byte {
			var payload []byte
			for _, h := range headers {
				payload = append(payload, h...)
			}
			return [][]byte{ipv6Packet(src.Addr(), dst.Addr(), first, append(payload, synSegment(src, dst)...))}
		}})
	}
	v6("destination options", true, 60, optionsHeader(6))
	v6("hop-by-hop and destination options", true, 0, optionsHeader(60), optionsHeader(6))
	v6("atomic fragment", true, 44, fragmentHeader(6, 0, false, 7))
	var chain [][]byte
	for range 12 {
		chain = append(chain, optionsHeader(60))
	}
	v6("chain longer than the walk", false, 60, append(chain, optionsHeader(6))...)
	return all
}

// sendRaw sends whole IP packets as a process with CAP_NET_RAW would.
func sendRaw(t *testing.T, ns *netns.NS, dst netip.Addr, packets [][]byte) {
	t.Helper()
	within(t, ns, func() error {
		family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: dst.As16()})
		if dst.Is4() {
			family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: dst.As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, to); err != nil {
				return fmt.Errorf("send %d bytes: %w", len(p), err)
			}
		}
		return nil
	})
}

// TestHiddenSYNs sends a SYN in every shape, out of the pod and into it. It is
// either seen and captured, or dropped and counted, never let past.
//
//ambit:feature redirect-fragments redirect-extension-headers
func TestHiddenSYNs(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		// Listeners that must never see a half-open connection.
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		port := uint16(20000)
		for _, s := range shapes() {
			for _, way := range []string{"outbound", "inbound"} {
				port++
				t.Run(s.name+" "+way, func(t *testing.T) {
					from, to := c.pod, c.peer
					src, dst := podAddr4, peerAddr4
					if strings.HasPrefix(s.name, "IPv6") {
						src, dst = podAddr6, peerAddr6
					}
					if way == "inbound" {
						from, to = to, from
						src, dst = dst, src
					}
					drops := func() uint64 { return c.stat(t, "drop_fragment") + c.stat(t, "drop_unparsed") }
					seen := func() uint64 { return c.stat(t, way+"_captured") }
					dropped := drops()
					// Neighbour resolution first, so that the SYN is not queued.
					dial(t, from, at(dst, 8080))
					taken := seen()
					packets := s.make(at(src, port), at(dst, 8080))
					sendRaw(t, from, dst, packets)
					if s.whole {
						eventually(t, "one more captured", func() bool { return seen() == taken+1 })
					} else {
						eventually(t, "a drop", func() bool { return drops() > dropped })
					}
					// A SYN that got past leaves a request at the other end.
					if mark, err := findSocket(to, at(dst, 8080), at(src, port)); err == nil && (way == "outbound" || mark&netns.MarkMask != netns.Mark) {
						t.Errorf("the SYN reached the destination in the clear (mark %#x)", mark)
					}
				})
			}
		}
	})
}

// TestShapesAreReal proves that the shapes above reach a listener when nothing
// captures, so that the test above tests something.
//
//ambit:feature redirect-fragments redirect-extension-headers
func TestShapesAreReal(t *testing.T) {
	n := newTopology(t)
	startApp(t, n.peer, "peer", at(netip.IPv6Unspecified(), 8080))
	port := uint16(20000)
	for _, s := range shapes() {
		port++
		src, dst := podAddr4, peerAddr4
		if strings.HasPrefix(s.name, "IPv6") {
			src, dst = podAddr6, peerAddr6
		}
		dial(t, n.pod, at(dst, 8080))
		// The pod knows nothing of that SYN: it answers the SYN-ACK with a RST.
		before := resetsSent(t, n.pod)
		sendRaw(t, n.pod, dst, s.make(at(src, port), at(dst, 8080)))
		if strings.HasPrefix(s.name, "IPv6 fragment") && !strings.HasSuffix(s.name, "24") {
			continue // Linux wants the whole TCP header in the first fragment (RFC 8200 4.5)
		}
		eventually(t, s.name+": a SYN-ACK", func() bool { return resetsSent(t, n.pod) > before })
	}
}

// resetsSent is the namespace's Tcp OutRsts counter.
func resetsSent(t *testing.T, ns *netns.NS) int {
	t.Helper()
	var n int
	within(t, ns, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var lines []string
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(l, "Tcp: ") {
				lines = append(lines, l)
			}
		}
		names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
		for i, name := range names {
			if name == "OutRsts" {
				_, err = fmt.Sscan(values[i], &n)
			}
		}
		return err
	})
	return n
}

// TestSynCookies forces cookies, with which the last ACK of a handshake is all
// there is to see of it.
//
//ambit:feature redirect-syncookies
func TestSynCookies(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		sysctl(t, c.pod, "net/ipv4/tcp_syncookies", "2")
		for range 10 {
			for _, f := range bothFamilies {
				dial(t, c.pod, at(f.vip, 80)).expect(t, "outbound", f.pod, at(f.vip, 80))
				in := dial(t, c.peer, at(f.pod, 8080))
				in.expect(t, "inbound", f.peer, at(f.pod, 8080))
				in.expect(t, "app", f.peer, at(f.pod, 8080))
			}
		}
	})
}

// TestPortReuseOnTimeWait lets the pod's side close first, so that its end is in
// TIME_WAIT when the client comes again from the same port.
//
//ambit:feature redirect-time-wait
func TestPortReuseOnTimeWait(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := prepareCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		s := newServer(t)
		s.serve(t, c.cfg.Listeners.Inbound, func(conn *net.TCPConn) { greet(conn, "inbound") }) // and close
		c.set(t)
		for _, f := range bothFamilies {
			hinted := c.stat(t, "inbound_hinted")
			for range 5 {
				o := netns.SocketOptions{}
				var in *client
				eventually(t, "the client's own end of the last connection gone", func() bool {
					var err error
					in, err = dialFor(t, c.peer, at(f.peer, 33333), at(f.pod, 8080), o, patience)
					if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
						t.Fatal(err)
					}
					return err == nil
				})
				in.expect(t, "inbound", f.peer, at(f.pod, 8080))
				if _, err := in.r.ReadByte(); err == nil {
					t.Fatal("more than the greeting")
				}
				in.Close()
			}
			if c.stat(t, "inbound_hinted") == hinted {
				t.Fatalf("%s: no SYN met a TIME_WAIT socket", f.name)
			}
		}
	})
}

// TestHBONEPort: an application cannot have the port, nor a share of any of our
// listeners: SO_REUSEPORT needs both sides' consent, and ours do not give it.
//
//ambit:feature redirect-listeners
func TestHBONEPort(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		for _, f := range bothFamilies {
			dial(t, c.peer, at(f.pod, HBONEPort)).expect(t, "hbone", f.peer, at(f.pod, HBONEPort))
			for _, a := range []netip.Addr{f.pod, f.any} {
				if l, err := c.pod.ListenTCP(at(a, HBONEPort), netns.SocketOptions{}); !errors.Is(err, unix.EADDRINUSE) {
					l.Close()
					t.Errorf("an application took %s: %v", at(a, HBONEPort), err)
				}
			}
		}
		for _, port := range []uint16{HBONEPort, outboundPort, inboundPort, dnsPort} {
			for _, a := range []netip.Addr{netip.IPv6Unspecified(), netip.IPv4Unspecified(), podAddr4, podAddr6} {
				if err := joins(t, c.pod, at(a, port)); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("a process of the pod joined the listener at %s: %v", at(a, port), err)
				}
			}
		}
	})
}

// joins listens at an address with SO_REUSEPORT and SO_REUSEADDR.
func joins(t *testing.T, ns *netns.NS, a netip.AddrPort) (err error) {
	t.Helper()
	within(t, ns, func() error {
		family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()})
		if a.Addr().Is4() {
			family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
		}
		fd, serr := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if serr != nil {
			return serr
		}
		defer unix.Close(fd)
		for _, o := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
			if serr := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, 1); serr != nil {
				return serr
			}
		}
		if err = unix.Bind(fd, sa); err == nil {
			err = unix.Listen(fd, 1)
		}
		return nil
	})
	return err
}

// TestLateAddress: an address added after Set is not known to the programs, and
// still nothing reaches the application past the proxy.
//
//ambit:feature redirect-late-address
func TestLateAddress(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		late4, late6 := netip.MustParseAddr("10.77.0.200"), netip.MustParseAddr("fd77::200")
		within(t, c.pod, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return errors.Join(addAddr(l, late4), addAddr(l, late6))
		})
		for _, forwarding := range []string{"0", "1"} {
			sysctl(t, c.pod, "net/ipv4/ip_forward", forwarding)
			sysctl(t, c.pod, "net/ipv6/conf/all/forwarding", forwarding)
			for _, p := range []struct{ late, peer netip.Addr }{{late4, peerAddr4}, {late6, peerAddr6}} {
				in := dial(t, c.peer, at(p.late, 8080))
				in.expect(t, "inbound", p.peer, at(p.late, 8080))
				in.expect(t, "app", p.peer, at(p.late, 8080))
				dial(t, c.peer, at(p.late, HBONEPort)).expect(t, "hbone", p.peer, at(p.late, HBONEPort))
				// Nor does the pod get out from it.
				out, err := dialFor(t, c.pod, at(p.late, 0), at(p.peer, 8080), netns.SocketOptions{}, patience)
				if err != nil {
					t.Fatal(err)
				}
				out.expect(t, "outbound", p.late, at(p.peer, 8080))
			}
		}
	})
}

// TestEmptySlotsFailClosed: without listeners nothing passes, in either
// direction, and service resumes on the same connections once slots are filled.
//
//ambit:feature redirect-fail-closed
func TestEmptySlotsFailClosed(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := prepareCaptured(t, changes...)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		first := c.cfg.Listeners
		c.set(t)
		first.Close() // the last descriptors: their slots are empty now
		for _, f := range bothFamilies {
			for _, d := range []struct {
				ns *netns.NS
				to netip.AddrPort
			}{{c.pod, at(f.peer, 8080)}, {c.peer, at(f.pod, 8080)}, {c.peer, at(f.pod, HBONEPort)}} {
				if conn, err := dialFor(t, d.ns, netip.AddrPort{}, d.to, netns.SocketOptions{}, 200*time.Millisecond); err == nil {
					t.Errorf("%s answered: %s", d.to, conn.line(t))
				}
			}
		}
		eventually(t, "drops counted", func() bool { return c.stat(t, "drop_no_listener") > 0 })
		// A client that is still trying gets through after the repair.
		type result struct {
			c   *client
			err error
		}
		waiting := make(chan result, 1)
		go func() {
			conn, err := dialFor(t, c.pod, netip.AddrPort{}, at(peerAddr4, 8080), netns.SocketOptions{}, patience)
			waiting <- result{conn, err}
		}()
		next, err := Listen(c.pod, c.cfg.Addrs)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { next.Close() })
		c.cfg.Listeners = next
		startProxy(t, c.pod, next)
		c.set(t)
		got := <-waiting
		if got.err != nil {
			t.Fatal(got.err)
		}
		got.c.expect(t, "outbound", podAddr4, at(peerAddr4, 8080))
		dial(t, c.peer, at(podAddr6, 8080)).expect(t, "inbound", peerAddr6, at(podAddr6, 8080))
	})
}

// cgroupRoot is where cgroup v2 is: beside v1, or alone.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	t.Skip("no cgroup v2")
	return ""
}

// TestForgedMark: the proxy's mark is worth nothing in a foreign cgroup.
//
//ambit:feature redirect-mark
func TestForgedMark(t *testing.T) {
	mine := ownCgroup(t)
	foreign := mine + 1<<40
	variants(t, func(t *testing.T, changes ...change) {
		for _, p := range []struct {
			name    string
			allowed uint64
			takes   string
		}{{"own cgroup", mine, "peer"}, {"foreign cgroup", foreign, "outbound"}} {
			t.Run(p.name, func(t *testing.T) {
				c := newCaptured(t, append(changes, func(_ *Options, cfg *Config) { cfg.ProxyCgroups = []uint64{p.allowed} })...)
				startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
				for _, f := range bothFamilies {
					before := c.stat(t, "mark_forged")
					m, err := dialFor(t, c.pod, netip.AddrPort{}, at(f.peer, 8080), netns.SocketOptions{Mark: netns.Mark}, patience)
					if err != nil {
						t.Fatal(err)
					}
					m.expect(t, p.takes, f.pod, at(f.peer, 8080))
					if forged := c.stat(t, "mark_forged") - before; (forged > 0) != (p.allowed == foreign) {
						t.Errorf("%s: %d forged packets counted", f.name, forged)
					}
				}
			})
		}
	})
}

// cgroupID is the inode of the cgroup's folder.
func cgroupID(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Clean(path), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestReconnectedSocket: a socket whose first connection was direct becomes a
// client again. What was known of it must not carry the new connection past.
//
//ambit:feature redirect-verdict
func TestReconnectedSocket(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := prepareCaptured(t, changes...)
		startProxy(t, c.pod, c.cfg.Listeners)
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		var old []*client
		for _, f := range bothFamilies {
			o := dial(t, c.pod, at(f.peer, 8080))
			o.expect(t, "peer", f.pod, at(f.peer, 8080))
			old = append(old, o)
		}
		c.set(t)
		for i, f := range bothFamilies {
			old[i].ping(t, "still direct")
			reconnect(t, old[i], at(f.peer, 8080))
			old[i].expect(t, "outbound", f.pod, at(f.peer, 8080))
		}
	})
}

// reconnect makes a new client of a connected socket.
func reconnect(t *testing.T, c *client, to netip.AddrPort) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	sa := unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	var inner error
	if err := rc.Control(func(fd uintptr) {
		unspec := unix.RawSockaddrInet6{Family: unix.AF_UNSPEC}
		if _, _, errno := unix.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&unspec)), unix.SizeofSockaddrInet6); errno != 0 {
			inner = errno
			return
		}
		inner = unix.Connect(int(fd), sa)
	}); err != nil {
		t.Fatal(err)
	}
	if inner != nil && !errors.Is(inner, unix.EINPROGRESS) {
		t.Fatal(inner)
	}
}
