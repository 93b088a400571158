package live

import (
	"context"
	"net/netip"
	"slices"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Demand asks the control plane for single names, where not all of the mesh is
// sent. Names are those of mesh: <network>/<address> and <namespace>/<host name>.
type Demand interface {
	// Known reports whether nothing is to be learned by asking for name: it means
	// nothing, or a service whose workloads are all there.
	Known(name string) bool
	// Fetch returns once the store holds the answer, or with an error. of is on
	// whose behalf it is: what one of them asks is bounded.
	Fetch(ctx context.Context, of, name string) error
}

// hops bounds how often an answer leads to further questions: an address to its
// service, that to its waypoint, that to its network gateway.
const hops = 4

// Learn sees to it that the store knows what there is to know about a
// destination that source dials, and about the way to it. It returns the snapshot
// to decide with. Without an answer nothing is decided: to take an unknown
// address for one outside the mesh would mean plaintext.
func Learn(ctx context.Context, d Demand, store *mesh.Store, pod *Pod, source *mesh.Workload, dst netip.Addr) (*mesh.Snapshot, error) {
	snap := store.Load()
	if d == nil {
		return snap, nil
	}
	for range hops {
		names := unknown(snap, source, dst.Unmap(), d.Known)
		if len(names) == 0 {
			break
		}
		for _, n := range names {
			if err := d.Fetch(ctx, pod.UID, n); err != nil {
				return snap, Errorf(LookupUnanswered, "what %s is cannot be known: %w", dst, err)
			}
		}
		snap = store.Load()
	}
	return snap, nil
}

// unknown names what is to be asked for before a connection of source to dst
// can be decided on by snap.
func unknown(snap *mesh.Snapshot, source *mesh.Workload, dst netip.Addr, known func(string) bool) []string {
	if dst.IsLoopback() || dst.IsUnspecified() {
		return nil
	}
	var names []string
	want := func(name string) {
		if !slices.Contains(names, name) && !known(name) {
			names = append(names, name)
		}
	}
	gateway := func(g *mesh.GatewayAddress) {
		switch {
		case g == nil:
		case g.Hostname != "":
			if snap.WorkloadByHostname(g.Namespace, g.Hostname) == nil || snap.Service(g.Name()) != nil {
				want(g.Name())
			}
		default:
			a := g.Address.Prefix.Addr()
			if v := snap.ServiceAt(g.Address.Network, a, source.Namespace); v != nil {
				want(v.Key())
			} else if snap.WorkloadAt(g.Address.Network, a) == nil {
				want(g.Name())
			}
		}
	}
	remote := func(w *mesh.Workload) {
		if w.Network != source.Network {
			gateway(w.NetworkGateway)
		}
	}
	w := snap.WorkloadAt(source.Network, dst)
	v := snap.ServiceAt(source.Network, dst, source.Namespace)
	if w == nil && v == nil {
		want(mesh.AddressName(source.Network, dst))
	}
	if w != nil {
		gateway(w.Waypoint)
		remote(w)
	}
	if v != nil {
		want(v.Key())
		gateway(v.Waypoint)
		for i := range v.Weighted {
			gateway(&v.Weighted[i].Destination)
		}
		for _, e := range snap.Endpoints(v.Key()) {
			remote(e.Workload)
		}
	}
	return names
}
