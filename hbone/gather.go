package hbone

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// gatherConn is the net.Conn given to crypto/tls. It reads the network in big
// pieces and hands over one record at a time, so that what crypto/tls has not
// taken yet is always here to be counted; it gathers the records of one
// batch into one write. While idle it holds no buffer.
type gatherConn struct {
	nc   net.Conn
	raw  syscall.RawConn // nil if nc has no descriptor
	wake func()          // asks for an empty batch; set before handshaking is cleared
	c    *Conn           // that it is of; set likewise

	handshaking bool   // immutable once the connection has its goroutines
	head        []byte // of a record of the handshake, not handed over yet

	// Owned by the reader. buf[r:w] has been read from the network and not been
	// handed over; left is how much of it belongs to a record begun.
	buf     *[readSize]byte
	r, w    int
	left    int
	err     error
	readFn  func(fd uintptr) bool
	held    int64  // bytes counted for a record that is not whole
	rest    []byte // of it, if it was moved out of buf
	readN   int
	readErr error

	// Guarded by mu. Only the holder of the writer role flushes.
	mu    sync.Mutex
	out   *outBuf // nil: nothing gathered
	batch bool
	full  bool // crypto/tls was refused a word of its own
}

// errUnread is what crypto/tls is told then. It passes on something else (a bad
// record: it does not change its keys) on whatever comes next.
var errUnread = errors.New("peer makes us answer without reading the answers")

// refused is errUnread if that has happened.
func (b *gatherConn) refused() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.full {
		return errUnread
	}
	return nil
}

// maxUnsent bounds what crypto/tls may say for itself (key update answers,
// alerts) while the network takes nothing.
const maxUnsent = 64 << 10

type outBuf struct{ b []byte }

// outSize is what a batch has room for without growing.
const outSize = flushSize + (64 << 10) + 4096

var outBufs = sync.Pool{New: func() any { return &outBuf{make([]byte, 0, outSize)} }}

func newGatherConn(nc net.Conn) *gatherConn {
	b := &gatherConn{nc: nc, handshaking: true}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			b.raw = raw
		}
	}
	b.readFn = b.readFD
	return b
}

// notReady is what crypto/tls is told when it asks for more than is at hand.
// Being temporary it leaves the tls.Conn usable, and as it is only ever given on
// a record boundary nothing is lost.
type notReady struct{}

func (notReady) Error() string   { return "no whole record at hand" }
func (notReady) Timeout() bool   { return true }
func (notReady) Temporary() bool { return true }

var errNotReady net.Error = notReady{}

func (b *gatherConn) recordLen() int { return 5 + int(b.buf[b.r+3])<<8 + int(b.buf[b.r+4]) }

// haveRecord reports whether a whole record is at hand.
func (b *gatherConn) haveRecord() bool {
	n := b.w - b.r
	return b.left > 0 || n >= 5 && n >= b.recordLen()
}

func (b *gatherConn) Read(p []byte) (int, error) {
	if b.handshaking {
		return b.readHandshake(p)
	}
	if !b.haveRecord() {
		return 0, errNotReady
	}
	if b.left == 0 {
		b.left = b.recordLen()
	}
	n := copy(p, b.buf[b.r:min(b.w, b.r+b.left)])
	b.r += n
	b.left -= n
	return n, nil
}

// readHandshake reads no further than the record asked for, straight from the
// network: handshakes that stall must not hold a buffer each.
func (b *gatherConn) readHandshake(p []byte) (int, error) {
	if b.left == 0 {
		b.head = make([]byte, 5)
		if _, err := io.ReadFull(b.nc, b.head); err != nil {
			return 0, err
		}
		b.left = 5 + int(b.head[3])<<8 + int(b.head[4])
	}
	var n int
	var err error
	if len(b.head) > 0 {
		n = copy(p, b.head)
		b.head = b.head[n:]
	} else {
		n, err = b.nc.Read(p[:min(len(p), b.left)])
	}
	b.left -= n
	return n, err
}

