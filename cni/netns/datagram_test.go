package netns

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestImpostor sends from addresses that nobody has, and from ports that others
// hold, to sockets that accept nothing else.
func TestImpostor(t *testing.T) {
	ns := fresh(t)
	for _, tc := range []struct{ own, server string }{{"127.0.0.1", "192.0.2.53"}, {"::1", "2001:db8::53"}} {
		own, server := netip.MustParseAddr(tc.own), netip.AddrPortFrom(netip.MustParseAddr(tc.server), 53)
		f, err := ns.ListenUDP(netip.AddrPortFrom(own, 0), SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.FilePacketConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		taken, err := ns.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), 53), SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		i, err := ns.Impostor(own.Is6(), Mark)
		if err != nil {
			t.Fatal(err)
		}
		to := pc.LocalAddr().(*net.UDPAddr).AddrPort()
		for _, size := range []int{0, 1, 2, 511, 512, 40000, 65000} {
			sent := bytes.Repeat([]byte{0xa5}, size)
			if err := i.Send(server, to, sent); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			buf := make([]byte, 1<<16)
			pc.SetReadDeadline(time.Now().Add(time.Minute))
			n, from, err := pc.(*net.UDPConn).ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatal(err)
			}
			if unmap(from) != server || !bytes.Equal(buf[:n], sent) {
				t.Errorf("%d bytes from %s, want %d from %s", n, from, size, server)
			}
		}
		if err := i.Send(server, to, make([]byte, 1<<16)); err == nil {
			t.Error("64 KiB are a datagram")
		}
		if err := i.Send(netip.MustParseAddrPort("[fd00::1]:1"), netip.MustParseAddrPort("10.0.0.1:1"), nil); err == nil || !strings.Contains(err.Error(), "families") {
			t.Error(err)
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
		taken.Close()
	}
}

// TestDatagramChecksum: receivers on other devices than loopback verify it. The
// sum over everything, checksum included, is all ones (RFC 1071).
func TestDatagramChecksum(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"10.96.0.10:53", "10.0.0.1:40000"}, {"[2001:db8::53]:53", "[fd00::1]:65535"}, {"255.255.255.255:65535", "0.0.0.0:0"},
	} {
		for size := range 70 {
			payload := bytes.Repeat([]byte{0xff, 0x10, 0x03}, size)[:size]
			p, err := datagram(netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to), payload)
			if err != nil {
				t.Fatal(err)
			}
			header, addresses := ip4Header, p[12:20]
			if p[0]>>4 == 6 {
				header, addresses = ip6Header, p[8:40]
			}
			sum := ones(ones(uint32(unix.IPPROTO_UDP)+uint32(len(p)-header), addresses), p[header:])
			for sum > 0xffff {
				sum = sum>>16 + sum&0xffff
			}
			if sum != 0xffff {
				t.Fatalf("%s to %s, %d bytes: %#x", c.from, c.to, size, sum)
			}
		}
	}
}

func TestDialUDP(t *testing.T) {
	ns := fresh(t)
	f, err := ns.ListenUDP(netip.MustParseAddrPort("127.0.0.1:0"), SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	to := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	c, err := ns.DialUDP(to, SocketOptions{Mark: Mark})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	_, from, err := pc.ReadFrom(make([]byte, 8))
	if err != nil || from.String() != c.LocalAddr().String() {
		t.Fatal(from, err)
	}
	pc.Close()
	// Nobody there any more: the kernel says so.
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 8)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
	if _, err := ns.DialUDP(netip.MustParseAddrPort("192.0.2.1:53"), SocketOptions{}); err == nil || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("no route: %v", err)
	}
}
