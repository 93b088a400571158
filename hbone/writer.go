package hbone

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// writer is the sending half of a connection. Whoever queues something while
// nobody writes becomes the writer for one round: it takes the whole queue,
// encrypts it and sends it. What others queued meanwhile is left to the spare
// writer goroutine, so that nobody works for others for long. The connection
// reader never becomes the writer, as two peers that both wait to write would
// never read.
type writer struct {
	c        *Conn
	since    atomic.Int64  // Unix nanoseconds when the round under way began; 0: none is
	wakeup   chan struct{} // hands the writer role to the spare writer
	finished chan struct{} // closed when the spare writer has ended

	// Owned by the holder of the writer role.
	bufs [][]byte

	// Guarded by mu, taken before Conn.mu.
	mu      sync.Mutex
	queue   []outFrame
	spare   []outFrame    // the other of two queues that take turns
	staging bool          // the last entry of queue may be appended to
	staged  int           // bytes in staging buffers, queued or being written
	answers int           // bytes queued in answer to the peer
	writing bool          // somebody has the writer role
	pending bool          // the record layer has something to say
	closing bool          // the connection has failed: finish
	bye     bool          // send what is queued and close-notify before finishing
	framer  *http2.Framer // writes control frames into the queue
}

// outFrame is one entry of the queue: buf.b[:n].
type outFrame struct {
	buf *frameBuf
	n   int
}

const (
	// maxQueued is how many data buffers of one stream may be in the queue. Two
	// keep the connection busy while one is read; more would only be memory.
	maxQueued = 2
	// maxConnQueue is how much memory the data buffers of all streams of one
	// connection may take in its queue: what a peer that does not read makes us
	// hold. A round of writing is no faster for being longer.
	maxConnQueue = 2 << 20
	// tightConnQueue is the same while memory is tight: what keeps a connection busy.
	tightConnQueue = 4 * frameBufSize
	// maxStaged is how many bytes of small frames are held by copy before
	// they too count against maxQueued.
	maxStaged = 128 << 10
	// maxAnswers bounds replies to PING, SETTINGS and refused streams to a peer that
	// sends but does not read.
	maxAnswers = 64 << 10
	// maxUnread is how many bytes of small frames may wait before a peer that
	// makes requests all the same is taken for one that does not read: more than
	// all answers to a full set of streams.
	maxUnread = 1 << 20
)

func (w *writer) init(c *Conn) {
	w.c = c
	w.wakeup = make(chan struct{}, 1)
	w.finished = make(chan struct{})
	w.framer = http2.NewFramer(stager{w}, nil)
}

// stager lets the Framer write into the queue; mu is held.
type stager struct{ w *writer }

func (s stager) Write(p []byte) (int, error) {
	s.w.stageLocked(p)
	return len(p), nil
}

// stageLocked copies f, which may be longer than one buffer, behind what is queued.
func (w *writer) stageLocked(f []byte) {
	w.staged += len(f)
	for len(f) > 0 {
		if !w.staging || w.queue[len(w.queue)-1].n == len(frameBuf{}.b) {
			w.queue = append(w.queue, outFrame{buf: frameBufs.Get().(*frameBuf)})
			w.staging = true
		}
		e := &w.queue[len(w.queue)-1]
		k := copy(e.buf.b[e.n:], f)
		e.n += k
		f = f[k:]
	}
}

// kick is called with mu held after something was queued, and returns with it
// released. mayWrite lets the caller do the writing.
func (w *writer) kick(mayWrite bool) {
	if w.writing {
		w.mu.Unlock()
		return
	}
	w.writing = true
	if mayWrite && !w.closing {
		w.roundLocked()
		if len(w.queue) == 0 && !w.pending && !w.closing {
			w.writing = false
			w.mu.Unlock()
			return
		}
	}
	w.mu.Unlock()
	w.wakeup <- struct{}{}
}

// roundLocked writes what is queued. mu is held on entry and on return and released
// between.
func (w *writer) roundLocked() {
	q := w.queue
	w.queue = w.spare[:0]
	w.staging = false
	w.pending = false
	w.answers = 0
	staged := w.staged
	w.mu.Unlock()

	bufs, n, records := w.bufs[:0], 0, 0
	for _, e := range q {
		bufs = append(bufs, e.buf.b[:e.n])
		n += e.n
		records += (e.n + maxPlaintext - 1) / maxPlaintext
	}
	w.since.Store(time.Now().UnixNano())
	err := w.c.rec.Write(bufs)
	w.since.Store(0)
	clear(bufs)
	w.bufs = bufs
	w.c.bytesOut.Add(uint64(n))
	w.c.records.Add(uint64(records))
	w.release(q)
	if err != nil {
		w.c.fail(&ConnError{Op: "write", Err: err})
	}
	w.mu.Lock()
	w.staged -= staged
	w.spare = q[:0]
}

// release gives back the buffers of q.
func (w *writer) release(q []outFrame) {
	taken := 0
	for i, e := range q {
		if s := e.buf.owner; s != nil {
			e.buf.owner = nil
			s.sentOne()
			taken++
		}
		frameBufs.Put(e.buf)
		q[i] = outFrame{}
	}
	w.c.unqueue(taken)
}

