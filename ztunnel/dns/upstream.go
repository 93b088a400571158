package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

var socketOptions = netns.SocketOptions{Mark: netns.Mark}

// messages are buffers for one message of any length.
var messages = sync.Pool{New: func() any { b := make([]byte, maxMessage); return &b }}

// resolvers are whom to ask: whom the pod asked, from the pod, so that whatever
// decides about its traffic decides about this as it would without us.
func (s *Server) resolvers(x *exchange) []netip.AddrPort {
	if x.server.IsValid() {
		return []netip.AddrPort{x.server}
	}
	return s.cfg.Resolvers
}

// forward sends a question on as it is and gives the answer as it came, but for
// the id: ours is random, as is the port, so that nobody outside can guess both.
func (s *Server) forward(ctx context.Context, x *exchange) ([]byte, error) {
	if err := s.cfg.Share.Take(live.CostConn); err != nil {
		return nil, err
	}
	defer s.cfg.Share.Give(live.CostConn)
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	try := s.overUDP
	if x.protocol == "tcp" {
		try = s.overTCP
	}
	err := errNoResolver
	for _, server := range s.resolvers(x) {
		var answer []byte
		if answer, err = try(ctx, x, server); err == nil {
			binary.BigEndian.PutUint16(answer, binary.BigEndian.Uint16(x.raw))
			return answer, nil
		}
	}
	return nil, err
}

// renumbered is a copy of a query with a fresh id, in buf.
func renumbered(buf, query []byte) ([]byte, uint16, error) {
	var id [2]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, 0, err
	}
	buf = append(buf[:0], query...)
	copy(buf, id[:])
	return buf, binary.BigEndian.Uint16(id[:]), nil
}

func (s *Server) overUDP(ctx context.Context, x *exchange, server netip.AddrPort) ([]byte, error) {
	c, err := s.cfg.Namespace.DialUDP(server, socketOptions)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// The end of ctx ends a read at once; deadlines below are of the tries.
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	query, id, err := renumbered(make([]byte, 0, len(x.raw)), x.raw)
	if err != nil {
		return nil, err
	}
	// Only a question may be asked twice: an update could be made twice.
	tries := 1
	if x.isQuery() {
		tries = 2
	}
	for try := range tries {
		if _, err := c.Write(query); err != nil {
			return nil, err
		}
		if try+1 < tries {
			_ = c.SetReadDeadline(time.Now().Add(firstTry))
		} else {
			_ = c.SetReadDeadline(time.Time{}) // ctx has the rest
		}
		for {
			answer, err := await(raw, query, id)
			var timeout net.Error
			switch {
			case errors.As(err, &timeout) && timeout.Timeout():
			case err != nil && ctx.Err() != nil:
				return nil, fmt.Errorf("%s has not answered within %s", server, upstreamTimeout)
			case err != nil:
				return nil, err
			case answer != nil:
				return answer, nil
			default:
				continue // forged, or late for another
			}
			break
		}
	}
	return nil, fmt.Errorf("%s has not answered within %s", server, upstreamTimeout)
}

// await reads one datagram, and gives it if it is the answer. It waits without a
// buffer: a thousand questions to a resolver that is away are then cheap.
func await(raw syscall.RawConn, query []byte, id uint16) (answer []byte, err error) {
	var inner error
	err = raw.Read(func(fd uintptr) bool {
		buf := messages.Get().(*[]byte)
		defer messages.Put(buf)
		n, err := syscall.Read(int(fd), *buf)
		if err == syscall.EAGAIN || err == syscall.EINTR {
			return false
		}
		if inner = err; err == nil && answers((*buf)[:n], query, id) {
			answer = append([]byte(nil), (*buf)[:n]...)
		}
		return true
	})
	if err == nil {
		err = inner
	}
	return answer, err
}

func (s *Server) overTCP(ctx context.Context, x *exchange, server netip.AddrPort) ([]byte, error) {
	c, err := s.cfg.Namespace.DialTCP(ctx, netip.AddrPort{}, server, socketOptions)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	query, id, err := renumbered(nil, x.raw)
	if err != nil {
		return nil, err
	}
	if err := writeFrame(c, query); err != nil {
		return nil, err
	}
	for {
		answer, err := readFrame(c)
		if err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("%s has not answered within %s", server, upstreamTimeout)
			}
			return nil, err
		}
		if answers(answer, query, id) {
			return answer, nil
		}
	}
}

// readFrame reads one message of a TCP connection (RFC 1035 4.2.2).
func readFrame(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	// It grows with what arrives, not with what is promised.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(binary.BigEndian.Uint16(length[:]))); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b.Bytes(), nil
}

// writeFrame writes a message in one segment: some servers read no further than
// the first (RFC 7766 8).
func writeFrame(w io.Writer, m []byte) error {
	b := make([]byte, 2, 2+len(m))
	binary.BigEndian.PutUint16(b, uint16(len(m)))
	_, err := w.Write(append(b, m...))
	return err
}
