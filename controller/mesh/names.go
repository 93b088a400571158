package mesh

import (
	"net/netip"
	"strings"
)

// AddressName is the name by which a control plane is asked about an address:
// <network>/<address>.
func AddressName(network string, a netip.Addr) string { return network + "/" + a.Unmap().String() }

// ParseAddressName is the inverse of AddressName; false means that name is of
// another kind, a UID or a service's key.
func ParseAddressName(name string) (network string, a netip.Addr, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", netip.Addr{}, false
	}
	a, err := netip.ParseAddr(name[i+1:])
	if err != nil || a.Zone() != "" {
		return "", netip.Addr{}, false
	}
	return name[:i], a.Unmap(), true
}

// WorkloadsAt returns every workload that claims a in network, the one that
// WorkloadAt returns first. The result must not be modified.
func (s *Snapshot) WorkloadsAt(network string, a netip.Addr) []*Workload {
	c, _ := s.byAddr.get(addrKey{network, a.Unmap()})
	return c
}

// ServicesAt returns every service with a virtual address that is or holds a,
// whoever may see it. The result must not be modified.
func (s *Snapshot) ServicesAt(network string, a netip.Addr) []*Service {
	a = a.Unmap()
	out, _ := s.byVIP.get(vipKey{network, netip.PrefixFrom(a, a.BitLen())})
	for _, l := range s.lengths {
		if p, err := a.Prefix(l.bits); err == nil && l.v6 == a.Is6() {
			more, _ := s.byVIP.get(vipKey{network, p})
			out = append(out[:len(out):len(out)], more...)
		}
	}
	return out
}

// EndpointsOf returns all workloads that name a service, healthy or not, even
// while the service is unknown. The result must not be modified.
func (s *Snapshot) EndpointsOf(serviceKey string) []Endpoint {
	set, ok := s.endpoints.get(serviceKey)
	if !ok {
		return nil
	}
	return set.all
}

// Names are the address names of w, none for one on its node's network.
func (w *Workload) Names() []string {
	if w.HostNetwork {
		return nil
	}
	out := make([]string, len(w.Addresses))
	for i, a := range w.Addresses {
		out[i] = AddressName(w.Network, a)
	}
	return out
}

// Names are the address names of s's virtual addresses; those of CIDR ones
// are left out.
func (s *Service) Names() []string {
	var out []string
	for _, a := range s.Addresses {
		if a.Prefix.IsSingleIP() {
			out = append(out, AddressName(a.Network, a.Prefix.Addr()))
		}
	}
	return out
}

// Name of what g points at, as a control plane is asked about it.
func (g *GatewayAddress) Name() string {
	if g.Hostname != "" {
		return g.Namespace + "/" + g.Hostname
	}
	return AddressName(g.Address.Network, g.Address.Prefix.Addr())
}
