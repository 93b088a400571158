package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// diagMessage is a well-formed message about a socket on port 80 with a mark.
func diagMessage(state byte, mark uint32) []byte {
	body := make([]byte, diagMessageSize+8)
	body[0], body[1] = unix.AF_INET, state
	binary.BigEndian.PutUint16(body[4:], 80)
	attr := body[diagMessageSize:]
	ne := binary.NativeEndian
	ne.PutUint16(attr, 8)
	ne.PutUint16(attr[2:], diagMark)
	ne.PutUint32(attr[4:], mark)
	return body
}

func dumpAnswer(messages ...[]byte) []byte {
	var out []byte
	for _, m := range messages {
		b := make([]byte, netlinkHeader, netlinkHeader+len(m))
		binary.NativeEndian.PutUint32(b, uint32(netlinkHeader+len(m)))
		binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
		out = append(out, append(b, m...)...)
	}
	return out
}

func failure(errno unix.Errno) []byte {
	b := make([]byte, netlinkHeader+4)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_ERROR)
	binary.NativeEndian.PutUint32(b[netlinkHeader:], uint32(-int32(errno)))
	return b
}

func TestParseDump(t *testing.T) {
	one := diagMessage(Established, Mark)
	whole := dumpAnswer(one, one)
	got, done, err := parseDump(whole, nil)
	if len(got) != 2 || done || err != nil || !got[0].IsProxy() || got[0].Local.Port() != 80 {
		t.Fatalf("%+v, %v, %v", got, done, err)
	}
	for n := range whole {
		if got, _, _ := parseDump(whole[:n], nil); len(got) > 1 {
			t.Errorf("%d of %d bytes gave %d sockets", n, len(whole), len(got))
		}
	}
	if _, done, err := parseDump(failure(unix.EOPNOTSUPP), nil); !done || !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("%v, %v", done, err)
	}
	if _, _, err := parseDump(failure(0), nil); err != nil {
		t.Errorf("a mere acknowledgement: %v", err)
	}
}

func TestParseAnswer(t *testing.T) {
	local := netip.MustParseAddrPort("10.0.0.1:80")
	good := dumpAnswer(diagMessage(Established, Mark))
	if s, err := parseAnswer(good, local); err != nil || s.Mark != Mark {
		t.Errorf("%+v, error %v", s, err)
	}
	if _, err := parseAnswer(dumpAnswer(diagMessage(Listening, Mark)), local); err == nil {
		t.Error("a listener was taken for a connection")
	}
	if _, err := parseAnswer(good, netip.MustParseAddrPort("10.0.0.1:81")); err == nil {
		t.Error("a socket on another port was taken")
	}
	for n := range good {
		if s, err := parseAnswer(good[:n], local); err == nil {
			t.Errorf("%d of %d bytes: %+v", n, len(good), s)
		}
	}
	if _, err := parseAnswer(failure(unix.ENOENT), local); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no such socket: %v", err)
	}
}

func FuzzParseDump(f *testing.F) {
	one := diagMessage(Established, Mark)
	f.Add(dumpAnswer(one, one))
	f.Add(dumpAnswer(one[:40]))
	f.Add(failure(unix.ENOENT))
	f.Add([]byte{20, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = parseDump(b, nil)
		_, _ = parseAnswer(b, netip.MustParseAddrPort("10.0.0.1:80"))
	})
}

