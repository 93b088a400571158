package outbound

import (
	"net/netip"
	"slices"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// balance selects an endpoint of svc for a service port: of those that serve
// the port, the ones with an address of the dialled family, of these the ones
// the service's mode prefers, one at random by capacity. forWaypoint relaxes the
// port rules for waypoints that are tunnelled to on a port their service does
// not list.
func balance(snap *mesh.Snapshot, source *mesh.Workload, svc *mesh.Service, dialled netip.Addr, port uint16, forWaypoint bool, choice Choice) (target, bool) {
	lb := &svc.LoadBalancing
	if lb.Mode == mesh.ModePassthrough {
		return target{}, false
	}
	endpoints := snap.Endpoints(svc.Key())
	// Two walks over the endpoints instead of a list of candidates: the first
	// finds the best rank and its total weight, the second picks.
	best, total := -1, uint64(0)
	for i := range endpoints {
		e := &endpoints[i]
		if _, ok := usable(source, svc, e, port, forWaypoint, choice); !ok {
			continue
		}
		rank, ok := preferred(lb, source, e.Workload)
		rank += reach(source, svc, e.Workload, dialled)
		if !ok || rank < best {
			continue
		}
		if rank > best {
			best, total = rank, 0
		}
		total += weight(e.Workload)
	}
	if total == 0 {
		return target{}, false
	}
	n := choice.rand(total)
	for i := range endpoints {
		e := &endpoints[i]
		p, ok := usable(source, svc, e, port, forWaypoint, choice)
		if !ok {
			continue
		}
		if rank, ok := preferred(lb, source, e.Workload); !ok || rank+reach(source, svc, e.Workload, dialled) != best {
			continue
		}
		w := weight(e.Workload)
		if n < w {
			return target{workload: e.Workload, service: svc, port: p}, true
		}
		n -= w
	}
	return target{}, false
}

// Ranks of reach, far above those of preferred.
const (
	otherFamily = 1 << 16
	sameFamily  = 2 << 16
)

// reach ranks w by the address it would be dialled at. A dual-stack service can
// have endpoints of one family, pods from before the cluster had both or other
// hosts: a client may have no way to the family that it did not ask for.
//
// One in another network is dialled at its gateway's, one with a host name at
// whatever that stands for.
func reach(source *mesh.Workload, svc *mesh.Service, w *mesh.Workload, dialled netip.Addr) int {
	if w.Network != source.Network {
		if w.NetworkGateway == nil {
			return 0
		}
		return sameFamily
	}
	a, ok := address(w, svc, dialled)
	if !ok && w.Hostname != "" {
		return sameFamily
	}
	switch {
	case !ok:
		return 0
	case !dialled.IsValid() || a.Is4() == dialled.Is4():
		return sameFamily
	}
	return otherFamily
}

func weight(w *mesh.Workload) uint64 {
	if w.Capacity == nil {
		return 1
	}
	return uint64(*w.Capacity)
}

// usable applies the port and reachability rules and gives the target port.
func usable(source *mesh.Workload, svc *mesh.Service, e *mesh.Endpoint, port uint16, forWaypoint bool, choice Choice) (uint16, bool) {
	w := e.Workload
	if w == nil || slices.Contains(choice.Skip, w.UID) {
		return 0, false
	}
	if len(w.Addresses) == 0 && w.Hostname == "" && (w.NetworkGateway == nil || w.Network == source.Network) {
		return 0, false
	}
	tunnelled := w.AppTunnel != nil
	listed, ofService := lookup(svc.Ports, port)
	mapped, own := lookup(e.Ports, port)
	if !listed && !(forWaypoint && tunnelled) {
		return 0, false
	}
	if listed && ofService == 0 && !mapped && !forWaypoint {
		return 0, false // a named port this endpoint does not have
	}
	switch {
	case mapped && own != 0:
		return own, true
	case ofService != 0:
		return ofService, true
	case tunnelled && w.AppTunnel.Port != 0:
		return port, true
	}
	return 0, false
}

func lookup(ports []mesh.Port, servicePort uint16) (found bool, target uint16) {
	for i := range ports {
		if ports[i].ServicePort == servicePort {
			return true, ports[i].TargetPort
		}
	}
	return false, 0
}

// preferred ranks w for source. A strict service takes only full matches; one
// with failover the highest rank there is.
func preferred(lb *mesh.LoadBalancing, source, w *mesh.Workload) (int, bool) {
	switch lb.Mode {
	case mesh.ModeStrict:
		for _, s := range lb.Preference {
			if !inScope(s, source, w) {
				return 0, false
			}
		}
		return 0, true
	case mesh.ModeFailover:
		return rank(lb.Preference, source, w), true
	}
	return 0, true
}

// rank counts the preferences that match up to the first that does not. When
// the network comes first it outweighs all others together, and its mismatch
// does not end the walk.
func rank(preference []mesh.Scope, source, w *mesh.Workload) int {
	n := 0
	for i, s := range preference {
		match := inScope(s, source, w)
		if i == 0 && s == mesh.ScopeNetwork {
			if match {
				n += len(preference)
			}
			continue
		}
		if !match {
			break
		}
		n++
	}
	return n
}

func inScope(s mesh.Scope, a, b *mesh.Workload) bool {
	switch s {
	case mesh.ScopeRegion:
		return a.Locality.Region == b.Locality.Region
	case mesh.ScopeZone:
		return a.Locality.Zone == b.Locality.Zone
	case mesh.ScopeSubzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case mesh.ScopeNode:
		return a.Node == b.Node
	case mesh.ScopeCluster:
		return a.ClusterID == b.ClusterID
	case mesh.ScopeNetwork:
		return a.Network == b.Network
	}
	return true
}
