package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// struct inet_diag_req_v2 and inet_diag_msg of linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21 // Linux 4.5, CONFIG_INET_DIAG_DESTROY
	diagRequestSize  = 56
	diagMessageSize  = 72
	diagMark         = 15 // INET_DIAG_MARK, for CAP_NET_ADMIN
	diagCgroup       = 21 // INET_DIAG_CGROUP_ID, Linux 5.8
	netlinkHeader    = 16
)

// request is a question about s; a dump looks at the states only.
func request(flags, kind uint16, s Socket, states uint32) []byte {
	b := make([]byte, netlinkHeader+diagRequestSize)
	ne, be := binary.NativeEndian, binary.BigEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], kind)
	ne.PutUint16(b[6:], flags)
	body := b[netlinkHeader:]
	body[0], body[1] = s.family, unix.IPPROTO_TCP
	ne.PutUint32(body[4:], states)
	id := body[8:]
	be.PutUint16(id[0:], s.Local.Port())
	be.PutUint16(id[2:], s.Remote.Port())
	putAddr(id[4:20], s.family, s.Local.Addr())
	putAddr(id[20:36], s.family, s.Remote.Addr())
	ne.PutUint32(id[36:], s.device)
	ne.PutUint32(id[40:], uint32(s.Cookie))
	ne.PutUint32(id[44:], uint32(s.Cookie>>32))
	return b
}

// putAddr writes an address the way sockets of the family have it: IPv4 inside
// IPv6 where a dual-stack socket speaks it.
func putAddr(to []byte, family uint8, a netip.Addr) {
	switch {
	case !a.IsValid():
	case family == unix.AF_INET6:
		b := a.As16()
		copy(to, b[:])
	default:
		copy(to, a.AsSlice())
	}
}

// ask sends one request and reads the one datagram that answers it.
func ask(fd int, req []byte) ([]byte, error) {
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	buf := make([]byte, 4<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %w", err)
		}
		return buf[:n], nil
	}
}

func dumpFamily(fd int, family byte, states uint32, out []Socket) ([]Socket, error) {
	req := request(unix.NLM_F_REQUEST|unix.NLM_F_DUMP, sockDiagByFamily, Socket{family: family}, states)
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

// parseAnswer reads what the question for one connection got. A lookup falls
// back to listeners, which are not what was asked for.
func parseAnswer(b []byte, local netip.AddrPort) (Socket, error) {
	found, _, err := parseDump(b, nil)
	switch {
	case err != nil:
		return Socket{}, fmt.Errorf("look for the socket: %w", err)
	case len(found) == 0:
		return Socket{}, errors.New("sock_diag: short answer")
	case found[0].State == Listening || found[0].Local.Port() != local.Port():
		return Socket{}, errors.New("only a listener is there")
	}
	return found[0], nil
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
		family: b[0],
		device: ne.Uint32(b[40:]),
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
