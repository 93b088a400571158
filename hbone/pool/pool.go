// Package pool owns the reuse of HBONE connections: which one a new stream goes
// to, when another is dialled, and when one that nobody uses is closed.
package pool

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
)

// Key says which connections are interchangeable. Everything the certificates
// were verified against is part of it, as is the source workload: two pods of
// one service account never share a connection, nor two lives of one pod.
type Key struct {
	SourceUID, DestinationUID string
	Addr                      netip.AddrPort
	Peers                     string // expected SPIFFE identities, sorted, comma-joined
}

// Config tunes a pool; zero means the default.
type Config struct {
	// MaxStreams is how many streams share a connection, if the peer allows as many.
	MaxStreams int // 100
	// Idle is how long a connection without streams is kept.
	Idle time.Duration // 5 min
	// MaxConnsPerKey bounds the connections of one key; when all are full
	// callers wait.
	MaxConnsPerKey int // no bound
	// DialTimeout bounds one dial, whatever its callers' contexts allow.
	DialTimeout time.Duration // 20 s
	// SpreadConns is up to how many connections a key gets because the
	// others are busy, though not full. One connection's encryption runs on one core.
	SpreadConns int // 4, or fewer cores
}

// ErrClosed is returned by Open when the pool, or the source's part of it, was closed.
var ErrClosed = errors.New("hbone pool: closed")

// maxTries is how many connections one Open tries when they turn out not to take it.
const maxTries = 3

// Pool is a set of connections. Its methods may be called from any goroutine.
type Pool struct {
	cfg Config // immutable

	running sync.WaitGroup // dials and closings; added to under mu while not closed

	// Guarded by mu. No method of a connection that may call back is called under it.
	mu     sync.Mutex
	closed bool
	keys   map[Key]*group
	all    map[*member]struct{} // also those no longer in a group
}

// group is the connections of one key.
type group struct {
	members []*member // oldest first, so that with little to do the younger ones idle out
	dialing *dialing  // at most one
	freed   chan struct{}
}

// member is a pooled connection.
type member struct {
	key   Key
	conn  *hbone.Conn
	timer *time.Timer
	load  load
}

// dialing is one dial and those who wait for it.
type dialing struct {
	cancel  context.CancelCauseFunc
	waiters int
	done    chan struct{}
	err     error // set before done is closed
	m       *member
}

// New returns an empty pool.
func New(cfg Config) *Pool {
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = 100
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 5 * time.Minute
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = 20 * time.Second
	}
	if cfg.SpreadConns <= 0 {
		cfg.SpreadConns = min(4, runtime.GOMAXPROCS(0))
	}
	return &Pool{cfg: cfg, keys: map[Key]*group{}, all: map[*member]struct{}{}}
}

// Open opens a stream on a connection for k, dialling one if need be.
// Concurrent callers share one dial; a caller whose ctx ends leaves it to the
// others. A stream refused by a pooled connection that has since gone, or that never
// looked at it, is tried again elsewhere: no byte of it was delivered.
func (p *Pool) Open(ctx context.Context, k Key, dial func(context.Context) (*hbone.Conn, error), r hbone.Request) (*hbone.Stream, error) {
	for try := 1; ; try++ {
		m, fresh, err := p.acquire(ctx, k, dial)
		if err != nil {
			return nil, err
		}
		s, err := m.conn.OpenAcquired(ctx, r)
		if err == nil || try == maxTries || ctx.Err() != nil || !retry(err, fresh) {
			return s, err
		}
		if m.conn.Err() != nil {
			p.changed(m)
		}
	}
}

func retry(err error, fresh bool) bool {
	var se *hbone.StreamError
	if errors.As(err, &se) {
		return se.Code == http2.ErrCodeRefusedStream
	}
	var ce *hbone.ConnError
	return errors.As(err, &ce) && !fresh
}

// acquire returns a connection with a slot taken; fresh means that it was dialled meanwhile.
func (p *Pool) acquire(ctx context.Context, k Key, dial func(context.Context) (*hbone.Conn, error)) (m *member, fresh bool, err error) {
	var last *member
	p.mu.Lock()
	defer p.mu.Unlock()
	for tries := 0; ; {
		if p.closed {
			return nil, false, ErrClosed
		}
		if err := context.Cause(ctx); err != nil {
			return nil, false, err
		}
		g := p.keys[k]
		if g == nil {
			g = &group{freed: make(chan struct{})}
			p.keys[k] = g
		}
		m, busy := p.pick(g)
		if m != nil {
			if busy && g.dialing == nil && len(g.members) < p.cfg.SpreadConns {
				p.dialLocked(context.WithoutCancel(ctx), k, g, dial)
			}
			return m, m == last, nil
		}
		if g.dialing == nil {
			if n := p.cfg.MaxConnsPerKey; n > 0 && len(g.members) >= n {
				p.waitLocked(ctx, g.freed)
				continue
			}
			if last != nil && last.conn.Err() != nil {
				// It came up and went down before we could use it: tell why rather than
				// dial for ever.
				if tries++; tries == maxTries {
					return nil, false, last.conn.Err()
				}
			}
			p.dialLocked(context.WithoutCancel(ctx), k, g, dial)
		}
		d := g.dialing
		d.waiters++
		p.waitLocked(ctx, d.done)
		d.waiters--
		select {
		case <-d.done:
			if d.err != nil {
				return nil, false, d.err
			}
			last = d.m
		default:
			if d.waiters == 0 && g.dialing == d {
				// Nobody waits any more. Later callers must not join a dial that
				// is being given up.
				g.dialing = nil
				d.cancel(context.Canceled)
				p.dropIfEmptyLocked(k, g)
			}
		}
	}
}

