package netns_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// traffic is connections of every kind between pods, and what became of them.
type traffic struct {
	ctx   context.Context
	parts sync.WaitGroup
	began time.Time

	calls, pings atomic.Int64
	mu           sync.Mutex
	failures     []string // guarded by mu
}

func newTraffic(ctx context.Context) *traffic { return &traffic{ctx: ctx, began: time.Now()} }

func (l *traffic) failed(what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, fmt.Sprintf("%6.1fs %s: %v", time.Since(l.began).Seconds(), what, err))
}

func (l *traffic) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-l.ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// call makes short connections, one after the other. With a pause longer than
// the pool keeps a tunnel every one makes a tunnel, and a handshake, of its own.
func (l *traffic) call(from, to *pod, pause time.Duration) {
	at := netip.MustParseAddrPort(to.at(9000))
	l.parts.Go(func() {
		for l.pause(pause) {
			if err := from.call(at, time.Now().Add(4*patience)); err != nil {
				l.failed("a connection of "+from.name+" to "+to.name, err)
			}
			l.calls.Add(1)
		}
	})
}

// hold is one connection for the whole time, with something said all along.
func (l *traffic) hold(t testing.TB, from, to *pod) {
	c := from.mustDial(t, to.at(9000))
	l.parts.Go(func() {
		buf := make([]byte, 4)
		for l.pause(200 * time.Millisecond) {
			c.SetDeadline(time.Now().Add(4 * patience))
			_, err := c.Write([]byte("ping"))
			if err == nil {
				_, err = io.ReadFull(c, buf)
			}
			if err != nil {
				l.failed("the long connection of "+from.name+" to "+to.name, err)
				return
			}
			l.pings.Add(1)
		}
		// In order to its end.
		c.CloseWrite()
		if _, err := c.Read(buf); !errors.Is(err, io.EOF) {
			l.failed("the end of the long connection of "+from.name, err)
		}
	})
}

// end waits for what is under way and returns the failures.
func (l *traffic) end() []string {
	l.parts.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.failures)
}
