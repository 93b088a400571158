package ztunnel

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// In the port dialect the agent is not ours: it redirects to fixed ports,
// perhaps by NAT, and we make the listeners. SO_REUSEPORT lets two ztunnels
// overlap, as the reference does.

const (
	soReusePort     = 15 // asm-generic/socket.h
	ipTransparent   = 19 // linux/in.h
	ipv6Transparent = 75 // linux/in6.h
)

func (p *served) listen() error {
	for _, l := range []struct {
		port string
		keep func(net.Listener)
	}{
		{"15001", func(ln net.Listener) { p.out = ln }},
		{"15006", func(ln net.Listener) { p.in = ln }},
		{"15008", func(ln net.Listener) { p.hbone = append(p.hbone, ln) }},
	} {
		lc := net.ListenConfig{Control: p.captured}
		lc.SetMultipathTCP(false) // a captured MPTCP listener would not get the packets
		err := p.pod.NS.Do(func() error {
			var ln net.Listener
			err := error(syscall.EAFNOSUPPORT)
			if !p.n.cfg.IPv4Only {
				ln, err = lc.Listen(context.Background(), "tcp", "[::]:"+l.port)
			}
			if err != nil {
				ln, err = lc.Listen(context.Background(), "tcp4", "0.0.0.0:"+l.port)
			}
			if err == nil {
				l.keep(ln)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return p.listenDNS()
}

// captured makes a listener one that captured connections may be sent to.
func (p *served) captured(network, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		set := func(level, opt, v int) {
			if err == nil {
				err = syscall.SetsockoptInt(int(fd), level, opt, v)
			}
		}
		set(syscall.SOL_SOCKET, syscall.SO_MARK, netns.Mark)
		if !p.n.cfg.OwnPorts {
			set(syscall.SOL_SOCKET, soReusePort, 1)
		}
		set(syscall.SOL_IP, ipTransparent, 1)
		if network == "tcp6" || network == "udp6" {
			set(syscall.SOL_IPV6, ipv6Transparent, 1)
		}
	})
	if cerr != nil {
		return cerr
	}
	return err
}

const soOriginalDst = 80 // linux/netfilter_ipv4.h; the same number for IPv6

// originalDestination is what the client dialled before any NAT: conntrack's
// word if it has one, else the socket's address. Asking getsockname alone
// would give the redirected port.
func originalDestination(c *net.TCPConn) netip.AddrPort {
	local := live.AddrPort(c.LocalAddr())
	raw, err := c.SyscallConn()
	if err != nil {
		return local
	}
	dst := local
	_ = raw.Control(func(fd uintptr) { // a closed socket keeps its local address
		// The two structures are of the sizes of sockaddr_in (16 bytes) and at
		// least sockaddr_in6 (28); their contents are not what they are named
		// for.
		if local.Addr().Is4() {
			m, err := syscall.GetsockoptIPv6Mreq(int(fd), syscall.SOL_IP, soOriginalDst)
			if err == nil {
				b := m.Multiaddr
				dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
			}
			return
		}
		m, err := syscall.GetsockoptIPv6MTUInfo(int(fd), syscall.SOL_IPV6, soOriginalDst)
		if err == nil {
			port := m.Addr.Port
			dst = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), port>>8|port<<8)
		}
	})
	return dst
}
