package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/ambitmesh/ambit/ztunnel/live"
)

// ServeUDP answers the datagrams of conn until it is closed, and returns when no
// question is under way any more. The end of ctx gives up those that are.
func (s *Server) ServeUDP(ctx context.Context, conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	own, _ := conn.LocalAddr().(*net.UDPAddr)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		d, err := receive(raw)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if errors.Is(err, syscall.ECONNREFUSED) {
				continue // of an answer to a client that has gone
			}
			return err
		}
		if !s.cfg.Rewritten && own != nil && uninvited(d, uint16(own.Port)) {
			continue
		}
		if isResponse(d.message) {
			// Of a name server in the pod, to one that asks from its own port 53.
			// It goes on as it came; to answer it could go on for ever.
			if !s.cfg.Rewritten {
				_ = s.send(d.from, d.to, d.message) // a datagram may be lost
			}
			continue
		}
		q := read(d.message)
		x := &exchange{question: q, raw: d.message, protocol: "udp", limit: q.size(), client: d.from, server: d.to}
		if s.cfg.Rewritten || own != nil && toSelf(d.from, d.to, uint16(own.Port)) {
			x.server = netip.AddrPort{}
		}
		reply := func(b []byte) {
			if err := s.answerTo(conn, own, d, b); err != nil {
				s.told(x, "answer cannot be sent: "+err.Error(), nil)
			}
		}
		if answer, done := s.local(x); done {
			reply(answer)
			continue
		}
		select {
		case s.waiting <- struct{}{}:
		default:
			// The client asks again; what can be answered at once still is.
			s.dropped(live.Errorf(live.QuotaPod, "%d questions wait for a resolver", maxWaiting))
			continue
		}
		wg.Go(func() {
			defer func() { <-s.waiting }()
			if answer := s.resolve(ctx, x); answer != nil {
				reply(answer)
			}
		})
	}
}

// answerTo sends an answer to where a question came from, as whom it was put to.
func (s *Server) answerTo(conn *net.UDPConn, own *net.UDPAddr, d datagram, answer []byte) error {
	if !s.cfg.Rewritten {
		return s.send(d.to, d.from, answer)
	}
	_, err := conn.WriteToUDPAddrPort(answer, d.from)
	if errors.Is(err, net.ErrClosed) && own != nil {
		// Nothing more is taken in, since a successor shares the port. What was
		// taken in is still answered.
		err = s.send(own.AddrPort(), d.from, answer)
	}
	return err
}

// toSelf reports whether a question was put to our own listener by its own port,
// which only a process of the pod can do: to send it on would bring it back.
func toSelf(from, to netip.AddrPort, own uint16) bool {
	return to.Port() == own && (from.Addr() == to.Addr() || to.Addr().IsLoopback())
}

// uninvited reports whether a datagram has no business here. Capture brings what
// was sent to port 53; by our own port anybody can send who reaches the pod. Of
// that, questions of the pod itself are answered. Others' are not, nor is what is
// no question sent on: it would come back here, again and again.
func uninvited(d datagram, own uint16) bool {
	return d.to.Port() == own && (isResponse(d.message) || !toSelf(d.from, d.to, own))
}

// datagram is a question as it arrived; to is whom it was meant for.
type datagram struct {
	message  []byte
	from, to netip.AddrPort
}

// Control messages of the original destination: linux/in.h, linux/in6.h.
const (
	ipOrigDstAddr   = 20
	ipv6OrigDstAddr = 74
)

// receive reads one datagram. It waits without a buffer.
func receive(raw syscall.RawConn) (d datagram, err error) {
	var inner error
	err = raw.Read(func(fd uintptr) bool {
		buf := messages.Get().(*[]byte)
		defer messages.Put(buf)
		var oob [128]byte
		n, control, _, from, err := syscall.Recvmsg(int(fd), *buf, oob[:], 0)
		if err == syscall.EAGAIN || err == syscall.EINTR {
			return false
		}
		if inner = err; err != nil {
			return true
		}
		d.message = append([]byte(nil), (*buf)[:n]...)
		switch a := from.(type) {
		case *syscall.SockaddrInet4:
			d.from = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
		case *syscall.SockaddrInet6:
			d.from = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
		}
		d.to = originalOf(oob[:control])
		return true
	})
	if err == nil {
		err = inner
	}
	return d, err
}

// originalOf finds the original destination among control messages.
func originalOf(oob []byte) netip.AddrPort {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}
	}
	var to netip.AddrPort
	for _, m := range messages {
		// struct sockaddr_in and sockaddr_in6: family, port, (flow), address.
		switch {
		case m.Header.Level == syscall.SOL_IP && m.Header.Type == ipOrigDstAddr && len(m.Data) >= 8:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Data[4:8])), binary.BigEndian.Uint16(m.Data[2:]))
		case m.Header.Level == syscall.SOL_IPV6 && m.Header.Type == ipv6OrigDstAddr && len(m.Data) >= 24:
			to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(m.Data[8:24])).Unmap(), binary.BigEndian.Uint16(m.Data[2:]))
		}
	}
	return to
}