// fill reads once from the network, blocking.
func (b *gatherConn) fill() error {
	if b.err != nil {
		return b.err
	}
	if b.r > 0 {
		b.w = copy(b.buf[:], b.buf[b.r:b.w])
		b.r = 0
	}
	b.c.hold.waiting.Store(time.Now().UnixNano())
	defer b.c.hold.waiting.Store(0)
	if b.raw != nil {
		b.readN, b.readErr = 0, nil
		if err := b.raw.Read(b.readFn); err != nil {
			b.err = err
		} else if b.readErr != nil {
			b.err = os.NewSyscallError("read", b.readErr)
		} else if b.readN == 0 {
			b.err = io.EOF
		}
	} else {
		if s, ok := b.nc.(*Stream); ok && b.r == b.w {
			b.release()
			s.awaitRead()
		}
		b.take()
		b.readN, b.err = b.nc.Read(b.buf[b.w:])
	}
	if b.readN > 0 {
		b.w += b.readN
		return nil // an error that came along is met at the next call
	}
	if b.err == io.EOF && b.w > 0 {
		b.err = io.ErrUnexpectedEOF
	}
	return b.err
}

func (b *gatherConn) take() {
	if b.buf == nil {
		b.buf = readBufs.Get().(*[readSize]byte)
	}
}

// release gives the buffer back if nothing is in it.
func (b *gatherConn) release() {
	if b.r == b.w && b.buf != nil {
		b.r, b.w = 0, 0
		readBufs.Put(b.buf)
		b.buf = nil
	}
}

// suspend is for a peer that has sent part of a record: while memory is tight
// that part is all that is kept.
func (b *gatherConn) suspend() {
	if b.r == b.w {
		b.release()
		return
	}
	b.held = readSize
	if b.c.cfg.Budget.tight() {
		b.rest = append([]byte(nil), b.buf[b.r:b.w]...)
		b.w = b.r
		b.release()
		b.held = int64(len(b.rest))
	}
	b.c.holdIn(b.held)
}

// resume undoes suspend.
func (b *gatherConn) resume() {
	b.take()
	if b.held == 0 {
		return
	}
	b.c.holdIn(-b.held)
	b.held = 0
	if b.rest != nil {
		b.w = copy(b.buf[:], b.rest)
		b.rest = nil
	}
}

// readFD is called by the poller when the socket may be readable.
func (b *gatherConn) readFD(fd uintptr) bool {
	b.resume()
	for {
		n, err := syscall.Read(int(fd), b.buf[b.w:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			b.suspend()
			return false
		}
		b.readN, b.readErr = max(n, 0), err
		return true
	}
}

// Write gathers. Outside a batch it is crypto/tls speaking for itself, from
// whatever goroutine, the connection reader included: that must not block, so
// an empty batch is asked for.
func (b *gatherConn) Write(p []byte) (int, error) {
	if b.handshaking {
		return b.nc.Write(p)
	}
	b.mu.Lock()
	if !b.batch && b.out != nil && len(b.out.b) > maxUnsent {
		b.full = true
		b.mu.Unlock()
		return 0, errUnread
	}
	if b.out == nil {
		b.out = outBufs.Get().(*outBuf)
		b.out.b = b.out.b[:0]
	}
	b.out.b = append(b.out.b, p...)
	alone := !b.batch
	b.mu.Unlock()
	if alone {
		b.wake()
	}
	return len(p), nil
}

func (b *gatherConn) begin() {
	b.mu.Lock()
	b.batch = true
	b.mu.Unlock()
}

func (b *gatherConn) end() error {
	b.mu.Lock()
	b.batch = false
	b.mu.Unlock()
	return b.flush(1)
}

// flush sends what has been gathered if that is at least atLeast bytes.
func (b *gatherConn) flush(atLeast int) error {
	b.mu.Lock()
	if b.out == nil || len(b.out.b) < atLeast {
		b.mu.Unlock()
		return nil
	}
	out := b.out
	b.out = nil
	b.mu.Unlock()
	b.c.holdOut(outSize)
	_, err := b.nc.Write(out.b)
	b.c.holdOut(-outSize)
	outBufs.Put(out)
	return err
}

func (b *gatherConn) Close() error         { return b.nc.Close() }
func (b *gatherConn) LocalAddr() net.Addr  { return b.nc.LocalAddr() }
func (b *gatherConn) RemoteAddr() net.Addr { return b.nc.RemoteAddr() }

// Deadlines are set on the network connection by the owner of this one:
// crypto/tls would leave a write deadline in the past behind when it sends
// close-notify, and the flush after it would fail.
func (b *gatherConn) SetDeadline(time.Time) error      { return nil }
func (b *gatherConn) SetReadDeadline(time.Time) error  { return nil }
func (b *gatherConn) SetWriteDeadline(time.Time) error { return nil }
