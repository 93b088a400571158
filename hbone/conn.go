package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Conn is one mutually authenticated connection carrying many streams. All its
// methods may be called from any goroutine.
type Conn struct {
	// Immutable.
	cfg           Config
	client        bool
	nc            net.Conn
	rec           record
	peer          identity.ID
	chain         []*x509.Certificate // the peer's, for cfg.Watch
	local, remote netip.AddrPort
	serve         func(*Incoming) // server only
	refused       func(netip.AddrPort, error)
	settleBy      time.Time      // when TLS, the peer's preface and its SETTINGS must have arrived
	done          chan struct{}  // closed when the connection has failed or ended
	settled       chan struct{}  // closed when the peer's first SETTINGS are in force
	running       sync.WaitGroup // reader and spare writer
	handlers      sync.WaitGroup // server only

	queued            atomic.Int64  // memory of the data buffers in the queue or being written
	starved           atomic.Bool   // somebody waits for the queue to get shorter
	bytesIn, bytesOut atomic.Uint64 // plaintext of the whole connection
	records           atomic.Uint64 // TLS records sent

	hold holding
	out  writer
	in   reader

	// Guarded by mu, which is taken last of all locks.
	mu          sync.Mutex
	streams     map[uint32]*Stream
	active      int    // slots in use; at least len(streams)
	nextID      uint32 // client: number of the next stream
	sendWindow  int64
	sendWaiters []*Stream     // streams that found sendWindow empty
	peerWindow  int64         // peer's SETTINGS_INITIAL_WINDOW_SIZE
	peerFrame   int64         // peer's SETTINGS_MAX_FRAME_SIZE
	peerStreams uint32        // peer's SETTINGS_MAX_CONCURRENT_STREAMS
	readsClient bool          // the peer has said that it reads ClientHeader
	told        bool          // settled is closed
	draining    bool          // a GOAWAY was sent or received; no further stream of ours
	peerGone    error         // what the peer's GOAWAY said, if it was an error
	err         error         // a *ConnError
	cut         bool          // it ended with streams open
	patience    time.Duration // what the peer gets to read our last words, once it has ended
	idleSince   time.Time
	notify      func()
	ping        keepalive
}

// maxRecords is how many records one connection encrypts before it takes no
// further streams: AES-GCM is good for 2^24.5 full ones (RFC 8446 5.5) and
// crypto/tls cannot be asked for a key update.
const maxRecords = 1 << 24

// NewClient makes a connection out of nc, which it owns from here on: TLS
// handshake with tc, then the HTTP/2 preface. It does not wait for the peer's
// preface; a peer that refuses our certificate is therefore seen by the first Open.
// The caller must Close the connection.
func NewClient(ctx context.Context, nc net.Conn, tc *tls.Config, cfg Config) (*Conn, error) {
	cfg = cfg.filled(true)
	c, err := handshake(ctx, nc, tc, cfg, true)
	if err != nil {
		return nil, err
	}
	c.start()
	return c, nil
}

// handshake returns a connection that is authenticated but has no goroutines yet. On
// error nc is closed.
func handshake(ctx context.Context, nc net.Conn, tc *tls.Config, cfg Config, client bool) (*Conn, error) {
	fail := func(err error) (*Conn, error) {
		linger(nc, lingerTime)
		return nil, &ConnError{Op: "tls handshake", Err: err}
	}
	settleBy := time.Now().Add(cfg.HandshakeTimeout)
	hctx, cancel := context.WithDeadline(ctx, settleBy)
	defer cancel()
	tc = tc.Clone()
	tc.DynamicRecordSizingDisabled = true
	b := newGatherConn(nc)
	var t *tls.Conn
	if client {
		t = tls.Client(b, tc)
	} else {
		t = tls.Server(b, tc)
	}
	if err := t.HandshakeContext(hctx); err != nil {
		if ctx.Err() == nil && hctx.Err() != nil {
			err = fmt.Errorf("not finished after %v: %w", cfg.HandshakeTimeout, err)
		}
		return fail(err)
	}
	cs := t.ConnectionState()
	if cs.NegotiatedProtocol != http2.NextProtoTLS {
		return fail(fmt.Errorf("peer agreed on protocol %q, not %q", cs.NegotiatedProtocol, http2.NextProtoTLS))
	}
	peer, err := identity.PeerID(&cs)
	if err != nil {
		return fail(err)
	}
	c := &Conn{
		cfg: cfg, client: client, nc: nc, peer: peer,
		local: addrPort(nc.LocalAddr()), remote: addrPort(nc.RemoteAddr()),
		settleBy:    settleBy,
		done:        make(chan struct{}),
		settled:     make(chan struct{}),
		streams:     map[uint32]*Stream{},
		nextID:      1,
		sendWindow:  minWindow,
		peerWindow:  minWindow,
		peerFrame:   minFrame,
		peerStreams: cfg.MaxStreams,
		idleSince:   time.Now(),
	}
	if cfg.Watch != nil {
		c.chain = cs.PeerCertificates
	}
	c.out.init(c)
	c.in.init(c)
	b.wake = c.out.flush
	b.c, b.handshaking = c, false
	c.rec = &tlsRecord{t, b}
	return c, nil
}

