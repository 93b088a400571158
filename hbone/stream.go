package hbone

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// Stream is one tunnelled byte stream. It is a net.Conn with half-close;
// Relay joins it to a TCP connection on a faster path.
type Stream struct {
	c  *Conn
	id uint32

	sent, received atomic.Uint64
	recvWindow     atomic.Int64 // what the peer may still send
	queued         atomic.Int32 // data buffers of ours in the connection's queue
	held           atomic.Int64 // bytes in the backlog or being drained
	asked          atomic.Int64 // memory of the request, if it is large
	halves         atomic.Uint32
	refs           atomic.Int32 // holders of the connection's slot: the table, a server's handler
	in             *Incoming    // server only; immutable

	send sendHalf
	recv recvHalf
}

// sendHalf is us to the peer.
type sendHalf struct {
	mu       sync.Mutex
	changed  sync.Cond
	window   int64
	queuedIn bool // in Conn.sendWaiters; guarded by Conn.mu
	closed   bool // END_STREAM was queued
	err      error
	deadline deadline
}

// recvHalf is the peer to us. The connection reader never waits for mu longer
// than a non-blocking system call takes.
type recvHalf struct {
	mu       sync.Mutex
	changed  sync.Cond
	backlog  backlog
	window   int  // what the peer may have sent and the application not have, at most
	credit   int  // bytes the application has and the peer was not told of
	eof      bool // END_STREAM received
	err      error
	deadline deadline
	answered bool // client: the response was received
	status   int
	header   []Header
	relay    *relay // set by Relay
	listed   bool   // with the budget, for holding something
}

const (
	sendEnded   = 1 << iota // we sent END_STREAM or a reset passed
	recvEnded               // the peer did
	resetPassed             // a reset passed, or the connection failed
	endQueued               // END_STREAM is about to be queued: sendEnded follows
	bothEnded   = sendEnded | recvEnded
)

var (
	errWriteClosed = errors.New("write after CloseWrite")
	// errPeerDone ends our sending after the peer's CANCEL or NO_ERROR: in order, but
	// there is nobody to read.
	errPeerDone = errors.New("peer reads no further")
	past        = time.Unix(1, 0)
)

func newStream(c *Conn, id uint32, window int64) *Stream {
	s := &Stream{c: c, id: id}
	s.send.changed.L = &s.send.mu
	s.recv.changed.L = &s.recv.mu
	s.send.window = window
	s.recv.backlog.budget = c.cfg.Budget
	s.recv.window = int(c.cfg.FirstWindow)
	s.recvWindow.Store(int64(c.cfg.FirstWindow))
	s.refs.Store(1)
	return s
}

// unref gives the slot back when its last holder lets go.
func (s *Stream) unref() {
	if s.refs.Add(-1) == 0 {
		s.forget()
		s.c.free()
	}
}

// ended notes halves as ended, and takes the stream off the connection with the last.
func (s *Stream) ended(half uint32) {
	old := s.halves.Or(half)
	if (old|half)&bothEnded == bothEnded && old&bothEnded != bothEnded {
		s.c.remove(s)
	}
}

// end finishes the stream other than in order: nothing more is sent, and
// what has not been delivered is dropped. Without force a Read may still take
// what came before the peer's orderly end.
func (s *Stream) end(err error, force bool) {
	s.halves.Or(resetPassed)
	r := &s.recv
	r.mu.Lock()
	// With both ends under way the stream has ended in order but for the
	// bookkeeping: the peer may close the connection on reading our END_STREAM.
	orderly := r.eof && s.halves.Load()&endQueued != 0
	rel := r.relay
	if !force && orderly {
		rel = nil // it finishes by itself
	} else if r.err == nil && (force || !r.eof || rel != nil) {
		r.err = err
		s.held.Add(int64(-r.backlog.n))
		r.backlog.clear()
		s.unlistLocked()
	}
	r.changed.Broadcast()
	r.mu.Unlock()
	s.endSend(err)
	if in := s.in; in != nil {
		in.cancel(err)
	}
	if rel != nil {
		// Wakes whoever waits for the socket; Relay closes it.
		_ = rel.tcp.SetDeadline(past)
	}
	s.ended(sendEnded | recvEnded)
}

