package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// DialUDP makes a datagram socket inside the namespace that exchanges packets
// with remote only: the kernel chooses the local address and a fresh port, and
// tells of ICMP errors.
func (n *NS) DialUDP(remote netip.AddrPort, o SocketOptions) (*net.UDPConn, error) {
	remote = unmap(remote)
	fd := -1
	err := n.visit(func() (err error) {
		family := unix.AF_INET
		if remote.Addr().Is6() {
			family = unix.AF_INET6
		}
		fd, err = newSocket("udp", family, unix.SOCK_NONBLOCK)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := apply(fd, common(family, o)); err != nil {
			return err
		}
		return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(remote)))
	})
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("%s: udp to %s: %w", n.name, remote, err)
	}
	f := os.NewFile(uintptr(fd), "udp "+remote.String())
	defer f.Close() // net.FileConn works on a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("%s: udp to %s: %w", n.name, remote, err)
	}
	return c.(*net.UDPConn), nil
}

// Impostor sends datagrams whose source is any address and port, which no bound
// socket can do while a process of the namespace holds the port. It receives
// nothing. It needs CAP_NET_RAW.
type Impostor struct {
	fd int
	v6 bool
}

// Impostor makes one for an address family, inside the namespace.
func (n *NS) Impostor(v6 bool, mark uint32) (*Impostor, error) {
	i := &Impostor{fd: -1, v6: v6}
	err := n.visit(func() (err error) {
		family := unix.AF_INET
		if v6 {
			family = unix.AF_INET6
		}
		// IPPROTO_RAW is send-only and means that we write the IP header: raw(7).
		i.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if mark == 0 {
			return nil
		}
		return os.NewSyscallError("SO_MARK", unix.SetsockoptInt(i.fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
	})
	if err != nil {
		if i.fd >= 0 {
			_ = unix.Close(i.fd)
		}
		return nil, fmt.Errorf("%s: raw socket: %w", n.name, err)
	}
	return i, nil
}

// Send sends one datagram. It does not wait: what the kernel has no room for is
// lost, as datagrams are.
func (i *Impostor) Send(from, to netip.AddrPort, payload []byte) error {
	packet, err := datagram(from, to, payload)
	if err != nil {
		return err
	}
	// Of a raw socket's destination the port means a protocol, and none is told.
	return os.NewSyscallError("sendto", unix.Sendto(i.fd, packet, 0, sockaddr(netip.AddrPortFrom(to.Addr().Unmap(), 0))))
}

// Close closes the socket. Nothing may be sent afterwards.
func (i *Impostor) Close() error { return unix.Close(i.fd) }

const (
	udpHeader = 8
	ip4Header = 20
	ip6Header = 40
	hopLimit  = 64
)

// datagram is the UDP datagram with its IP header (RFC 768, 791, 8200). The
// kernel fills in IPv4's length, identification and checksum.
func datagram(from, to netip.AddrPort, payload []byte) ([]byte, error) {
	src, dst := from.Addr().Unmap(), to.Addr().Unmap()
	if src.Is4() != dst.Is4() || !src.IsValid() {
		return nil, fmt.Errorf("datagram from %s to %s: families differ", from, to)
	}
	size := udpHeader + len(payload)
	if size > 0xffff-ip4Header {
		return nil, fmt.Errorf("datagram from %s to %s: %d bytes are too many", from, to, len(payload))
	}
	var p []byte
	if src.Is4() {
		p = make([]byte, ip4Header, ip4Header+size)
		p[0], p[8], p[9] = 4<<4|ip4Header/4, hopLimit, unix.IPPROTO_UDP
		p[6] = 0x40 // don't fragment
		s, d := src.As4(), dst.As4()
		copy(p[12:], s[:])
		copy(p[16:], d[:])
	} else {
		p = make([]byte, ip6Header, ip6Header+size)
		p[0], p[6], p[7] = 6<<4, unix.IPPROTO_UDP, hopLimit
		p[4], p[5] = byte(size>>8), byte(size)
		s, d := src.As16(), dst.As16()
		copy(p[8:], s[:])
		copy(p[24:], d[:])
	}
	at := len(p)
	p = append(p, byte(from.Port()>>8), byte(from.Port()), byte(to.Port()>>8), byte(to.Port()), byte(size>>8), byte(size), 0, 0)
	p = append(p, payload...)
	// The pseudo header is the addresses, the protocol and the length.
	addresses := p[12:20]
	if src.Is6() {
		addresses = p[8:40]
	}
	sum := ones(ones(uint32(unix.IPPROTO_UDP)+uint32(size), addresses), p[at:])
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	check := ^uint16(sum)
	if check == 0 {
		check = 0xffff // zero means there is none
	}
	p[at+6], p[at+7] = byte(check>>8), byte(check)
	return p, nil
}

// ones adds b to a ones' complement sum (RFC 1071). 64 KiB do not overflow it.
func ones(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}