// start queues our preface and sets the connection's goroutines going.
func (c *Conn) start() {
	c.cfg.Budget.join(c)
	c.cfg.Budget.enforce()
	if c.cfg.Budget.tight() {
		c.cfg.FirstWindow = minWindow
	}
	c.out.preface()
	c.startPing()
	c.running.Add(2)
	go c.out.run()
	go c.run()
}

// run is the reader goroutine: it reads until the connection ends, whoever
// ended it, and closes it.
func (c *Conn) run() {
	defer c.running.Done()
	if c.cfg.Watch != nil {
		defer c.cfg.Watch(c.client, c.chain, func(err error) { c.fail(&ConnError{Op: "cut", Err: err}) })()
	}
	err := c.in.loop()
	c.fail(err)
	<-c.out.finished
	c.letGo()
	c.mu.Lock()
	patience := c.patience
	c.mu.Unlock()
	var ce *ConnError
	errors.As(c.Err(), &ce)
	if ce.Op == "close" || ce.Code != http2.ErrCodeNo {
		linger(c.nc, patience) // so that the peer reads all of it, not a TCP reset
	} else {
		c.nc.Close()
	}
}

// lingerTime is how long a peer we have sent a last word may take to read it, and
// lingerBytes how much it may still send. drainTime is lingerTime for a
// connection whose streams have all ended in order: the end of what they
// carried may still be on its way.
const (
	lingerTime  = time.Second
	drainTime   = 5 * time.Second
	lingerBytes = 4 << 20
)

// linger closes nc in a way that lets the peer read what was sent last: closing
// with unread input, or input that arrives later, makes the kernel send a reset
// and forget what it has not sent.
func linger(nc net.Conn, patience time.Duration) {
	defer nc.Close()
	h, ok := nc.(interface{ CloseWrite() error })
	if !ok || h.CloseWrite() != nil || nc.SetReadDeadline(time.Now().Add(patience)) != nil {
		return
	}
	var sink [4096]byte
	for n := 0; n < lingerBytes; {
		k, err := nc.Read(sink[:])
		if err != nil {
			return
		}
		n += k
	}
}

// fail ends the connection, once: streams are told, a GOAWAY is sent if the
// fault is ours to report, and reader and writer are made to finish. It does not
// wait for them.
func (c *Conn) fail(err error) {
	var ce *ConnError
	if !errors.As(err, &ce) {
		ce = &ConnError{Op: "read", Err: err}
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.peerGone != nil && ce.Code == http2.ErrCodeNo {
		ce = &ConnError{Op: ce.Op, Err: c.peerGone}
	}
	c.err = ce
	streams := c.streams
	for _, s := range streams {
		if s.halves.Load()&(recvEnded|endQueued) != recvEnded|endQueued {
			c.cut = true
		}
	}
	c.streams = nil
	c.active = 0
	c.patience = lingerTime
	if ce.Op == "close" && !c.cut {
		c.patience = drainTime
	}
	patience := c.patience
	notify := c.notify
	c.ping.stop()
	c.mu.Unlock()
	close(c.done)
	for _, s := range streams {
		s.end(ce, false)
		s.forget() // the table that held it is gone
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(patience))
	c.out.close(ce.Code, ce.Op != "read" && ce.Op != "write")
	if notify != nil {
		notify()
	}
}

// Done is closed when the connection has ended, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is why the connection ended, a *ConnError, or nil while it has not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and all its streams at once and waits for its
// goroutines.
func (c *Conn) Close() error {
	c.fail(&ConnError{Op: "close", Err: ErrClosed})
	c.running.Wait()
	return nil
}

// Peer is the verified identity of the other end.
func (c *Conn) Peer() identity.ID { return c.peer }

// LocalAddr and RemoteAddr are those of the network connection, unmapped; zero
// if it has none.
func (c *Conn) LocalAddr() netip.AddrPort  { return c.local }
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// Stats are totals of a connection.
type Stats struct {
	BytesIn, BytesOut uint64 // decrypted, with HTTP/2 framing
	RecordsOut        uint64 // TLS records
}

// Stats returns the totals so far.
func (c *Conn) Stats() Stats {
	return Stats{BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(), RecordsOut: c.records.Load()}
}

// Streams is how many streams are open or being opened.
func (c *Conn) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.active
}

// IdleSince is when the last stream ended, or zero while there is one.
func (c *Conn) IdleSince() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.active > 0 {
		return time.Time{}
	}
	return c.idleSince
}