func (s *Stream) endSend(err error) {
	s.send.mu.Lock()
	if s.send.err == nil {
		s.send.err = err
	}
	s.send.changed.Broadcast()
	s.send.mu.Unlock()
}

// sendReset tells the peer, unless it has nothing to do with the stream any more.
func (s *Stream) sendReset(code http2.ErrCode) {
	if old := s.halves.Or(resetPassed); old&resetPassed == 0 && old&bothEnded != bothEnded {
		s.c.out.reset(s.id, code)
	}
}

// refuse ends the stream with an error of ours, and tells the peer.
func (s *Stream) refuse(code http2.ErrCode, err error) {
	s.sendReset(code)
	s.end(&StreamError{Code: code, Err: err}, true)
}

// Reset ends the stream as a TCP reset would: RST_STREAM(CONNECT_ERROR), RFC 9113 8.5.
func (s *Stream) Reset() { s.refuse(http2.ErrCodeConnect, ErrClosed) }

// Cancel ends the stream with RST_STREAM(CANCEL): we lost interest, which
// peers take for an orderly end.
func (s *Stream) Cancel() { s.refuse(http2.ErrCodeCancel, ErrClosed) }

// Abort ends the stream, and the TCP connection it is relayed to, with a reset on
// both sides; Relay returns err.
func (s *Stream) Abort(err error) {
	s.sendReset(http2.ErrCodeConnect)
	s.end(err, true)
}

// Conn is the connection the stream runs on.
func (s *Stream) Conn() *Conn { return s.c }

// Sent and Received count payload to and from the peer, live.
func (s *Stream) Sent() uint64     { return s.sent.Load() }
func (s *Stream) Received() uint64 { return s.received.Load() }

// Backlog is how many bytes from the peer wait for the application, live. It
// does not exceed the stream window we advertise.
func (s *Stream) Backlog() int { return int(s.held.Load()) }

// ResponseHeader is the value of a header of the peer's 200 (client side).
func (s *Stream) ResponseHeader(name string) string {
	s.recv.mu.Lock()
	defer s.recv.mu.Unlock()
	return getHeader(s.recv.header, name)
}

// Frames from the peer. All of these are called by the connection reader.

// receive accounts for a DATA frame of length bytes flow control counts, waste of
// them padding. False means that its payload is not wanted.
func (s *Stream) receive(length, waste int) bool {
	if s.halves.Load()&recvEnded != 0 {
		s.refuse(http2.ErrCodeStreamClosed, errors.New("DATA behind END_STREAM"))
		return false
	}
	if s.c.client && !s.answeredByPeer() {
		s.refuse(http2.ErrCodeProtocol, errors.New("DATA before the response"))
		return false
	}
	if s.recvWindow.Add(int64(-length)) < 0 {
		s.refuse(http2.ErrCodeFlowControl, errors.New("peer ignores the stream's window"))
		return false
	}
	if waste > 0 {
		s.recv.mu.Lock()
		c := s.consumedLocked(waste)
		s.recv.mu.Unlock()
		s.giveCredit(c)
	}
	return true
}

func (s *Stream) answeredByPeer() bool {
	s.recv.mu.Lock()
	defer s.recv.mu.Unlock()
	return s.recv.answered
}

// deliver hands over n bytes in pieces that are only valid during the call.
func (s *Stream) deliver(pieces [][]byte, n int) {
	s.received.Add(uint64(n))
	r := &s.recv
	r.mu.Lock()
	if r.err != nil {
		r.mu.Unlock()
		return
	}
	if r.relay != nil && !r.relay.draining && r.backlog.n == 0 {
		k, err := r.relay.write(pieces)
		if err != nil {
			r.mu.Unlock()
			s.localReset("write", err)
			return
		}
		if k < n {
			if why := s.c.cfg.Budget.swamped(); why != nil {
				r.mu.Unlock()
				s.refuse(http2.ErrCodeEnhanceYourCalm, why)
				return
			}
			pieces = skip(pieces, k)
			s.holdLocked(pieces)
		}
		c := s.consumedLocked(k)
		r.mu.Unlock()
		s.giveCredit(c)
		s.c.cfg.Budget.enforce()
		return
	}
	if why := s.c.cfg.Budget.swamped(); why != nil {
		r.mu.Unlock()
		s.refuse(http2.ErrCodeEnhanceYourCalm, why)
		return
	}
	s.holdLocked(pieces)
	r.mu.Unlock()
	s.c.cfg.Budget.enforce()
}

