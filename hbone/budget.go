package hbone

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// ErrMemory is the cause when a stream or connection was ended because all of
// them together held too much that somebody does not read.
var ErrMemory = errors.New("too much data waits for those who do not read it")

// Budget bounds what all connections that share it hold for those who do not
// read: backlogs of applications, and what is queued for peers. Above half of
// it windows shrink; at the whole, whoever holds most is ended until
// there is room again. A nil Budget bounds nothing.
type Budget struct {
	limit int64        // immutable
	used  atomic.Int64 // by chunks and buffers, which is what memory is taken in

	mu      sync.Mutex
	streams map[*Stream]struct{} // guarded by mu; those with a backlog
	conns   map[*Conn]struct{}   // guarded by mu
	leaving []*Stream            // guarded by mu; ended here, not all given back yet

	shedding sync.Mutex // one at a time, while others go on
}

// stuckAfter is how long one round of writing may take before a connection's
// peer is taken for one that does not read.
const stuckAfter = 2 * time.Second

// NewBudget makes a Budget of limit bytes.
func NewBudget(limit int64) *Budget {
	return &Budget{limit: max(limit, 1), streams: map[*Stream]struct{}{}, conns: map[*Conn]struct{}{}}
}

// Used is how many bytes are held now.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

// Limit is how many may be.
func (b *Budget) Limit() int64 {
	if b == nil {
		return 0
	}
	return b.limit
}

func (b *Budget) add(n int64) {
	if b != nil {
		b.used.Add(n)
	}
}

// tight says that windows are to shrink.
func (b *Budget) tight() bool { return b != nil && b.used.Load() > b.limit/2 }

// list notes that a stream has a backlog or, with on false, none any more.
func (b *Budget) list(s *Stream, on bool) {
	if b == nil {
		return
	}
	b.mu.Lock()
	if on {
		b.streams[s] = struct{}{}
	} else {
		delete(b.streams, s)
	}
	b.mu.Unlock()
}

func (b *Budget) join(c *Conn) {
	if b != nil {
		b.mu.Lock()
		b.conns[c] = struct{}{}
		b.mu.Unlock()
	}
}

func (b *Budget) leave(c *Conn) {
	if b != nil {
		b.mu.Lock()
		delete(b.conns, c)
		b.mu.Unlock()
	}
}

// enforce makes room if there is none. It is called with no lock held, after
// something was taken.
func (b *Budget) enforce() {
	if b == nil || b.used.Load() <= b.limit || !b.shedding.TryLock() {
		return
	}
	defer b.shedding.Unlock()
	streams, conns := b.victims(time.Now())
	for _, s := range streams {
		s.refuse(http2.ErrCodeEnhanceYourCalm, fmt.Errorf("%w: %d bytes of this connection", ErrMemory, s.held.Load()))
	}
	for _, c := range conns {
		c.fail(&ConnError{Op: "memory", Code: http2.ErrCodeEnhanceYourCalm,
			Err: fmt.Errorf("%w: %d bytes queued for a peer that does not read", ErrMemory, c.queued.Load())})
	}
}

// holder is a candidate: a stream or, by what is queued, a connection.
type holder struct {
	bytes int64
	s     *Stream
	c     *Conn
}

// victims chooses whom to end: who holds most comes first. A little more than
// needed, or every further chunk would ask again.
func (b *Budget) victims(now time.Time) (streams []*Stream, conns []*Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	over := b.used.Load() - (b.limit - b.limit/16)
	b.leaving = slices.DeleteFunc(b.leaving, func(s *Stream) bool { return s.held.Load() <= 0 })
	for _, s := range b.leaving {
		over -= s.weight()
	}
	if over <= 0 {
		return nil, nil
	}
	holders := make([]holder, 0, len(b.streams)+len(b.conns))
	for s := range b.streams {
		if n := s.weight(); n > 0 && !slices.Contains(b.leaving, s) {
			holders = append(holders, holder{bytes: n, s: s})
		}
	}
	for c := range b.conns {
		since := c.out.since.Load()
		if n := c.queued.Load(); n > 0 && since != 0 && now.Sub(time.Unix(0, since)) > stuckAfter {
			holders = append(holders, holder{bytes: n, c: c})
		}
	}
	slices.SortFunc(holders, func(x, y holder) int { return cmp.Compare(y.bytes, x.bytes) })
	for _, h := range holders {
		if over <= 0 {
			break
		}
		over -= h.bytes
		if h.s != nil {
			streams = append(streams, h.s)
			b.leaving = append(b.leaving, h.s)
		} else {
			conns = append(conns, h.c)
		}
	}
	return streams, conns
}

// weight is the memory of the backlog, to the chunk.
func (s *Stream) weight() int64 {
	n := s.held.Load()
	if n <= 0 {
		return 0
	}
	return n + chunkSize
}