// Usable reports whether a stream could be opened now.
func (c *Conn) Usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.freeLocked(maxWindow)
}

// Retired reports whether the connection will never again take a stream.
func (c *Conn) Retired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil || c.spentLocked()
}

func (c *Conn) freeLocked(limit int) bool {
	return c.err == nil && !c.spentLocked() && c.active < min(limit, int(min(c.peerStreams, maxWindow)))
}

// spentLocked reports whether the connection takes no stream any more: it drains, or
// has used up its records or its stream numbers.
func (c *Conn) spentLocked() bool {
	return c.draining || c.records.Load() >= maxRecords || c.nextID > maxWindow
}

// Acquire takes one of the connection's stream slots, of which it lets no more
// than limit be in use; false means there is none. It is to be followed by
// OpenAcquired or Release.
func (c *Conn) Acquire(limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.freeLocked(limit) {
		return false
	}
	c.active++
	return true
}

// Release gives an acquired slot back unused.
func (c *Conn) Release() { c.free() }

func (c *Conn) free() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.active--
	last := c.active == 0
	if last {
		c.idleSince = time.Now()
	}
	last = last && c.draining
	notify := c.notify
	c.mu.Unlock()
	if last {
		c.fail(&ConnError{Op: "close", Err: ErrClosed})
	} else if notify != nil {
		notify()
	}
}

// Notify sets a function that is called whenever the connection may have
// become usable or unusable. It must not block. One function at most.
func (c *Conn) Notify(f func()) {
	c.mu.Lock()
	c.notify = f
	ended := c.err != nil
	c.mu.Unlock()
	if ended && f != nil {
		f()
	}
}

// GoAway lets open streams finish, takes no new ones, and then closes.
func (c *Conn) GoAway() {
	c.mu.Lock()
	if c.err != nil || c.draining {
		c.mu.Unlock()
		return
	}
	if c.client {
		c.draining = true
		last := c.active == 0
		notify := c.notify
		c.mu.Unlock()
		if last {
			c.fail(&ConnError{Op: "close", Err: ErrClosed})
			return
		}
		c.out.goAway(0, http2.ErrCodeNo, "")
		if notify != nil {
			notify()
		}
		return
	}
	c.mu.Unlock()
	// RFC 9113 6.8: first say that we are about to stop, and only after a round
	// trip which stream is the last, so that none under way is lost.
	c.out.goAway(maxWindow, http2.ErrCodeNo, "")
	c.pingForGoAway()
}

// lastGoAway is the second half of a server's GoAway.
func (c *Conn) lastGoAway() {
	c.mu.Lock()
	if c.err != nil || c.draining {
		c.mu.Unlock()
		return
	}
	c.draining = true
	last := c.active == 0
	id := c.in.lastID.Load()
	c.mu.Unlock()
	if last {
		c.fail(&ConnError{Op: "close", Err: ErrClosed})
		return
	}
	c.out.goAway(id, http2.ErrCodeNo, "")
}

// unqueue notes that n data buffers have left the queue, and wakes streams that
// found it full.
func (c *Conn) unqueue(n int) {
	if n == 0 {
		return
	}
	size := int64(n) * frameBufSize
	c.cfg.Budget.add(-size)
	if left := c.queued.Add(-size); !c.starved.Load() || left >= c.queueLimit() {
		return
	}
	c.mu.Lock()
	c.starved.Store(false)
	waiters := c.sendWaiters
	c.sendWaiters = nil
	c.mu.Unlock()
	wakeSenders(waiters)
}

// queueLimit is how much memory the queue's data buffers may take for now.
func (c *Conn) queueLimit() int64 {
	if c.cfg.Budget.tight() {
		return tightConnQueue
	}
	return maxConnQueue
}

// queueFull reports whether no more data is to be queued. Whoever is told so waits and
// is woken by unqueue, which has to see that somebody does. mu is held.
func (c *Conn) queueFull() bool {
	if c.queued.Load() < c.queueLimit() {
		return false
	}
	c.starved.Store(true)
	return c.queued.Load() >= c.queueLimit()
}

func (c *Conn) stream(id uint32) *Stream {
	c.mu.Lock()
	s := c.streams[id]
	c.mu.Unlock()
	return s
}

// remove takes a stream whose both halves have ended out of the table.
func (c *Conn) remove(s *Stream) {
	c.mu.Lock()
	if c.streams[s.id] != s {
		c.mu.Unlock()
		return
	}
	delete(c.streams, s.id)
	c.mu.Unlock()
	s.unref()
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	if s, ok := a.(streamAddr); ok {
		return netip.AddrPort(s)
	}
	return netip.AddrPort{}
}

// isEnd reports whether err is only the far end having closed the connection.
func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