// waitLocked waits for ch or the end of ctx with mu released.
func (p *Pool) waitLocked(ctx context.Context, ch <-chan struct{}) {
	p.mu.Unlock()
	select {
	case <-ch:
	case <-ctx.Done():
	}
	p.mu.Lock()
}

// pick takes a slot of the first member that is not busy, or else of the least
// busy one.
func (p *Pool) pick(g *group) (m *member, busy bool) {
	now := time.Now()
	var spare []*member
	for _, m := range g.members {
		if m.load.sample(now, m.conn.Stats()); m.load.busy() {
			spare = append(spare, m)
		} else if m.conn.Acquire(p.cfg.MaxStreams) {
			return m, false
		}
	}
	slices.SortFunc(spare, func(a, b *member) int { return int(a.load.rate - b.load.rate) })
	for _, m := range spare {
		if m.conn.Acquire(p.cfg.MaxStreams) {
			return m, true
		}
	}
	return nil, false
}

// dialLocked starts the group's dial.
func (p *Pool) dialLocked(ctx context.Context, k Key, g *group, dial func(context.Context) (*hbone.Conn, error)) {
	ctx, cancel := context.WithCancelCause(ctx)
	d := &dialing{cancel: cancel, done: make(chan struct{})}
	g.dialing = d
	p.running.Go(func() {
		tctx, stop := context.WithTimeout(ctx, p.cfg.DialTimeout)
		c, err := dial(tctx)
		stop()
		if gone := context.Cause(ctx); gone != nil && err != nil {
			err = gone
		}
		p.dialled(k, g, d, c, err)
		cancel(nil)
	})
}

func (p *Pool) dialled(k Key, g *group, d *dialing, c *hbone.Conn, err error) {
	p.mu.Lock()
	wanted := g.dialing == d && !p.closed
	if g.dialing == d {
		g.dialing = nil
	}
	switch {
	case err != nil:
		d.err = err
		p.dropIfEmptyLocked(k, g)
	case !wanted:
		d.err = ErrClosed
	default:
		m := &member{key: k, conn: c}
		m.timer = time.AfterFunc(p.cfg.Idle, func() { p.idle(m) })
		g.members = append(g.members, m)
		p.all[m] = struct{}{}
		d.m = m
	}
	m := d.m
	close(d.done)
	p.mu.Unlock()
	switch {
	case m != nil:
		c.Notify(func() { p.changed(m) })
	case c != nil:
		c.Close()
	}
}

// changed is called when a stream of m has ended, or m itself.
func (p *Pool) changed(m *member) {
	retired, ended := m.conn.Retired(), m.conn.Err() != nil
	p.mu.Lock()
	g := p.keys[m.key]
	if g != nil {
		close(g.freed)
		g.freed = make(chan struct{})
	}
	if retired {
		p.leaveLocked(m)
	}
	if _, mine := p.all[m]; mine && ended && !p.closed {
		delete(p.all, m)
		p.running.Go(func() { m.conn.Close() })
	}
	p.mu.Unlock()
	if retired && !ended {
		m.conn.GoAway()
	}
}

// idle is m's timer.
func (p *Pool) idle(m *member) {
	since := m.conn.IdleSince()
	p.mu.Lock()
	_, mine := p.all[m]
	if !mine {
		p.mu.Unlock()
		return
	}
	rest := p.cfg.Idle
	if !since.IsZero() {
		rest -= time.Since(since)
	}
	if rest > 0 {
		m.timer.Reset(rest)
		p.mu.Unlock()
		return
	}
	p.leaveLocked(m)
	p.mu.Unlock()
	m.conn.GoAway() // whoever got a slot just now may still use it
}

// leaveLocked takes m out of its group; no new stream goes to it.
func (p *Pool) leaveLocked(m *member) {
	m.timer.Stop()
	g := p.keys[m.key]
	if g == nil {
		return
	}
	if i := slices.Index(g.members, m); i >= 0 {
		g.members = slices.Delete(g.members, i, i+1)
	}
	p.dropIfEmptyLocked(m.key, g)
}

func (p *Pool) dropIfEmptyLocked(k Key, g *group) {
	if len(g.members) == 0 && g.dialing == nil && p.keys[k] == g {
		// Waiters hold on to g itself; they are woken to look again.
		close(g.freed)
		delete(p.keys, k)
	}
}

// Len is how many connections there are, those that only finish their streams included.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all)
}

// CloseSource cuts all connections of the source workload and gives up its dials.
func (p *Pool) CloseSource(uid string) {
	p.cut(func(k Key) bool { return k.SourceUID == uid })
}

// Close cuts all connections and waits for everything the pool has started.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cut(func(Key) bool { return true })
	p.running.Wait()
	return nil
}

func (p *Pool) cut(match func(Key) bool) {
	var cut []*member
	p.mu.Lock()
	for k, g := range p.keys {
		if d := g.dialing; d != nil && match(k) {
			g.dialing = nil
			d.cancel(ErrClosed)
			p.dropIfEmptyLocked(k, g)
		}
	}
	for m := range p.all {
		if match(m.key) {
			p.leaveLocked(m)
			delete(p.all, m)
			cut = append(cut, m)
		}
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, m := range cut {
		wg.Go(func() { m.conn.Close() })
	}
	wg.Wait()
}

// String is for logs.
func (k Key) String() string {
	return strings.Join([]string{k.SourceUID, k.DestinationUID, k.Addr.String(), k.Peers}, "|")
}
