package live

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// GateConfig are the figures of a Gate.
type GateConfig struct {
	Limit    int           // handshakes under way
	Patience time.Duration // what a handshake gets at least
	Rate     float64       // handshakes per second, in the long run; 0: any number
	// Refused is told of a connection that is not to be served, which it owns, and why.
	Refused func(net.Conn, *Error)
	// Delayed is called for every time that connections have to wait. May be nil.
	Delayed func()
	Now     func() time.Time // nil: time.Now
}

// Gate bounds the handshakes of one pod: how many are under way, and how many there
// are per second. Whoever comes beyond waits in the kernel, and other pods'
// connections do not wait for them. Clients that stop half-way must not keep others
// out, so that when it is full a handshake has less time. Nor must one client: of
// one that has more than a quarter of it handshakes have less time still, and
// beyond a quarter of the rate it is refused.
type Gate struct {
	cfg GateConfig // immutable

	mu      sync.Mutex
	under   []handshake            // guarded by mu; the oldest first
	changed chan struct{}          // guarded by mu; closed when one ends
	all     tokens                 // guarded by mu
	sources map[netip.Addr]*tokens // guarded by mu; those seen lately
}

type handshake struct {
	c     net.Conn
	from  netip.Addr
	since time.Time
}

// tokens is a bucket that fills at a rate, up to burstTime of it.
type tokens struct {
	left float64
	last time.Time
}

// burstTime is how much of the rate may come at once.
const burstTime = 2 * time.Second

// fill brings the bucket up to now; a new one is full.
func (b *tokens) fill(rate float64, now time.Time) {
	full := max(1, rate*burstTime.Seconds())
	if b.last.IsZero() {
		b.left = full
	} else {
		b.left = min(full, b.left+rate*now.Sub(b.last).Seconds())
	}
	b.last = now
}

// quarter is how much of everything one client may have.
const quarter = 4

// maxSources is how many clients' buckets are kept before full ones are forgotten.
const maxSources = 1024

// NewGate makes a Gate.
func NewGate(cfg GateConfig) *Gate {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Delayed == nil {
		cfg.Delayed = func() {}
	}
	return &Gate{cfg: cfg, changed: make(chan struct{}), sources: map[netip.Addr]*tokens{}}
}

// Listen makes every connection that ln accepts pass the gate.
func (g *Gate) Listen(ln net.Listener) net.Listener { return gated{ln, g} }

type gated struct {
	net.Listener
	g *Gate
}

// Accept waits for room first: what is not accepted costs us nothing.
func (l gated) Accept() (net.Conn, error) {
	for {
		l.g.await()
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if why := l.g.enter(c); why != nil {
			l.g.cfg.Refused(c, why)
			continue
		}
		return c, nil
	}
}

// await returns when there is room, which takes no longer than patience, and the
// rate allows another.
func (g *Gate) await() {
	delayed := false
	for {
		g.mu.Lock()
		left := g.wait(g.cfg.Now())
		changed := g.changed
		g.mu.Unlock()
		if left <= 0 {
			return
		}
		if !delayed {
			delayed = true
			g.cfg.Delayed()
		}
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// wait is how long to wait at most before there may be room; mu is held.
func (g *Gate) wait(now time.Time) time.Duration {
	if g.cfg.Rate > 0 {
		if g.all.fill(g.cfg.Rate, now); g.all.left < 1 {
			return time.Duration((1-g.all.left)/g.cfg.Rate*float64(time.Second)).Round(time.Microsecond) + time.Microsecond
		}
	}
	if len(g.under) < g.cfg.Limit {
		return 0
	}
	i, left := g.next(now)
	if left <= 0 {
		g.expel(i)
	}
	return left
}

// next is which handshake has to go first, and when. mu is held.
func (g *Gate) next(now time.Time) (i int, left time.Duration) {
	mine := map[netip.Addr]int{}
	for _, h := range g.under {
		mine[h.from]++
	}
	left = g.cfg.Patience - now.Sub(g.under[0].since)
	for j, h := range g.under {
		if l := g.cfg.Patience/quarter - now.Sub(h.since); l < left && mine[h.from] > g.cfg.Limit/quarter {
			i, left = j, l
		}
	}
	return i, left
}

// expel ends the handshake at i, which fails as one that took too long. mu is held.
func (g *Gate) expel(i int) {
	_ = g.under[i].c.SetDeadline(time.Unix(1, 0))
	g.under = slices.Delete(g.under, i, i+1)
}

// enter notes c as under way, or says why it is to be refused.
func (g *Gate) enter(c net.Conn) *Error {
	from, now := AddrPort(c.RemoteAddr()).Addr(), g.cfg.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all.left--
	if why := g.tooFast(from, now); why != nil {
		return why
	}
	g.under = append(g.under, handshake{c, from, now})
	return nil
}

// tooFast takes a token of one client. mu is held.
func (g *Gate) tooFast(from netip.Addr, now time.Time) *Error {
	if g.cfg.Rate <= 0 {
		return nil
	}
	rate := g.cfg.Rate / quarter
	b := g.sources[from]
	if b == nil {
		if len(g.sources) >= maxSources {
			for a, b := range g.sources {
				if b.fill(rate, now); b.left >= rate*burstTime.Seconds() {
					delete(g.sources, a)
				}
			}
		}
		b = &tokens{}
		g.sources[from] = b
	}
	if b.fill(rate, now); b.left < 1 {
		return Errorf(QuotaHandshakes, "more than %.0f handshakes per second from %s", rate, from)
	}
	b.left--
	return nil
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
