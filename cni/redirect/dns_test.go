package redirect

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// TestDNSIsCaptured asks a name server nobody has, over UDP, with a socket that is
// connected and one that is not, and TCP.
//
//ambit:feature redirect-dns
func TestDNSIsCaptured(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		newServer(t).serve(t, c.cfg.Listeners.DNSTCP, echo("dns"))
		pc, err := net.FilePacketConn(c.cfg.Listeners.DNSUDP)
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		for _, f := range bothFamilies {
			server := at(f.vip, 53)
			dial(t, c.pod, server).expect(t, "dns", f.pod, server)

			ask, err := c.pod.ListenUDP(at(f.any, 0), netns.SocketOptions{})
			if err != nil {
				t.Fatal(err)
			}
			loose, err := net.FilePacketConn(ask)
			ask.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer loose.Close()
			var bound net.Conn
			within(t, c.pod, func() error {
				bound, err = net.Dial("udp", server.String())
				return err
			})
			defer bound.Close()
			if _, err := loose.(*net.UDPConn).WriteToUDPAddrPort([]byte("?"), server); err != nil {
				t.Fatal(err)
			}
			answered(t, c.pod, pc.(*net.UDPConn), loose.(*net.UDPConn), f.pod, server)
			if _, err := bound.Write([]byte("?")); err != nil {
				t.Fatal(err)
			}
			answered(t, c.pod, pc.(*net.UDPConn), bound.(*net.UDPConn), f.pod, server)
		}
	})
}

// answered takes a question from the pod at the proxy's socket and answers it as
// the server that was asked.
func answered(t *testing.T, ns *netns.NS, proxy, client *net.UDPConn, pod netip.Addr, server netip.AddrPort) {
	t.Helper()
	from, to := receive(t, proxy)
	if from.Addr() != pod || to != server {
		t.Fatalf("question from %s to %s, want from %s to %s", from, to, pod, server)
	}
	answerAs(t, ns, to, from)
	_ = client.SetReadDeadline(time.Now().Add(patience))
	_, back, err := client.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	if unmapped(back) != server {
		t.Fatalf("answer from %s, want %s", back, server)
	}
}

func unmapped(a netip.AddrPort) netip.AddrPort { return at(a.Addr().Unmap(), a.Port()) }

// receive reads one datagram and its original destination.
func receive(t *testing.T, c *net.UDPConn) (from, to netip.AddrPort) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	oob := make([]byte, 256)
	_, n, _, from, err := c.ReadMsgUDPAddrPort(make([]byte, 16), oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		switch sa, _ := unix.ParseOrigDstAddr(&m); sa := sa.(type) {
		case *unix.SockaddrInet4:
			to = at(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		case *unix.SockaddrInet6:
			if !to.IsValid() {
				to = at(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
			}
		}
	}
	return unmapped(from), to
}

func answerAs(t *testing.T, ns *netns.NS, from, to netip.AddrPort) {
	t.Helper()
	f, err := ns.ListenUDP(from, netns.SocketOptions{Mark: netns.Mark, Transparent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.(*net.UDPConn).WriteToUDPAddrPort([]byte("!"), to); err != nil {
		t.Fatal(err)
	}
}