func (s *Stream) holdLocked(pieces [][]byte) {
	r := &s.recv
	for _, p := range pieces {
		s.held.Add(int64(len(p)))
		r.backlog.append(p)
	}
	if !r.listed {
		r.listed = true
		s.c.cfg.Budget.list(s, true)
	}
	if r.relay != nil {
		s.startDrainLocked()
	} else {
		r.changed.Broadcast()
	}
}

// skip drops the first n bytes of pieces.
func skip(pieces [][]byte, n int) [][]byte {
	for n >= len(pieces[0]) {
		n -= len(pieces[0])
		pieces = pieces[1:]
	}
	pieces[0] = pieces[0][n:]
	return pieces
}

// receiveEnd handles END_STREAM.
func (s *Stream) receiveEnd() {
	r := &s.recv
	r.mu.Lock()
	if !r.eof {
		r.eof = true
		r.changed.Broadcast()
		if r.relay != nil {
			s.passEndLocked()
		}
	}
	r.mu.Unlock()
	s.ended(recvEnded)
}

// receiveReset handles RST_STREAM. CANCEL and NO_ERROR are how other
// implementations let go of a stream they are done with.
func (s *Stream) receiveReset(code http2.ErrCode) {
	err := &StreamError{Code: code, Remote: true}
	if code != http2.ErrCodeCancel && code != http2.ErrCodeNo || s.c.client && !s.answeredByPeer() {
		s.end(err, true)
		return
	}
	s.halves.Or(resetPassed)
	s.endSend(errPeerDone)
	r := &s.recv
	r.mu.Lock()
	r.eof = true
	r.changed.Broadcast()
	if r.relay != nil {
		r.relay.peerDone = true
		s.passEndLocked()
	}
	r.mu.Unlock()
	if in := s.in; in != nil {
		in.cancel(err)
	}
	s.ended(sendEnded | recvEnded)
}

// response handles a header block for a stream of ours.
func (s *Stream) response(h *block) error {
	if s.answeredByPeer() {
		return s.trailers(h)
	}
	bad := func(err error) error {
		s.refuse(http2.ErrCodeProtocol, err)
		return nil
	}
	if h.tooBig {
		return bad(fmt.Errorf("response header over %d bytes", s.c.cfg.MaxHeaderList))
	}
	status, err := h.responseStatus()
	if err != nil {
		return bad(err)
	}
	if status < 200 {
		if h.end || status == 101 {
			return bad(fmt.Errorf("status %d for a tunnel", status))
		}
		return s.c.in.abuse.take(1)
	}
	s.recv.mu.Lock()
	s.recv.answered, s.recv.status, s.recv.header = true, status, h.fields
	s.recv.changed.Broadcast()
	s.recv.mu.Unlock()
	if h.end {
		s.receiveEnd()
	}
	return nil
}

// trailers handles a second header block, which ends the peer's half.
func (s *Stream) trailers(h *block) error {
	switch {
	case s.halves.Load()&recvEnded != 0:
		s.refuse(http2.ErrCodeStreamClosed, errors.New("HEADERS behind END_STREAM"))
	case !h.end || h.malformed != "":
		s.refuse(http2.ErrCodeProtocol, errors.New("HEADERS inside a tunnel"))
	default:
		s.receiveEnd()
	}
	return nil
}

// sentOne is told by the writer that a buffer of ours has left the queue.
func (s *Stream) sentOne() {
	if s.queued.Add(-1) == maxQueued-1 {
		s.send.mu.Lock()
		s.send.changed.Broadcast()
		s.send.mu.Unlock()
	}
}
