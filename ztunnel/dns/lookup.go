package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	wire "github.com/miekg/dns"
)

// Lookup resolves a host name as the pod would by asking: the mesh's names from
// its snapshot, all others from ztunnel's own resolvers. It prefers a family and
// takes the other where there is none of that.
func (s *Server) Lookup(ctx context.Context, host string, v6 bool) (netip.Addr, error) {
	kinds := [2]uint16{kindOf(v6), kindOf(!v6)}
	var (
		addrs [2][]netip.Addr
		errs  [2]error
		wg    sync.WaitGroup
	)
	for i, kind := range kinds {
		wg.Go(func() { addrs[i], errs[i] = s.lookup1(ctx, host, kind) })
	}
	wg.Wait()
	for _, as := range addrs {
		if len(as) > 0 {
			return as[rand.IntN(len(as))], nil
		}
	}
	return netip.Addr{}, errors.Join(errs[:]...)
}

// lookup1 gives the addresses of one family; an error if there are none.
func (s *Server) lookup1(ctx context.Context, host string, kind uint16) ([]netip.Addr, error) {
	m := new(wire.Msg)
	m.SetQuestion(wire.Fqdn(host), kind)
	raw, err := m.Pack()
	if err != nil {
		return nil, err
	}
	x := &exchange{question: read(raw), raw: raw, protocol: "udp", limit: maxMessage}
	answer, done := s.local(x)
	if !done {
		answer = s.resolve(ctx, x)
	}
	if answer == nil {
		return nil, context.Cause(ctx)
	}
	if err := m.Unpack(answer); err != nil {
		return nil, err
	}
	addrs, _ := addressesOf(m, kind)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s: %s without an address", wire.TypeToString[kind], wire.RcodeToString[m.Rcode])
	}
	return addrs, nil
}

func kindOf(v6 bool) uint16 {
	if v6 {
		return wire.TypeAAAA
	}
	return wire.TypeA
}
