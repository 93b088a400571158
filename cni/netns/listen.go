package netns

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// defaultBacklog is what the kernel cuts down to net.core.somaxconn, whose own
// default it is since Linux 5.4.
const defaultBacklog = 4096

// SocketOptions are set before bind, so that everything a socket does, and what
// it accepts, carries them.
type SocketOptions struct {
	// Mark is SO_MARK; accepted sockets inherit it. 0 sets none.
	Mark uint32
	// Transparent sets IP_TRANSPARENT and IPV6_TRANSPARENT: the socket may own
	// addresses that are not the namespace's. Dialled sockets get FREEBIND too.
	Transparent bool
	// Backlog of a listener; 0 takes the kernel's default maximum.
	Backlog int
}

// ListenTCP makes a listening socket inside the namespace: non-blocking, closed
// on exec, without MPTCP and without SO_REUSEPORT (a process of the same uid
// could join the group and take connections). [::] takes IPv4 too; where the
// kernel has no IPv6 it becomes 0.0.0.0.
func (n *NS) ListenTCP(addr netip.AddrPort, o SocketOptions) (*os.File, error) {
	return n.listen("tcp", addr, o, func(fd int) error {
		backlog := o.Backlog
		if backlog <= 0 {
			backlog = defaultBacklog
		}
		return os.NewSyscallError("listen", unix.Listen(fd, backlog))
	})
}

// ListenUDP makes a bound datagram socket inside the namespace that reports the
// original destination of what it receives (IP_RECVORIGDSTADDR).
func (n *NS) ListenUDP(addr netip.AddrPort, o SocketOptions) (*os.File, error) {
	return n.listen("udp", addr, o, func(int) error { return nil })
}

func (n *NS) listen(network string, addr netip.AddrPort, o SocketOptions, ready func(fd int) error) (*os.File, error) {
	addr = unmap(addr)
	fd := -1
	err := n.visit(func() error {
		family := unix.AF_INET
		if addr.Addr().Is6() {
			family = unix.AF_INET6
		}
		var err error
		fd, err = newSocket(network, family, 0)
		if err == unix.EAFNOSUPPORT && addr.Addr() == netip.IPv6Unspecified() {
			addr = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
			family = unix.AF_INET
			fd, err = newSocket(network, family, 0)
		}
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := prepare(fd, network, family, addr, o); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(addr)); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return ready(fd)
	})
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("%s: listen %s %s: %w", n.name, network, addr, err)
	}
	// A file of a descriptor that is non-blocking already would join this
	// process's poller, which would then wake for every connection, although
	// the proxy is another process. net.FileListener registers its own copy.
	f := os.NewFile(uintptr(fd), network+" "+addr.String()+" in "+n.name)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: listen %s %s: non-blocking: %w", n.name, network, addr, err)
	}
	return f, nil
}

// newSocket names the protocol so that TCP is TCP where MPTCP is the default.
func newSocket(network string, family, flags int) (int, error) {
	kind, proto := unix.SOCK_STREAM, unix.IPPROTO_TCP
	if network == "udp" {
		kind, proto = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	}
	return unix.Socket(family, kind|unix.SOCK_CLOEXEC|flags, proto)
}

type option struct {
	name              string
	level, key, value int
}

// prepare sets the options of a socket that will receive.
func prepare(fd int, network string, family int, addr netip.AddrPort, o SocketOptions) error {
	opts := common(family, o)
	if network == "tcp" {
		// Lets a listener come back while its old connections are in
		// TIME_WAIT; two listeners on one port stay impossible.
		opts = append(opts, option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	} else {
		opts = append(opts, option{"IP_RECVORIGDSTADDR", unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1})
		if family == unix.AF_INET6 {
			opts = append(opts, option{"IPV6_RECVORIGDSTADDR", unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1})
		}
	}
	if family == unix.AF_INET6 {
		only := 1
		if addr.Addr().IsUnspecified() {
			only = 0
		}
		opts = append(opts, option{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, only})
	}
	return apply(fd, opts)
}

func common(family int, o SocketOptions) []option {
	var opts []option
	if o.Mark != 0 {
		opts = append(opts, option{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)})
	}
	if o.Transparent {
		// The IPv4 option on an IPv6 socket covers its IPv4-mapped traffic.
		opts = append(opts, option{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1})
		if family == unix.AF_INET6 {
			opts = append(opts, option{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1})
		}
	}
	return opts
}

func apply(fd int, opts []option) error {
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, o.level, o.key, o.value); err != nil {
			return fmt.Errorf("set %s to %#x: %w", o.name, o.value, err)
		}
	}
	return nil
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
