package live

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// AcceptLoop serves every connection of ln on a goroutine of its own until ln
// is closed, and returns when all of them have. Running out of descriptors or
// memory is told to paused, which may be nil, and waited out; connections queue in
// the kernel meanwhile.
func AcceptLoop(ln net.Listener, serve func(*net.TCPConn), paused func(error)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	pause := time.Millisecond
	for {
		c, err := ln.Accept()
		if err != nil {
			switch {
			case errors.Is(err, net.ErrClosed):
				return nil
			case errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EINTR):
				continue // it was that connection's
			case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
				errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
				if paused != nil {
					paused(err)
				}
				time.Sleep(pause)
				pause = min(2*pause, 100*time.Millisecond)
				continue
			}
			return err
		}
		pause = time.Millisecond
		tcp := c.(*net.TCPConn)
		wg.Go(func() { serve(tcp) })
	}
}

// AcceptPaused counts an error that Accept waits out, and says so once in a
// while: all pods meet it at once.
func (t *Table) AcceptPaused(err error) {
	t.metrics.acceptErrors.Inc()
	if now := t.now(); t.pausedSaid.allow(now) {
		t.log.Error("connections wait, ztunnel cannot accept them", "err", err)
	}
}

// seldom lets something pass once a minute.
type seldom struct {
	mu   sync.Mutex
	last time.Time // guarded by mu
}

func (s *seldom) allow(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && now.Sub(s.last) < time.Minute {
		return false
	}
	s.last = now
	return true
}
