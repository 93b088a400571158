package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// client is who asks.
type client struct{ namespace, network string }

// rules are the settings that answers depend on.
type rules struct {
	domain    string // of the cluster
	preferred string // namespace that wins among equals
	noIPv6    bool
}

// found is what the mesh has for a name.
type found struct {
	// service is nil when the name is not the mesh's: the question is somebody
	// else's to answer.
	service *mesh.Service
	// target is the name that the addresses are of when it is not the one in the
	// question: an alias of that.
	target string
	// addrs are of the family that was asked for. None means that there is the
	// name but no such address.
	addrs []netip.Addr
}

// find answers for name, of which the addresses of one family are asked for. It
// owns a name only if it has an address of some family for it: a virtual address,
// or a headless service's endpoint. Whatever else the mesh knows, a range of
// addresses or nothing at all, the resolver that the pod asked may know more.
func find(s *mesh.Snapshot, c client, r rules, name string, v6 bool) found {
	for a := range aliases(name, c.namespace, r.domain) {
		if svc := choose(s, c, r, a.name); svc != nil {
			return found{service: svc, target: a.stripped, addrs: addresses(s, c, r, svc, v6)}
		}
		for w := range wildcards(a.name) {
			if svc := choose(s, c, r, w); svc != nil {
				return found{service: svc, addrs: addresses(s, c, r, svc, v6)}
			}
		}
	}
	return found{}
}

// choose picks the service that c means by exactly this host name: one of its
// own namespace, else a canonical one, else one of the preferred namespace, else
// the first.
func choose(s *mesh.Snapshot, c client, r rules, host string) *mesh.Service {
	var best *mesh.Service
	rank := -1
	for _, v := range s.ServicesNamed(host) {
		if v.NamespaceOnly && v.Namespace != c.namespace || !answerable(s, r, v) {
			continue
		}
		n := 0
		switch {
		case v.Namespace == c.namespace:
			n = 3
		case v.Canonical:
			n = 2
		case v.Namespace == r.preferred:
			n = 1
		}
		if n > rank {
			best, rank = v, n
		}
	}
	return best
}

// answerable reports whether a service has an address to give, of any family and
// on any network.
func answerable(s *mesh.Snapshot, r rules, v *mesh.Service) bool {
	if len(v.Addresses) > 0 {
		return slices.ContainsFunc(v.Addresses, mesh.NetworkAddress.IsSingle)
	}
	if !strings.HasSuffix(v.Hostname, ".svc."+r.domain) {
		return false
	}
	return slices.ContainsFunc(s.Endpoints(v.Key()), func(e mesh.Endpoint) bool { return len(e.Workload.Addresses) > 0 })
}

// addresses of one family that c reaches v at.
func addresses(s *mesh.Snapshot, c client, r rules, v *mesh.Service, v6 bool) []netip.Addr {
	switch {
	case v6 && (r.noIPv6 || v.IPFamilies == mesh.FamiliesIPv4), !v6 && v.IPFamilies == mesh.FamiliesIPv6:
		return nil
	}
	var out []netip.Addr
	if len(v.Addresses) > 0 {
		for _, a := range v.Addresses {
			if ip := a.Prefix.Addr().Unmap(); a.IsSingle() && a.Network == c.network && ip.Is6() == v6 {
				out = append(out, ip)
			}
		}
		return out
	}
	for _, e := range s.Endpoints(v.Key()) {
		if e.Workload.Network != c.network {
			continue // its address means another host here
		}
		if i := slices.IndexFunc(e.Workload.Addresses, func(a netip.Addr) bool { return a.Unmap().Is6() == v6 }); i >= 0 {
			out = append(out, e.Workload.Addresses[i].Unmap())
		}
	}
	return out
}
