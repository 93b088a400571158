package hbone

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

var (
	// ErrMemory is the cause when a stream or connection was ended because all of
	// them together held too much that somebody does not read.
	ErrMemory = errors.New("too much data waits for those who do not read it")
	// ErrShare is the cause when it was the part of a Budget that was used up.
	ErrShare = errors.New("the share of data that waits for those who do not read it is used up")
)

// Budget bounds what all connections that share it hold for others: backlogs of
// applications, what is queued for peers, what peers have begun and do not go on
// with. Above half of it windows shrink; at the whole, whoever holds most is ended
// until there is room again. A nil Budget bounds nothing.
type Budget struct {
	limit int64        // immutable
	whole *Budget      // immutable; what this is a part of, or nil
	cause error        // immutable
	used  atomic.Int64 // by chunks and buffers, which is what memory is taken in

	mu      sync.Mutex
	streams map[*Stream]struct{} // guarded by mu; those that hold something
	conns   map[*Conn]struct{}   // guarded by mu
	leaving []*Stream            // guarded by mu; ended here, not all given back yet

	shedding sync.Mutex // one at a time, while others go on
}

// stuckAfter is how long one round of writing, or a peer in the middle of a frame or
// record, may take before it is taken for one that does not go on.
const stuckAfter = 2 * time.Second

// NewBudget makes a Budget of limit bytes.
func NewBudget(limit int64) *Budget {
	return &Budget{limit: max(limit, 1), cause: ErrMemory, streams: map[*Stream]struct{}{}, conns: map[*Conn]struct{}{}}
}

// Part makes a Budget of limit bytes of which all counts against b too. What is
// ended for it ends with ErrShare, and only what uses the part is.
func (b *Budget) Part(limit int64) *Budget {
	p := NewBudget(limit)
	p.whole, p.cause = b, ErrShare
	return p
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
	for ; b != nil; b = b.whole {
		b.used.Add(n)
	}
}

// tight says that windows are to shrink.
func (b *Budget) tight() bool {
	for ; b != nil; b = b.whole {
		if b.used.Load() > b.limit/2 {
			return true
		}
	}
	return false
}

// swamped is why nothing more may be held at all: those who are ended have not given
// back yet what they hold, and more comes faster.
func (b *Budget) swamped() error {
	for ; b != nil; b = b.whole {
		if b.used.Load() > b.limit+b.limit/4 {
			return b.cause
		}
	}
	return nil
}

// list notes that a stream holds something or, with on false, nothing any more.
func (b *Budget) list(s *Stream, on bool) {
	for ; b != nil; b = b.whole {
		b.mu.Lock()
		if on {
			b.streams[s] = struct{}{}
		} else {
			delete(b.streams, s)
		}
		b.mu.Unlock()
	}
}

func (b *Budget) join(c *Conn) {
	for ; b != nil; b = b.whole {
		b.mu.Lock()
		b.conns[c] = struct{}{}
		b.mu.Unlock()
	}
}

func (b *Budget) leave(c *Conn) {
	for ; b != nil; b = b.whole {
		b.mu.Lock()
		delete(b.conns, c)
		b.mu.Unlock()
	}
}

// enforce makes room if there is none. It is called with no lock held, after
// something was taken.
func (b *Budget) enforce() {
	for ; b != nil; b = b.whole {
		if b.used.Load() > b.limit && b.shedding.TryLock() {
			b.shed()
			b.shedding.Unlock()
		}
	}
}

func (b *Budget) shed() {
	for _, h := range b.victims(time.Now()) {
		if s := h.s; s != nil {
			s.refuse(http2.ErrCodeEnhanceYourCalm, fmt.Errorf("%w: %d bytes of this connection", b.cause, h.bytes))
			continue
		}
		h.c.fail(&ConnError{Op: "memory", Code: http2.ErrCodeEnhanceYourCalm,
			Err: fmt.Errorf("%w: %d bytes for a peer that does not go on", b.cause, h.bytes)})
	}
}

// holder is a candidate: a stream, or a connection for what is its own.
type holder struct {
	bytes int64
	part  *Budget
	s     *Stream
	c     *Conn
}

// victims chooses whom to end. A little more than needed, or every further chunk
// would ask again.
func (b *Budget) victims(now time.Time) []holder {
	b.mu.Lock()
	defer b.mu.Unlock()
	over := b.used.Load() - (b.limit - b.limit/16)
	b.leaving = slices.DeleteFunc(b.leaving, func(s *Stream) bool { return s.weight() <= 0 })
	for _, s := range b.leaving {
		over -= s.weight()
	}
	if over <= 0 {
		return nil
	}
	holders := make([]holder, 0, len(b.streams)+len(b.conns))
	for s := range b.streams {
		if n := s.weight(); n > 0 && !slices.Contains(b.leaving, s) {
			holders = append(holders, holder{bytes: n, part: s.c.cfg.Budget, s: s})
		}
	}
	for c := range b.conns {
		if n := c.stuck(now); n > 0 {
			holders = append(holders, holder{bytes: n, part: c.cfg.Budget, c: c})
		}
	}
	chosen := largest(holders, over)
	for _, h := range chosen {
		if h.s != nil {
			b.leaving = append(b.leaving, h.s)
		}
	}
	return chosen
}

// largest chooses holders of at least over bytes together: of the part that has
// most the largest, again and again. So a part full of small ones does not cost
// another its only large one.
func largest(holders []holder, over int64) (chosen []holder) {
	slices.SortStableFunc(holders, func(x, y holder) int { return int(min(max(y.bytes-x.bytes, -1), 1)) })
	queues, held := map[*Budget][]holder{}, map[*Budget]int64{}
	for _, h := range holders {
		queues[h.part] = append(queues[h.part], h)
		held[h.part] += h.bytes
	}
	for over > 0 {
		var most *Budget
		for part, q := range queues {
			if len(q) > 0 && (most == nil || held[part] > held[most]) {
				most = part
			}
		}
		if most == nil {
			break
		}
		h := queues[most][0]
		queues[most] = queues[most][1:]
		held[most] -= h.bytes
		over -= h.bytes
		chosen = append(chosen, h)
	}
	return chosen
}
