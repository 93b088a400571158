package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	wire "github.com/miekg/dns"
)

// Hosts asks for the addresses of host names for the proxy itself: of workloads
// that have a name and no address. It asks the resolvers of ztunnel's own
// resolv.conf, from ztunnel's own namespace.
type Hosts struct {
	servers []netip.AddrPort
	noIPv6  bool
	ask     func(ctx context.Context, server, name string, kind uint16) (*wire.Msg, error)
}

// maxTTL is how long an answer counts at most, whatever it says itself.
const maxTTL = 10 * time.Minute

// NewHosts asks servers.
func NewHosts(servers []netip.AddrPort, noIPv6 bool) *Hosts {
	return &Hosts{servers: servers, noIPv6: noIPv6, ask: exchangeOnce}
}

// Lookup gives the addresses of a full name, of both families at once, and for
// how long they count.
func (h *Hosts) Lookup(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	kinds := []uint16{wire.TypeA, wire.TypeAAAA}
	if h.noIPv6 {
		kinds = kinds[:1]
	}
	type result struct {
		addrs []netip.Addr
		ttl   time.Duration
		err   error
	}
	results := make([]result, len(kinds))
	var wg sync.WaitGroup
	for i, kind := range kinds {
		wg.Go(func() {
			r := &results[i]
			r.addrs, r.ttl, r.err = h.one(ctx, name, kind)
		})
	}
	wg.Wait()
	var (
		addrs []netip.Addr
		errs  []error
		ttl   = maxTTL
	)
	for _, r := range results {
		if r.err != nil {
			errs = append(errs, r.err)
			continue
		}
		addrs = append(addrs, r.addrs...)
		if len(r.addrs) > 0 {
			ttl = min(ttl, r.ttl)
		}
	}
	switch {
	case len(addrs) > 0:
		return addrs, ttl, nil
	case len(errs) > 0:
		return nil, 0, errors.Join(errs...)
	}
	return nil, 0, errors.New("the name has no address")
}

// hostTries is how often each resolver is asked.
const hostTries = 2

// one asks for one family, each resolver in turn.
func (h *Hosts) one(ctx context.Context, name string, kind uint16) ([]netip.Addr, time.Duration, error) {
	err := errors.New("ztunnel's resolv.conf names no resolver")
	for range hostTries {
		for _, server := range h.servers {
			var m *wire.Msg
			m, err = h.ask(ctx, server.String(), name, kind)
			if err != nil {
				continue
			}
			if m.Rcode != wire.RcodeSuccess && m.Rcode != wire.RcodeNameError {
				err = fmt.Errorf("%s answered %s", server, wire.RcodeToString[m.Rcode])
				continue
			}
			addrs, ttl := addressesOf(m, kind)
			return addrs, ttl, nil
		}
	}
	return nil, 0, err
}

// addressesOf reads the addresses of a recursive resolver's answer: it follows
// aliases itself, so that every address is of the name or an alias of it.
func addressesOf(m *wire.Msg, kind uint16) ([]netip.Addr, time.Duration) {
	var addrs []netip.Addr
	ttl := maxTTL
	for _, rr := range m.Answer {
		var ip net.IP
		switch r := rr.(type) {
		case *wire.A:
			if kind == wire.TypeA {
				ip = r.A
			}
		case *wire.AAAA:
			if kind == wire.TypeAAAA {
				ip = r.AAAA
			}
		}
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		if a, ok := netip.AddrFromSlice(ip); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs, ttl
}

// exchangeOnce asks one resolver, over TCP too if the answer is too long.
func exchangeOnce(ctx context.Context, server, name string, kind uint16) (*wire.Msg, error) {
	m := new(wire.Msg)
	m.SetQuestion(wire.Fqdn(name), kind)
	m.SetEdns0(1232, false)
	c := wire.Client{Timeout: firstTry}
	answer, _, err := c.ExchangeContext(ctx, m, server)
	if err == nil && answer.Truncated {
		c.Net = "tcp"
		answer, _, err = c.ExchangeContext(ctx, m, server)
	}
	return answer, err
}

// Resolvers are the name servers of a resolv.conf.
func Resolvers(path string) ([]netip.AddrPort, error) {
	c, err := wire.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("resolvers: %w", err)
	}
	var out []netip.AddrPort
	for _, s := range c.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.AddrPortFrom(a.Unmap(), 53))
		}
	}
	return out, nil
}
