package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// Socket is one TCP socket of a namespace, as the kernel reports it.
type Socket struct {
	Local, Remote netip.AddrPort
	State         uint8 // TCP_ESTABLISHED and so on, linux/tcp_states.h
	Mark          uint32
	Cookie        uint64 // SO_COOKIE: never used again before the next boot
	Inode         uint32 // 0 when no process has it open (any more, or yet)
	Cgroup        uint64 // cgroup v2 id of its maker; 0 where the kernel has none
}

// States of linux/tcp_states.h.
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpSynRecv     = 3
	tcpFinWait1    = 4
	tcpFinWait2    = 5
	tcpCloseWait   = 8
	tcpLastAck     = 9
	tcpListen      = 10
	tcpClosing     = 11
)

// liveStates are those of a connection that may still carry data.
const liveStates = 1<<tcpEstablished | 1<<tcpSynSent | 1<<tcpSynRecv | 1<<tcpFinWait1 | 1<<tcpFinWait2 |
	1<<tcpCloseWait | 1<<tcpLastAck | 1<<tcpClosing

// Connections lists the TCP connections of a namespace; listeners and what is
// left of ended ones (TIME_WAIT) are not among them.
func Connections(ns *netns.NS) ([]Socket, error) { return dumpSockets(ns, liveStates) }

// Listening lists the TCP listeners of a namespace.
func Listening(ns *netns.NS) ([]Socket, error) { return dumpSockets(ns, 1<<tcpListen) }

// isProxy reports whether the socket is one of the proxy's. An application that
// sets the mark itself only keeps its pod's drain waiting.
func (s Socket) isProxy() bool { return s.Mark&netns.MarkMask == netns.Mark }

// Uncaptured returns the cookies of those connections that bypass the proxy:
// not the proxy's own, not those the proxy is the other end of, and not those
// between two processes of the pod, which nobody would capture. Directly after
// capture began these are the connections that are older than it.
func Uncaptured(all []Socket) []uint64 {
	type pair struct{ local, remote netip.AddrPort }
	ends := make(map[pair]bool, len(all))
	for _, s := range all {
		ends[pair{s.Local, s.Remote}] = true
	}
	var out []uint64
	for _, s := range all {
		if s.isProxy() || s.State == tcpSynSent || s.Remote.Addr().IsLoopback() || ends[pair{s.Remote, s.Local}] {
			continue // a SYN that is sent again will be captured
		}
		if s.Inode == 0 && s.State != tcpSynRecv && s.State != tcpEstablished {
			continue // no process has it: only the kernel's goodbye is left
		}
		out = append(out, s.Cookie)
	}
	return out
}

// Proxied counts the connections of the pod that the proxy carries or is about
// to: its sockets but for HBONE connections, which stay open between streams. A
// stream shows as the proxy's connection with the application.
func Proxied(all []Socket) int {
	n := 0
	for _, s := range all {
		switch {
		case !s.isProxy(), s.Local.Port() == HBONEPort, s.Remote.Port() == HBONEPort:
		case s.State == tcpFinWait2 && s.Inode == 0:
			// The proxy has closed it and everything is acknowledged; only
			// the application has not closed its end.
		default:
			n++
		}
	}
	return n
}

func dumpSockets(ns *netns.NS, states uint32) ([]Socket, error) {
	var out []Socket
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
		defer unix.Close(fd)
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			if out, err = dumpFamily(fd, family, states, out); err != nil {
				return fmt.Errorf("list TCP sockets: %w", err)
			}
		}
		return nil
	})
	return out, err
}

func dumpFamily(fd int, family byte, states uint32, out []Socket) ([]Socket, error) {
	req := make([]byte, netlinkHeader+diagRequestSize)
	ne := binary.NativeEndian
	ne.PutUint32(req[0:], uint32(len(req)))
	ne.PutUint16(req[4:], sockDiagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[netlinkHeader], req[netlinkHeader+1] = family, unix.IPPROTO_TCP
	ne.PutUint32(req[netlinkHeader+4:], states)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return out, err
	}
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return out, err
		}
		var done bool
		if out, done, err = parseDump(buf[:n], out); err != nil || done {
			if errors.Is(err, unix.ENOENT) && family == unix.AF_INET6 {
				err = nil // a kernel without IPv6
			}
			return out, err
		}
	}
}

// parseDump reads one datagram of an answer; done when it is the last.
func parseDump(b []byte, out []Socket) (_ []Socket, done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= netlinkHeader {
		size, kind := int(ne.Uint32(b)), ne.Uint16(b[4:])
		if size < netlinkHeader || size > len(b) {
			return out, true, errors.New("broken message")
		}
		body := b[netlinkHeader:size]
		switch kind {
		case unix.NLMSG_DONE:
			return out, true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return out, true, errors.New("broken error message")
			}
			if code := -int32(ne.Uint32(body)); code != 0 {
				return out, true, unix.Errno(code)
			}
		case sockDiagByFamily:
			s, err := parseSocket(body)
			if err != nil {
				return out, true, err
			}
			out = append(out, s)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return out, false, nil
}

// parseSocket reads a struct inet_diag_msg and its attributes.
func parseSocket(b []byte) (Socket, error) {
	if len(b) < diagMessageSize {
		return Socket{}, errors.New("short message")
	}
	ne, be := binary.NativeEndian, binary.BigEndian
	addr := func(at []byte) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(at[:4]))
		}
		return netip.AddrFrom16([16]byte(at[:16])).Unmap()
	}
	s := Socket{
		State:  b[1],
		Local:  netip.AddrPortFrom(addr(b[8:]), be.Uint16(b[4:])),
		Remote: netip.AddrPortFrom(addr(b[24:]), be.Uint16(b[6:])),
		Cookie: uint64(ne.Uint32(b[44:])) | uint64(ne.Uint32(b[48:]))<<32,
		Inode:  ne.Uint32(b[68:]),
	}
	err := attributes(b[diagMessageSize:], func(kind uint16, value []byte) {
		switch {
		case kind == diagMark && len(value) >= 4:
			s.Mark = ne.Uint32(value)
		case kind == diagCgroup && len(value) >= 8:
			s.Cgroup = ne.Uint64(value)
		}
	})
	return s, err
}

// attributes walks netlink attributes.
func attributes(b []byte, each func(kind uint16, value []byte)) error {
	ne := binary.NativeEndian
	for len(b) >= 4 {
		size, kind := int(ne.Uint16(b)), ne.Uint16(b[2:])
		if size < 4 || size > len(b) {
			return errors.New("sock_diag: broken attribute")
		}
		each(kind, b[4:size])
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}
