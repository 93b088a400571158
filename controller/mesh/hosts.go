package mesh

import "net/netip"

// HostNetworkAt reports whether a workload on its node's own network has this
// address: WorkloadAt finds none of those, since many share one.
func (s *Snapshot) HostNetworkAt(network string, a netip.Addr) bool {
	n, _ := s.onNode.get(addrKey{network, a.Unmap()})
	return n > 0
}

// ServicesNamed lists the services of a host name, whatever their visibility,
// sorted by key. A wildcard is found by its own name only, as "*.example.com".
// The result must not be modified.
func (s *Snapshot) ServicesNamed(host string) []*Service {
	c, _ := s.byHost.get(host)
	return c
}
