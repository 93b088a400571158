package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// ProofPort is the destination port of connections that only prove capture. The
// proxy closes them without a word.
const ProofPort = 15009

// ProofAddr4 and ProofAddr6 belong to nobody: TEST-NET-1 (RFC 5737) and the
// discard prefix (RFC 6666).
var (
	ProofAddr4 = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	ProofAddr6 = netip.AddrFrom16([16]byte{0: 0x01, 15: 1})
)

// Prove opens a connection out of the pod to an address nobody has, and one from
// the host to each of the pod's addresses. Both must end in a socket inside the
// pod's own namespace that belongs to the proxy. The kernel completes the
// handshake, so no proxy needs to be accepting yet. An error means that traffic
// of the pod is not known to be captured.
func Prove(ctx context.Context, host, pod *netns.NS, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return errors.New("prove capture: pod has no address")
	}
	var errs []error
	done := map[bool]bool{} // by family: is IPv4
	for _, a := range addrs {
		a = a.Unmap()
		to := ProofAddr6
		if a.Is4() {
			to = ProofAddr4
		}
		if !done[a.Is4()] {
			done[a.Is4()] = true
			err := proveOne(ctx, pod, pod, netip.AddrPortFrom(to, ProofPort))
			// Without a route nothing leaves for such an address; that the
			// same programs work the other way still has to be shown.
			if err != nil && !errors.Is(err, unix.ENETUNREACH) {
				errs = append(errs, fmt.Errorf("outbound from %s: %w", a, err))
			}
		}
		if err := proveOne(ctx, host, pod, netip.AddrPortFrom(a, ProofPort)); err != nil {
			errs = append(errs, fmt.Errorf("inbound to %s: %w", a, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("prove capture: %w", err)
	}
	return nil
}

func proveOne(ctx context.Context, from, pod *netns.NS, to netip.AddrPort) error {
	c, err := from.DialTCP(ctx, netip.AddrPort{}, to, netns.SocketOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetLinger(0); err != nil { // leave no TIME_WAIT behind
		return err
	}
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	mark, err := findSocket(pod, to, local)
	// Our last ACK may still be on its way through another processor.
	for try := 0; errors.Is(err, unix.ENOENT) && try < 10 && ctx.Err() == nil; try++ {
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		mark, err = findSocket(pod, to, local)
	}
	if err != nil {
		return fmt.Errorf("connection to %s was accepted, but not inside %s: %w", to, pod, err)
	}
	if mark&netns.MarkMask != netns.Mark {
		return fmt.Errorf("connection to %s was accepted inside %s by a socket that is not the proxy's (mark %#x)", to, pod, mark)
	}
	return nil
}

// struct inet_diag_req_v2 and inet_diag_msg of linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56
	diagMessageSize  = 72
	diagMark         = 15 // INET_DIAG_MARK, for CAP_NET_ADMIN
	diagCgroup       = 21 // INET_DIAG_CGROUP_ID, Linux 5.8
	netlinkHeader    = 16
)

// findSocket asks the namespace for the socket with this pair of addresses and
// returns its mark.
func findSocket(ns *netns.NS, local, remote netip.AddrPort) (uint32, error) {
	family := byte(unix.AF_INET)
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	req := make([]byte, netlinkHeader+diagRequestSize)
	ne, be := binary.NativeEndian, binary.BigEndian
	ne.PutUint32(req[0:], uint32(len(req)))
	ne.PutUint16(req[4:], sockDiagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST)
	body := req[netlinkHeader:]
	body[0], body[1] = family, unix.IPPROTO_TCP
	ne.PutUint32(body[4:], 0xffffffff) // all states
	id := body[8:]
	be.PutUint16(id[0:], local.Port())
	be.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	ne.PutUint64(id[40:], ^uint64(0)) // any cookie

	var mark uint32
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
		buf := make([]byte, 8<<10)
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
		mark, err = parseDiag(buf[:n], netip.AddrPortFrom(local.Addr(), local.Port()))
		return err
	})
	return mark, err
}

// parseDiag reads one answer. A lookup falls back to listeners, which are not
// what was asked for.
func parseDiag(b []byte, local netip.AddrPort) (uint32, error) {
	ne := binary.NativeEndian
	if len(b) < netlinkHeader+4 {
		return 0, errors.New("sock_diag: short answer")
	}
	if kind := ne.Uint16(b[4:]); kind == unix.NLMSG_ERROR {
		return 0, fmt.Errorf("look for the socket: %w", unix.Errno(-int32(ne.Uint32(b[netlinkHeader:]))))
	}
	if size := int(ne.Uint32(b)); size < len(b) && size >= netlinkHeader {
		b = b[:size]
	}
	b = b[netlinkHeader:]
	if len(b) < diagMessageSize {
		return 0, errors.New("sock_diag: short message")
	}
	if state := b[1]; state == tcpListen || binary.BigEndian.Uint16(b[4:]) != local.Port() {
		return 0, errors.New("only a listener is there")
	}
	var mark uint32
	err := attributes(b[diagMessageSize:], func(kind uint16, value []byte) {
		if kind == diagMark && len(value) >= 4 {
			mark = ne.Uint32(value)
		}
	})
	return mark, err
}
