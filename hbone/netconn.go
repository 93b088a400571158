package hbone

import (
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/http2"
)

// A stream as a net.Conn with half-close; deadlines are in deadline.go.

// Read implements net.Conn. It returns io.EOF after the peer's orderly end.
func (s *Stream) Read(p []byte) (int, error) {
	r := &s.recv
	r.mu.Lock()
	for {
		if r.backlog.n > 0 || len(p) == 0 {
			n := r.backlog.read(p)
			s.held.Add(int64(-n))
			s.unlistLocked()
			c := s.consumedLocked(n)
			r.mu.Unlock()
			s.giveCredit(c)
			return n, nil
		}
		if err := s.readErrLocked(); err != nil {
			r.mu.Unlock()
			return 0, err
		}
		r.changed.Wait()
	}
}

// awaitRead returns when Read has something to say. Who waits with it needs no
// buffer meanwhile.
func (s *Stream) awaitRead() {
	r := &s.recv
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.backlog.n == 0 && s.readErrLocked() == nil {
		r.changed.Wait()
	}
}

// Write implements net.Conn.
func (s *Stream) Write(p []byte) (int, error) {
	done := 0
	for {
		s.send.mu.Lock()
		n := 0
		for {
			if err := s.writeErrLocked(); err != nil {
				s.send.mu.Unlock()
				return done, err
			}
			if done == len(p) {
				s.send.mu.Unlock()
				return done, nil
			}
			if s.queued.Load() < maxQueued {
				if n = s.reserveLocked(int64(min(len(p)-done, maxPayload))); n > 0 {
					break
				}
			}
			s.send.changed.Wait()
		}
		s.send.mu.Unlock()
		buf := frameBufs.Get().(*frameBuf)
		putDataHeader(buf.b[:], n, s.id)
		copy(buf.b[frameHeaderLen:], p[done:done+n])
		s.sent.Add(uint64(n))
		done += n
		if !s.c.out.data(s, buf, frameHeaderLen+n) {
			frameBufs.Put(buf)
		}
	}
}

func (s *Stream) readErrLocked() error {
	switch r := &s.recv; {
	case r.err != nil:
		return r.err
	case r.eof:
		return io.EOF
	case r.deadline.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (s *Stream) writeErrLocked() error {
	switch w := &s.send; {
	case w.err != nil:
		return w.err
	case w.closed:
		return errWriteClosed
	case w.deadline.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// CloseWrite ends our half in order; the peer reads EOF.
func (s *Stream) CloseWrite() error {
	s.send.mu.Lock()
	if s.send.err != nil || s.send.closed {
		err := s.send.err
		s.send.mu.Unlock()
		return err
	}
	s.send.closed = true
	s.halves.Or(endQueued)
	s.send.changed.Broadcast()
	s.send.mu.Unlock()
	s.c.out.endStream(s)
	s.ended(sendEnded)
	return nil
}

// Close ends both halves: ours in order, and the peer's with CANCEL if it has
// not ended it itself.
func (s *Stream) Close() error {
	_ = s.CloseWrite()
	s.sendReset(http2.ErrCodeCancel)
	s.end(net.ErrClosed, true)
	return nil
}

// streamAddr is the address of the connection under a stream.
type streamAddr netip.AddrPort

func (streamAddr) Network() string  { return "hbone" }
func (a streamAddr) String() string { return netip.AddrPort(a).String() }

// LocalAddr and RemoteAddr are those of the connection under the stream.
func (s *Stream) LocalAddr() net.Addr  { return streamAddr(s.c.local) }
func (s *Stream) RemoteAddr() net.Addr { return streamAddr(s.c.remote) }
