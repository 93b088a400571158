package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DialTCP connects from inside the namespace. local may be zero (the kernel
// chooses), or an address with port 0 (the kernel chooses the port for the
// four-tuple at connect time). An address that is not the namespace's own needs
// o.Transparent. ctx bounds the connect; errors.Is sees ctx's cause and the
// kernel's errno.
func (n *NS) DialTCP(ctx context.Context, local, remote netip.AddrPort, o SocketOptions) (*net.TCPConn, error) {
	remote = unmap(remote)
	if local.Addr().IsValid() {
		local = unmap(local)
	}
	c, err := n.dial(ctx, local, remote, o)
	if err == nil && selfConnected(c, remote) {
		// Simultaneous open with ourselves: the kernel picked the remote's port
		// as ours while nobody listened there.
		_ = c.Close()
		c, err = nil, os.NewSyscallError("connect", unix.ECONNREFUSED)
	}
	if err != nil {
		op := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(remote), Err: err}
		if local.Addr().IsValid() {
			op.Source = net.TCPAddrFromAddrPort(local)
		}
		return nil, fmt.Errorf("%s: %w", n.name, op)
	}
	return c, nil
}

func selfConnected(c *net.TCPConn, remote netip.AddrPort) bool {
	l, ok := c.LocalAddr().(*net.TCPAddr)
	return ok && unmap(l.AddrPort()) == remote
}

func (n *NS) dial(ctx context.Context, local, remote netip.AddrPort, o SocketOptions) (*net.TCPConn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !remote.Addr().IsValid() || remote.Port() == 0 {
		return nil, errors.New("no remote address")
	}
	if local.Addr().IsValid() && local.Addr().Is4() != remote.Addr().Is4() {
		return nil, errors.New("local and remote address families differ")
	}
	fd := -1
	err := n.visit(func() (err error) {
		family := unix.AF_INET
		if remote.Addr().Is6() {
			family = unix.AF_INET6
		}
		fd, err = newSocket("tcp", family, unix.SOCK_NONBLOCK)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := apply(fd, dialOptions(family, local, o)); err != nil {
			return err
		}
		if local.Addr().IsValid() {
			return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(local)))
		}
		return nil
	})
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, err
	}
	err = unix.Connect(fd, sockaddr(remote))
	f := os.NewFile(uintptr(fd), "tcp "+remote.String())
	defer f.Close() // net.FileConn below works on a duplicate
	switch {
	case err == nil:
	case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EINTR):
		if err := await(ctx, f); err != nil {
			return nil, err
		}
	default:
		return nil, os.NewSyscallError("connect", err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func dialOptions(family int, local netip.AddrPort, o SocketOptions) []option {
	opts := common(family, o)
	if !local.Addr().IsValid() {
		return opts
	}
	if o.Transparent {
		opts = append(opts, option{"IP_FREEBIND", unix.SOL_IP, unix.IP_FREEBIND, 1})
		if family == unix.AF_INET6 {
			opts = append(opts, option{"IPV6_FREEBIND", unix.SOL_IPV6, unix.IPV6_FREEBIND, 1})
		}
	}
	if local.Port() == 0 {
		// Without it bind would take a port that is free towards every
		// remote; with it connect takes one that is free towards this remote.
		return append(opts, option{"IP_BIND_ADDRESS_NO_PORT", unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1})
	}
	return append(opts, option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
}

// await waits on the poller until the connect under way on f has ended.
func await(ctx context.Context, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var inner error
	err = rc.Write(func(fd uintptr) bool {
		var done bool
		done, inner = connected(int(fd))
		return done
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case inner != nil:
		return os.NewSyscallError("connect", inner)
	}
	return nil
}

// connected asks without waiting. The poller may wake us for nothing, so a
// clean SO_ERROR alone does not mean the handshake is over.
func connected(fd int) (bool, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(p, 0); err != nil || n == 0 {
		if err == unix.EINTR {
			err = nil
		}
		return err != nil, err
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, err
	}
	if code != 0 {
		return true, unix.Errno(code)
	}
	return true, nil
}
