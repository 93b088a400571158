package hbone

import (
	"sync/atomic"
	"time"
)

// holding is the memory a connection keeps for its peer beside what its streams
// do: input that the peer began and does not go on with, and the buffer that a round
// of writing is sent from. It counts against the Budget.
type holding struct {
	in, out atomic.Int64
	waiting atomic.Int64 // Unix nanoseconds since when the reader waits for the network; 0: it does not
}

func (c *Conn) holdIn(n int64) {
	if n != 0 {
		c.hold.in.Add(n)
		c.cfg.Budget.add(n)
	}
}

func (c *Conn) holdOut(n int64) {
	c.hold.out.Add(n)
	c.cfg.Budget.add(n)
}

// letGo gives back what an ended connection still holds.
func (c *Conn) letGo() {
	c.cfg.Budget.add(-c.hold.in.Swap(0) - c.hold.out.Swap(0))
	c.cfg.Budget.leave(c)
}

// stuck is how much memory a peer costs that has neither read nor gone on for a
// while.
func (c *Conn) stuck(now time.Time) int64 {
	long := func(since *atomic.Int64) bool {
		t := since.Load()
		return t != 0 && now.Sub(time.Unix(0, t)) > stuckAfter
	}
	n := int64(0)
	if long(&c.out.since) {
		n += c.queued.Load() + c.hold.out.Load()
	}
	if long(&c.hold.waiting) {
		n += c.hold.in.Load()
	}
	return n
}

// minAsked is the size from which a request's header counts against the Budget.
const minAsked = 1024

// ask notes the memory of the stream's request.
func (s *Stream) ask(size uint32) {
	b := s.c.cfg.Budget
	if size <= minAsked || b == nil {
		return
	}
	s.asked.Store(int64(size))
	s.recv.listed = true // nobody else has the stream yet
	b.add(int64(size))
	b.list(s, true)
}

// forget gives the request's memory back.
func (s *Stream) forget() {
	n := s.asked.Swap(0)
	if n == 0 {
		return
	}
	s.c.cfg.Budget.add(-n)
	s.recv.mu.Lock()
	s.unlistLocked()
	s.recv.mu.Unlock()
}

// weight is the memory of a stream's backlog, to the chunk, and of its request.
func (s *Stream) weight() int64 {
	n := s.asked.Load()
	if held := s.held.Load(); held > 0 {
		n += held + chunkSize
	}
	return n
}

// unlistLocked tells the budget when nothing is held any more.
func (s *Stream) unlistLocked() {
	if r := &s.recv; r.listed && s.held.Load() == 0 && s.asked.Load() == 0 {
		r.listed = false
		s.c.cfg.Budget.list(s, false)
	}
}
