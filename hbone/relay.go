package hbone

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
)

// relay is what a stream joined to a TCP connection has beyond a stream.
//
// TCP to peer is the goroutine that called Relay. Peer to TCP has none: the
// connection reader writes straight into the socket, without blocking, and
// only what the socket does not take is kept and drained by a goroutine that ends
// with it.
type relay struct {
	s   *Stream
	tcp *net.TCPConn
	raw syscall.RawConn

	// Guarded by recvHalf.mu.
	draining bool
	ended    bool // everything from the peer, its end included, was passed on
	peerDone bool // the peer reads no further either: nothing is left to wait for
	pieces   [][]byte
	writeFn  func(fd uintptr) bool
	writeN   int
	writeErr error

	// Owned by the goroutine in Relay.
	readFn  func(fd uintptr) bool
	buf     *frameBuf
	taken   int // credit taken for the read under way
	readN   int
	readErr error
	starved bool // there was no credit or no room in the queue
	atEOF   bool

	// For awaitCredit.
	checkTimer *time.Timer
	check      bool // guarded by sendHalf.mu
}

// maxCheck is how far apart looks at the socket of a stalled tunnel get.
const maxCheck = 30 * time.Second

// Relay joins the stream to tcp, both ways, until both directions have ended,
// and closes both. It returns nil if they ended in order, half-closes passed
// on. A reset of tcp becomes RST_STREAM(CONNECT_ERROR) and one of the stream a
// reset of tcp; the error says which side it was. It may be called once, and
// not together with Read or Write.
func (s *Stream) Relay(tcp *net.TCPConn) error {
	raw, err := tcp.SyscallConn()
	if err != nil {
		s.Reset()
		tcp.Close()
		return fmt.Errorf("relay: %w", err)
	}
	rel := &relay{s: s, tcp: tcp, raw: raw}
	rel.readFn, rel.writeFn = rel.readFD, rel.writeFD
	r := &s.recv
	r.mu.Lock()
	r.relay = rel
	failed := r.err
	if failed == nil {
		if r.backlog.n > 0 {
			s.startDrainLocked()
		} else if r.eof {
			s.passEndLocked()
		}
	}
	r.mu.Unlock()

	if failed == nil {
		rel.pump()
	}

	// The pump has ended: in order with the socket at EOF and everything passed
	// on, or because one side failed.
	r.mu.Lock()
	for r.err == nil && !r.relay.ended || r.relay.draining {
		r.changed.Wait()
	}
	err = r.err
	r.mu.Unlock()
	if err != nil {
		_ = tcp.SetLinger(0) // close with a reset
	}
	tcp.Close()
	return err
}

// pump moves bytes from the socket to the peer until it or the stream ends.
func (rel *relay) pump() {
	s := rel.s
	for {
		rel.taken, rel.readN, rel.readErr, rel.starved = 0, 0, nil, false
		err := rel.raw.Read(rel.readFn)
		if rel.starved {
			if !rel.awaitCredit() {
				return
			}
			continue
		}
		if err == nil && rel.readErr != nil {
			err = os.NewSyscallError("read", rel.readErr)
		}
		s.refund(rel.taken - rel.readN)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// Set by whoever ended the stream, or passed on its end.
			rel.drop()
			return
		case err != nil:
			rel.drop()
			s.localReset("read", err)
			return
		case rel.readN == 0:
			rel.drop()
			if s.CloseWrite() != nil {
				return
			}
			s.recv.mu.Lock()
			ended := rel.ended
			s.recv.mu.Unlock()
			if ended {
				return
			}
			// Stay on the socket: a reset may still come.
			rel.atEOF = true
		default:
			rel.send()
		}
	}
}

// send queues what was read. A buffer the queue has no need of stays for the next
// read.
func (rel *relay) send() {
	s, n := rel.s, rel.readN
	putDataHeader(rel.buf.b[:], n, s.id)
	s.sent.Add(uint64(n))
	if s.c.out.data(s, rel.buf, frameHeaderLen+n) {
		rel.buf = nil
	}
}

func (rel *relay) drop() {
	if rel.buf != nil {
		frameBufs.Put(rel.buf)
		rel.buf = nil
	}
}

// readFD is called by the poller when the socket may be readable. Neither
// buffer nor credit is held while it is not: idle tunnels would use up both.
func (rel *relay) readFD(fd uintptr) bool {
	if rel.atEOF {
		return rel.watchFD(fd)
	}
	s := rel.s
	s.send.mu.Lock()
	if s.send.err == nil && s.queued.Load() < maxQueued {
		rel.taken = s.reserveLocked(maxPayload)
	}
	s.send.mu.Unlock()
	if rel.taken == 0 {
		rel.starved = true
		rel.drop()
		return true
	}
	if rel.buf == nil {
		rel.buf = frameBufs.Get().(*frameBuf)
	}
	for {
		n, err := syscall.Read(int(fd), rel.buf.b[frameHeaderLen:frameHeaderLen+rel.taken])
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			s.refund(rel.taken)
			rel.taken = 0
			rel.drop()
			return false
		}
		rel.readN, rel.readErr = max(n, 0), err
		return true
	}
}

