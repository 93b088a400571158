package live

import (
	"net"
	"slices"
	"sync"
	"time"
)

// Gate bounds the handshakes one pod has under way: whoever comes beyond
// waits in the kernel, and other pods' connections do not wait for them. Clients
// that stop half-way must not keep others out, so that when it is full a handshake
// has less time.
type Gate struct {
	// immutable
	limit    int
	patience time.Duration // what a handshake gets at least

	mu      sync.Mutex
	under   []handshake   // guarded by mu; the oldest first
	changed chan struct{} // guarded by mu; closed when one ends
}

type handshake struct {
	c     net.Conn
	since time.Time
}

// NewGate makes a Gate.
func NewGate(limit int, patience time.Duration) *Gate {
	return &Gate{limit: limit, patience: patience, changed: make(chan struct{})}
}

// Listen makes every connection that ln accepts pass the gate.
func (g *Gate) Listen(ln net.Listener) net.Listener { return gated{ln, g} }

type gated struct {
	net.Listener
	g *Gate
}

// Accept waits for room first: what is not accepted costs us nothing.
func (l gated) Accept() (net.Conn, error) {
	l.g.await()
	c, err := l.Listener.Accept()
	if err == nil {
		l.g.mu.Lock()
		l.g.under = append(l.g.under, handshake{c, time.Now()})
		l.g.mu.Unlock()
	}
	return c, err
}

// await returns when there is room, which takes no longer than patience.
func (g *Gate) await() {
	for {
		g.mu.Lock()
		if len(g.under) < g.limit {
			g.mu.Unlock()
			return
		}
		oldest, changed := g.under[0], g.changed
		left := g.patience - time.Since(oldest.since)
		if left <= 0 {
			g.under = g.under[1:]
			g.mu.Unlock()
			_ = oldest.c.SetDeadline(time.Unix(1, 0)) // it fails as one that took too long
			return
		}
		g.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Leave notes that the handshake of c is over; more than once does no harm.
func (g *Gate) Leave(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.under, func(h handshake) bool { return h.c == c })
	if i < 0 {
		return
	}
	g.under = slices.Delete(g.under, i, i+1)
	close(g.changed)
	g.changed = make(chan struct{})
}
