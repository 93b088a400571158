package inbound

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// judged is who policy is asked about: the peer, or the client that a waypoint of
// w makes the connection for. Anybody may say that he does; believed is
// who this node's own configuration names as the waypoint of w or of a service
// of w, and nobody else is even listened to.
func judged(snap *mesh.Snapshot, w *mesh.Workload, peer identity.ID, src netip.AddrPort, r hbone.Request, terms *identity.Terms) (authz.Conn, error) {
	c := authz.Conn{Peer: peer, Src: src}
	if r.Get(hbone.ClientHeader) == "" || !hasWaypoint(snap, w, peer, src.Addr(), terms) {
		return c, nil
	}
	client, err := r.Client()
	if err != nil {
		return c, live.Errorf(live.BadRequest, "waypoint %s: %w", peer, err)
	}
	if td := w.Identity().TrustDomain; !terms.SameDomain(client.TrustDomain, td) {
		return c, live.Errorf(live.BadRequest, "waypoint %s: client %s is not of trust domain %q", peer, client, td)
	}
	at, ok := forwardedFor(r.Get("forwarded"))
	if !ok {
		// Policies are about addresses too, and the waypoint's own is not the client's.
		return c, live.Errorf(live.BadRequest, "waypoint %s: no address of client %s", peer, client)
	}
	return authz.Conn{Peer: client, Src: at, Through: peer}, nil
}

// waypoints sees to it that the waypoints of w and its services are known where
// not all of the mesh is.
func (p *Proxy) waypoints(ctx context.Context, snap *mesh.Snapshot, w *mesh.Workload) (*mesh.Snapshot, error) {
	// What is dialled is asked about together with its waypoint.
	dialled := slices.Clone(w.Addresses[:min(1, len(w.Addresses))])
	for key := range w.Services {
		if s := snap.Service(key); s != nil && len(s.Addresses) > 0 {
			dialled = append(dialled, s.Addresses[0].Prefix.Addr())
		}
	}
	for _, a := range dialled {
		var err error
		if snap, err = live.Learn(ctx, p.cfg.Demand, p.cfg.Store, p.cfg.Pod, w, a); err != nil {
			return snap, err
		}
	}
	return snap, nil
}

// hasWaypoint reports whether id at that address is a waypoint that w, or a service
// of w, is configured to have. The address counts as well, because a waypoint may
// share its service account with pods that are none. Replicas that are not ready
// count: one that ends still has connections to make for the requests that it
// holds.
func hasWaypoint(snap *mesh.Snapshot, w *mesh.Workload, id identity.ID, at netip.Addr, terms *identity.Terms) bool {
	is := func(p *mesh.Workload) bool {
		return p != nil && terms.SameID(p.Identity(), id, w.Identity().TrustDomain) && slices.Contains(p.Addresses, at)
	}
	if isWorkload(snap, w, w.Waypoint, is) {
		return true
	}
	for key := range w.Services {
		s := snap.Service(key)
		if s == nil {
			continue
		}
		if isWorkload(snap, w, s.Waypoint, is) {
			return true
		}
		for i := range s.Weighted {
			if isWorkload(snap, w, &s.Weighted[i].Destination, is) {
				return true
			}
		}
	}
	return false
}

// isWorkload reports whether is says yes to a workload that g leads to, seen from w.
func isWorkload(snap *mesh.Snapshot, w *mesh.Workload, g *mesh.GatewayAddress, is func(*mesh.Workload) bool) bool {
	if g == nil {
		return false
	}
	var svc *mesh.Service
	if g.Hostname != "" {
		if svc = snap.Service(g.Namespace + "/" + g.Hostname); svc == nil {
			return is(snap.WorkloadByHostname(g.Namespace, g.Hostname))
		}
	} else {
		a := g.Address.Prefix.Addr()
		if is(snap.WorkloadAt(g.Address.Network, a)) {
			return true
		}
		if svc = snap.ServiceAt(g.Address.Network, a, w.Namespace); svc == nil {
			return false
		}
	}
	return slices.ContainsFunc(snap.Members(svc.Key()), func(e mesh.Endpoint) bool { return is(e.Workload) })
}

// forwardedFor is the first address of an RFC 7239 header; who writes it there is
// who speaks to us.
func forwardedFor(h string) (netip.AddrPort, bool) {
	element, _, _ := strings.Cut(h, ",")
	for pair := range strings.SplitSeq(element, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if ok && strings.EqualFold(name, "for") {
			a, err := netip.ParseAddrPort(strings.Trim(value, `"`))
			return unmap(a), err == nil && a.Addr().Zone() == ""
		}
	}
	return netip.AddrPort{}, false
}

// sourceOf is what is known of a client for logs and metrics: the mesh's record of
// its address, if that is one of its identity, or what it says of itself. From
// another network its address means nothing here.
func (p *Proxy) sourceOf(snap *mesh.Snapshot, self *mesh.Workload, peer identity.ID, src netip.Addr, r hbone.Request) *mesh.Workload {
	var known *mesh.Workload
	if network := r.Values(hbone.NetworkHeader); len(network) == 0 || strings.EqualFold(network[0], self.Network) {
		known = snap.WorkloadAt(self.Network, src)
	}
	if known != nil && known.Identity() == peer || p.cfg.NoBaggage {
		return known
	}
	m := live.ParseBaggage(r.Values("baggage")...)
	if m.Namespace != "" && m.Namespace != peer.Namespace {
		return known // it says to be somebody else
	}
	if w := p.cfg.Table.Stranger(m.Record(peer)); w != nil {
		return w
	}
	return known
}