// joined is both ends of a connection inside the namespace.
func joined(t *testing.T, ns *NS, listen, dial string) (client, server *net.TCPConn) {
	t.Helper()
	ln := listening(t, ns, listen)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	c, err := ns.DialTCP(context.Background(), netip.AddrPort{}, netip.MustParseAddrPort(net.JoinHostPort(dial, port)), SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c, s.(*net.TCPConn)
}

func listening(t *testing.T, ns *NS, at string) net.Listener {
	t.Helper()
	f, err := ns.ListenTCP(netip.MustParseAddrPort(at), SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// end is the socket of one end as the namespace lists it.
func end(t *testing.T, ns *NS, c *net.TCPConn) Socket {
	t.Helper()
	ap := func(a net.Addr) netip.AddrPort {
		p := a.(*net.TCPAddr).AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	all, err := ns.Connections()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Local == ap(c.LocalAddr()) && s.Remote == ap(c.RemoteAddr()) {
			return s
		}
	}
	t.Fatalf("%s to %s is not among %+v", c.LocalAddr(), c.RemoteAddr(), all)
	return Socket{}
}

// TestDestroy ends exactly the connections named, in each family, and IPv4 on a
// dual-stack socket too: with a reset for the peer, so that both ends know.
//
//ambit:feature policy-older-destroyed
func TestDestroy(t *testing.T) {
	ns := fresh(t)
	for _, c := range []struct{ name, listen, dial string }{
		{"IPv4", "127.0.0.1:0", "127.0.0.1"},
		{"IPv6", "[::1]:0", "::1"},
		{"IPv4 on a dual-stack socket", "[::]:0", "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := joined(t, ns, c.listen, c.dial)
			other, otherServer := joined(t, ns, c.listen, c.dial)
			s := end(t, ns, server)
			results, err := ns.Destroy([]Socket{s})
			if err != nil {
				t.Fatal(err)
			}
			if errors.Is(results[0], unix.EOPNOTSUPP) {
				t.Skip("the kernel has no CONFIG_INET_DIAG_DESTROY")
			}
			if results[0] != nil {
				t.Fatal(results[0])
			}
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer reads %v, not a reset", err)
			}
			if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("the application reads %v", err)
			}
			if results, err := ns.Destroy([]Socket{s}); err != nil || !errors.Is(results[0], unix.ENOENT) {
				t.Errorf("a second time: %v, %v", results, err)
			}
			// One that has the addresses of another, but is not it.
			forged := end(t, ns, otherServer)
			forged.Cookie++
			if results, err := ns.Destroy([]Socket{forged}); err != nil || results[0] == nil {
				t.Errorf("another socket's addresses: %v, %v", results, err)
			}
			if _, err := other.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			if _, err := otherServer.Read(make([]byte, 1)); err != nil {
				t.Errorf("another connection: %v", err)
			}
		})
	}
}

func TestConnectionIsFound(t *testing.T) {
	ns := fresh(t)
	_, server := joined(t, ns, "[::]:0", "127.0.0.1")
	want := end(t, ns, server)
	if s, err := ns.Connection(want.Local, want.Remote); err != nil || s.Cookie != want.Cookie {
		t.Errorf("%+v, %v; want %+v", s, err, want)
	}
	if _, err := ns.Connection(want.Local, netip.MustParseAddrPort("127.0.0.1:1")); err == nil {
		t.Error("a connection that is not there")
	}
}

func TestLocalPorts(t *testing.T) {
	ns := fresh(t)
	if err := ns.Do(func() error {
		fd, err := unix.Open("/proc/sys/net/ipv4/ip_local_port_range", unix.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte("40000 40100"))
		return err
	}); err != nil {
		t.Skipf("the range cannot be set here: %v", err)
	}
	if first, last, err := ns.LocalPorts(); first != 40000 || last != 40100 || err != nil {
		t.Errorf("%d to %d, %v", first, last, err)
	}
}

// TestUncaptured decides about pairs of sockets.
func TestUncaptured(t *testing.T) {
	pod, peer, gone := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("10.0.0.3:40000")
	for _, c := range []struct {
		name string
		all  []Socket
		want int
	}{
		{"an older one", []Socket{{Local: pod, Remote: peer, State: Established, Inode: 1}}, 1},
		{"not accepted yet", []Socket{{Local: pod, Remote: peer, State: Established}}, 1},
		{"half made", []Socket{{Local: pod, Remote: peer, State: SynRecv}}, 1},
		{"half closed", []Socket{{Local: pod, Remote: peer, State: CloseWait, Inode: 1}}, 1},
		{"a SYN will come again", []Socket{{Local: pod, Remote: peer, State: SynSent, Inode: 1}}, 0},
		{"nobody's", []Socket{{Local: pod, Remote: peer, State: LastAck}}, 0},
		{"the proxy's", []Socket{{Local: pod, Remote: peer, State: Established, Mark: Mark, Inode: 1}}, 0},
		{"carried by the proxy", []Socket{{Local: pod, Remote: peer, State: Established, Inode: 1},
			{Local: peer, Remote: pod, State: Established, Mark: Mark, Inode: 1}}, 0},
		{"closed by the proxy, not by the application", []Socket{{Local: pod, Remote: peer, State: CloseWait, Inode: 1},
			{Local: peer, Remote: pod, State: FinWait2}}, 0},
		{"of the pod with itself", []Socket{{Local: pod, Remote: peer, State: Established, Inode: 1},
			{Local: peer, Remote: pod, State: Established, Inode: 1}, {Local: pod, Remote: gone, State: Established, Inode: 1}}, 1},
		{"on loopback", []Socket{{Local: pod, Remote: netip.MustParseAddrPort("[::1]:1"), State: Established, Inode: 1}}, 0},
	} {
		if got := Uncaptured(c.all); len(got) != c.want {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
