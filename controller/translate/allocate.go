package translate

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"math"
	"net/netip"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// AllocateLabel with the value "false" opts a ServiceEntry out of addresses of
// its own.
const AllocateLabel = "networking.istio.io/enable-autoallocate-ip"

// Allocates reports whether the hosts of se get an address each: a client can
// then tell by the address which host it means.
func Allocates(se *networkingv1.ServiceEntry) bool {
	return len(se.Spec.GetAddresses()) == 0 && se.Spec.GetResolution() != networking.ServiceEntry_NONE &&
		!strings.EqualFold(se.Labels[AllocateLabel], "false")
}

// AllocateHosts are those hosts, lower case.
func AllocateHosts(se *networkingv1.ServiceEntry) []string {
	if !Allocates(se) {
		return nil
	}
	var out []string
	for _, h := range Hosts(se) {
		if allocatable(se, h) {
			out = append(out, h)
		}
	}
	return out
}

// allocatable: only a waypoint knows which of the names under a wildcard a
// connection is for, and for that its resolution must be dynamic.
func allocatable(se *networkingv1.ServiceEntry, host string) bool {
	return !wildcard(host) || se.Spec.GetResolution() == networking.ServiceEntry_DYNAMIC_DNS
}

// Candidates are the addresses of p in the order in which the host called key
// asks for them: it is the same in every replica and after every restart, and an
// entry that is made again gets what it had. The first and the last address of
// an IPv4 range look like a network's own and are left out.
func Candidates(p netip.Prefix, key string) iter.Seq[netip.Addr] {
	sum := sha256.Sum256([]byte(key))
	start := binary.BigEndian.Uint64(sum[:8])
	last := uint64(math.MaxUint64) >> (64 - min(64, p.Addr().BitLen()-p.Bits()))
	return func(yield func(netip.Addr) bool) {
		for i := uint64(0); ; i++ {
			n := (start + i) & last
			usable := n != 0 && (n != last || !p.Addr().Is4())
			if usable && !yield(nth(p, n)) || i == last {
				return
			}
		}
	}
}

// nth address of p, whose lower bits are zero.
func nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().As16() // an IPv4 address is in the last four bytes
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low|n)
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}