// watchFD waits for a socket that has ended in order to fail nevertheless.
func (rel *relay) watchFD(fd uintptr) bool {
	soerr, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil || soerr == 0 {
		return false
	}
	rel.readErr = syscall.Errno(soerr)
	return true
}

// awaitCredit waits until there is something to send with; false means that
// stream or socket has ended. The poller says nothing about the socket meanwhile,
// so it is looked at from time to time: an application that died must not be
// waited for because the other one is stuck.
func (rel *relay) awaitCredit() bool {
	s := rel.s
	h := &s.send
	every := time.Second
	h.mu.Lock()
	if rel.checkTimer == nil {
		rel.checkTimer = time.AfterFunc(every, func() {
			h.mu.Lock()
			rel.check = true
			h.changed.Broadcast()
			h.mu.Unlock()
		})
	} else {
		rel.checkTimer.Reset(every)
	}
	defer func() {
		rel.checkTimer.Stop()
		h.mu.Unlock()
	}()
	rel.check = false
	for h.err == nil {
		if s.queued.Load() < maxQueued {
			if n := s.reserveLocked(1); n > 0 {
				h.mu.Unlock()
				s.refund(n)
				h.mu.Lock()
				return h.err == nil
			}
		}
		if rel.check {
			rel.check = false
			h.mu.Unlock()
			rel.readErr = nil
			err := rel.raw.Control(func(fd uintptr) { rel.watchFD(fd) })
			if err == nil && rel.readErr != nil {
				err = os.NewSyscallError("read", rel.readErr)
			}
			if err != nil {
				s.localReset("read", err)
			}
			h.mu.Lock()
			every = min(2*every, maxCheck)
			rel.checkTimer.Reset(every)
			continue
		}
		h.changed.Wait()
	}
	return false
}

// localReset ends the stream because the socket failed.
func (s *Stream) localReset(op string, err error) {
	s.refuse(http2.ErrCodeConnect, fmt.Errorf("local connection: %s: %w", op, err))
}

// write makes one attempt to write pieces; what the socket does not take is not an
// error. recvHalf.mu is held.
func (rel *relay) write(pieces [][]byte) (int, error) {
	rel.pieces, rel.writeN, rel.writeErr = pieces, 0, nil
	err := rel.raw.Write(rel.writeFn)
	rel.pieces = nil
	if err == nil && rel.writeErr != nil {
		err = os.NewSyscallError("write", rel.writeErr)
	}
	return rel.writeN, err
}

// unsent is how many bytes the kernel holds that the application's end has no
// room for. A socket takes some MB that nobody reads.
func (rel *relay) unsent() int {
	n := 0
	_ = rel.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n
}

func (rel *relay) writeFD(fd uintptr) bool {
	for {
		var n int
		var err error
		if len(rel.pieces) == 1 {
			n, err = syscall.Write(int(fd), rel.pieces[0])
		} else {
			n, err = unix.Writev(int(fd), rel.pieces)
		}
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			err = nil
		}
		rel.writeN, rel.writeErr = max(n, 0), err
		return true
	}
}

// startDrainLocked sees to it that a goroutine drains the backlog. Relay waits for it.
func (s *Stream) startDrainLocked() {
	if rel := s.recv.relay; !rel.draining {
		rel.draining = true
		go s.drain(rel)
	}
}

// drain writes the backlog into the socket, blocking, until there is none.
func (s *Stream) drain(rel *relay) {
	r := &s.recv
	var vec net.Buffers
	r.mu.Lock()
	for r.backlog.n > 0 && r.err == nil {
		q := r.backlog // what arrives meanwhile queues behind it, as draining is set
		r.backlog = backlog{budget: q.budget}
		r.mu.Unlock()

		var err error
		for err == nil && q.n > 0 {
			vec = vec[:0]
			n := 0
			for c := q.head; c != nil && len(vec) < 16; c = c.next {
				vec = append(vec, c.b[c.r:c.w])
				n += c.w - c.r
			}
			v := vec
			_, err = v.WriteTo(rel.tcp)
			for k := len(vec); k > 0; k-- {
				q.drop(q.head.w - q.head.r)
			}
			s.held.Add(int64(-n))
			r.mu.Lock()
			c := s.consumedLocked(n)
			r.mu.Unlock()
			s.giveCredit(c)
		}
		s.held.Add(int64(-q.n))
		q.clear()
		if err != nil {
			s.localReset("write", err)
		}
		r.mu.Lock()
	}
	rel.draining = false
	s.unlistLocked()
	if r.eof && r.err == nil {
		s.passEndLocked()
	}
	r.changed.Broadcast()
	r.mu.Unlock()
}

// passEndLocked passes the peer's END_STREAM on, once everything before it was.
func (s *Stream) passEndLocked() {
	r := &s.recv
	rel := r.relay
	if rel.draining || r.backlog.n > 0 || r.err != nil {
		return
	}
	if !rel.ended {
		rel.ended = true
		_ = rel.tcp.CloseWrite() // fails only if the socket has failed, which the pump sees
	}
	r.changed.Broadcast()
	if rel.peerDone || s.halves.Load()&sendEnded != 0 {
		_ = rel.tcp.SetReadDeadline(past) // nothing left to read for
	}
}
