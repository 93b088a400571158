package outbound

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Names resolves the host names that workloads have instead of addresses, with
// the DNS of ztunnel itself: the client has asked for an address of the mesh, and
// what is behind it need not be known where the client is.
type Names struct {
	ask Ask
	now func() time.Time

	mu    sync.Mutex
	known map[string]*answer // guarded by mu
}

// answer is what DNS said, or is being asked.
type answer struct {
	done  chan struct{} // closed when the fields below are set
	addrs []netip.Addr
	err   error
	until time.Time
}

// Ask gives all addresses of a host name, and for how long they count.
type Ask func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error)

// How long what DNS said counts: as long as it says, but a busy client does not ask
// for each connection, and what has changed is found some time.
const (
	nameFresh   = 5 * time.Second // where it does not say
	nameLeast   = time.Second
	nameMost    = 10 * time.Minute
	nameMissing = time.Second
	nameTimeout = 5 * time.Second
	maxNames    = 4096
)

// NewNames asks ask, or if that is nil the system's resolver through Go's, which
// does not tell the records' TTL.
func NewNames(ask Ask) *Names {
	if ask == nil {
		ask = func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
			// Rooted: search domains are for what people type.
			all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host+".")
			return all, nameFresh, err
		}
	}
	return &Names{known: map[string]*answer{}, now: time.Now, ask: ask}
}

var errNoAddress = errors.New("no address")

// lookup gives all addresses of host.
func (n *Names) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	for {
		n.mu.Lock()
		a := n.known[host]
		mine := a == nil || a.stale(n.now())
		if mine {
			if len(n.known) >= maxNames {
				clear(n.known)
			}
			a = &answer{done: make(chan struct{})}
			n.known[host] = a
		}
		n.mu.Unlock()
		if mine {
			n.fill(ctx, a, host)
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if errors.Is(a.err, context.Canceled) && ctx.Err() == nil {
			continue // whoever asked has gone
		}
		return a.addrs, a.err
	}
}

func (a *answer) stale(now time.Time) bool {
	select {
	case <-a.done:
		return now.After(a.until) || errors.Is(a.err, context.Canceled)
	default:
		return false
	}
}

func (n *Names) fill(ctx context.Context, a *answer, host string) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	var ttl time.Duration
	a.addrs, ttl, a.err = n.ask(ctx, host)
	for i := range a.addrs {
		a.addrs[i] = a.addrs[i].Unmap()
	}
	if a.err == nil && len(a.addrs) == 0 {
		a.err = errNoAddress
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		a.err = context.Canceled // Go's resolver has its own words for it
	}
	a.until = n.now().Add(min(max(ttl, nameLeast), nameMost))
	if a.err != nil {
		a.until = n.now().Add(nameMissing)
	}
	close(a.done)
}

// lookup is one address of host, of the family that was dialled if there is one.
func (p *Proxy) lookup(ctx context.Context, host string, self *mesh.Workload, v4 bool) (netip.Addr, error) {
	p.cfg.Table.Metrics().NameAsked(self, host)
	all, err := p.cfg.Names.lookup(ctx, host)
	if err != nil {
		return netip.Addr{}, err
	}
	return choose(all, v4, rand.IntN), nil
}

// choose picks one at random, of the wanted family if there is any.
func choose(all []netip.Addr, v4 bool, pick func(int) int) netip.Addr {
	var same []netip.Addr
	for _, a := range all {
		if a.Is4() == v4 {
			same = append(same, a)
		}
	}
	if len(same) == 0 {
		same = all
	}
	return same[pick(len(same))]
}