// run is the spare writer goroutine.
func (w *writer) run() {
	defer w.c.running.Done()
	defer close(w.finished)
	for range w.wakeup {
		w.mu.Lock()
		for (len(w.queue) > 0 || w.pending) && (!w.closing || w.bye) {
			w.roundLocked()
		}
		if w.closing {
			bye := w.bye
			left := w.queue
			w.queue, w.staging = nil, false
			w.mu.Unlock() // writing stays set: nobody writes any more
			w.release(left)
			if bye {
				_ = w.c.rec.CloseWrite()
			}
			// The reader may be waiting for a peer that has nothing to say.
			_ = w.c.nc.SetReadDeadline(past)
			return
		}
		w.writing = false
		w.mu.Unlock()
	}
}

// close makes the writer finish; with bye, after what is queued, a GOAWAY and
// close-notify.
func (w *writer) close(code http2.ErrCode, bye bool) {
	w.mu.Lock()
	if w.closing {
		w.mu.Unlock()
		return
	}
	w.closing = true
	w.bye = bye
	if bye {
		_ = w.framer.WriteGoAway(w.c.in.lastID.Load(), code, nil)
	}
	w.kick(false)
}

// flush asks for whatever the record layer wants to say to be sent.
func (w *writer) flush() {
	w.mu.Lock()
	w.pending = true
	w.kick(false)
}

func (w *writer) preface() {
	cfg := &w.c.cfg
	w.mu.Lock()
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: cfg.FirstWindow},
		{ID: http2.SettingMaxFrameSize, Val: cfg.MaxFrame},
		{ID: http2.SettingMaxHeaderListSize, Val: cfg.MaxHeaderList},
	}
	if w.c.client {
		w.stageLocked([]byte(http2.ClientPreface))
		settings = append(settings, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	} else {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: cfg.MaxStreams})
		if cfg.ReadsClient {
			settings = append(settings, http2.Setting{ID: settingClient, Val: 1})
		}
	}
	_ = w.framer.WriteSettings(settings...)
	if cfg.ConnWindow > minWindow {
		_ = w.framer.WriteWindowUpdate(0, cfg.ConnWindow-minWindow)
	}
	w.kick(false)
}

// data queues buf, whose first n bytes are a whole DATA frame of s.
func (w *writer) data(s *Stream, buf *frameBuf, n int) (kept bool) {
	w.mu.Lock()
	if s.halves.Load()&resetPassed != 0 {
		// Nothing follows a RST_STREAM (RFC 9113 5.1). The connection's window was not used.
		w.mu.Unlock()
		s.refund(n - frameHeaderLen)
		return false
	}
	if n <= smallFrame && w.staged < maxStaged {
		w.stageLocked(buf.b[:n])
		w.kick(true)
		return false
	}
	buf.owner = s
	s.queued.Add(1)
	w.c.queued.Add(frameBufSize)
	w.c.cfg.Budget.add(frameBufSize)
	w.queue = append(w.queue, outFrame{buf, n})
	w.staging = false
	w.kick(true)
	w.c.cfg.Budget.enforce()
	return true
}

// endStream queues an empty DATA frame with END_STREAM.
func (w *writer) endStream(s *Stream) {
	w.mu.Lock()
	if s.halves.Load()&resetPassed == 0 {
		_ = w.framer.WriteData(s.id, true, nil)
	}
	w.kick(true)
}

// reset, windowUpdate, goAway and sendPing leave the writing to the spare writer: they are
// used by the reader, under locks, or where blocking is not wanted.
func (w *writer) reset(id uint32, code http2.ErrCode) {
	w.mu.Lock()
	_ = w.framer.WriteRSTStream(id, code)
	w.kick(false)
}

func (w *writer) windowUpdate(id uint32, n int) {
	w.mu.Lock()
	_ = w.framer.WriteWindowUpdate(id, uint32(n))
	w.kick(false)
}

func (w *writer) goAway(last uint32, code http2.ErrCode, debug string) {
	w.mu.Lock()
	_ = w.framer.WriteGoAway(last, code, []byte(debug))
	w.kick(false)
}

func (w *writer) sendPing(data [8]byte) {
	w.mu.Lock()
	_ = w.framer.WritePing(false, data)
	w.kick(false)
}

// answer queues a frame the peer has provoked; false means that it does not
// read its answers.
func (w *writer) answer(size int, write func(*http2.Framer) error) bool {
	w.mu.Lock()
	w.answers += frameHeaderLen + size
	ok := w.answers <= maxAnswers
	if ok {
		_ = write(w.framer)
	}
	w.kick(false)
	return ok
}

// unread is how many bytes of small frames wait to be sent.
func (w *writer) unread() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.staged
}

// headersLocked queues a header block in as many frames as the peer's frame size
// asks for.
func (w *writer) headersLocked(id uint32, block []byte, end bool) {
	first := true
	for first || len(block) > 0 {
		k := min(len(block), minFrame)
		frag := block[:k]
		block = block[k:]
		if first {
			_ = w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: frag, EndStream: end, EndHeaders: len(block) == 0})
		} else {
			_ = w.framer.WriteContinuation(id, len(block) == 0, frag)
		}
		first = false
	}
}

// response queues the answer to a request, unless the stream was reset.
func (w *writer) response(s *Stream, block []byte, end bool) {
	w.mu.Lock()
	if s.halves.Load()&resetPassed == 0 {
		w.headersLocked(s.id, block, end)
	}
	w.kick(true)
}

// putDataHeader writes the header of a DATA frame (RFC 9113 4.1).
func putDataHeader(b []byte, n int, id uint32) {
	b[0], b[1], b[2] = byte(n>>16), byte(n>>8), byte(n)
	b[3], b[4] = byte(http2.FrameData), 0
	binary.BigEndian.PutUint32(b[5:], id)
}
