package outbound

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// HBONEPort is where HBONE is served.
const HBONEPort = 15008

// Kind is how a connection is carried.
type Kind uint8

const (
	// Refuse: the connection ends here, for the route's Refusal.
	Refuse Kind = iota
	// PassThrough: plain TCP to what was dialled; the mesh does not know it.
	PassThrough
	// TCP: plain TCP to an endpoint that is not in the mesh.
	TCP
	// HBONE: CONNECT to the destination itself.
	HBONE
	// Waypoint: CONNECT to the destination's waypoint.
	Waypoint
	// Gateway: CONNECT to the gateway of the destination's network, and inside it
	// another to the destination or its waypoint (double HBONE).
	Gateway
)

func (k Kind) String() string {
	return [...]string{"refuse", "pass-through", "tcp", "hbone", "waypoint", "gateway"}[k]
}

// tunnelled reports whether the connection is carried by HBONE.
func (k Kind) tunnelled() bool { return k == HBONE || k == Waypoint || k == Gateway }

// Route is where one connection goes.
type Route struct {
	Kind Kind
	// Addr is the TCP destination, without an address when Upstream has none but a
	// host name; resolved fills it in.
	Addr      netip.AddrPort
	Authority netip.AddrPort // of the CONNECT; HBONE and Waypoint only
	Expect    []identity.ID  // the server at Addr must be one of these; not for plain TCP
	Upstream  *mesh.Workload // who is at Addr; nil for PassThrough
	Service   *mesh.Service  // the service that was dialled, if it was one
	Refusal   *live.Error    // Refuse only
	chosen    string         // UID of the endpoint that was selected, for Choice; "" means Upstream's

	// Gateway only: the port of Service in the authority, who is wanted behind the
	// gateway, and who the server there must be.
	Port   uint16
	Remote *mesh.Workload
	Inner  []identity.ID
}

// authority is what the CONNECT asks for; of double HBONE, either of them.
func (r *Route) authority() string {
	if r.Kind == Gateway {
		return net.JoinHostPort(r.Service.Hostname, strconv.Itoa(int(r.Port)))
	}
	return r.Authority.String()
}

// resolved is r with the address that the host name of its upstream stands for.
func (r Route) resolved(ip netip.Addr) Route {
	if r.Kind == HBONE {
		r.Authority = netip.AddrPortFrom(ip, r.Authority.Port())
	}
	r.Addr = netip.AddrPortFrom(ip, r.Addr.Port())
	return r
}

// Choice makes the random decisions of Resolve and leaves out endpoints that
// have just failed. The zero Choice is what new connections use.
type Choice struct {
	Rand func(n uint64) uint64 // uniform in [0, n); nil means math/rand
	Skip []string              // UIDs of endpoints not to choose
}

func (c Choice) rand(n uint64) uint64 {
	if c.Rand != nil {
		return c.Rand(n)
	}
	return rand.Uint64N(n)
}

func refuse(s *mesh.Service, r live.Reason, format string, args ...any) Route {
	return Route{Kind: Refuse, Service: s, Refusal: live.Errorf(r, format, args...)}
}

// illegal reports whether p is a port of ztunnel's own inside a pod.
func illegal(p uint16) bool { return p == 15001 || p == 15006 || p == 15008 }

// Resolve decides where a connection of source to dst goes, by one snapshot
// and nothing else. The order is that of Istio's ztunnel: service before
// workload for the upstream, the service's waypoint before its endpoints, a
// workload's waypoint only when it was dialled by its own address.
func Resolve(snap *mesh.Snapshot, source *mesh.Workload, dst netip.AddrPort, choice Choice) Route {
	ip := dst.Addr().Unmap()
	dst = netip.AddrPortFrom(ip, dst.Port())
	if ip.IsLoopback() && illegal(dst.Port()) {
		return refuse(nil, live.SelfCall, "connection to %s: the port is the mesh's own", dst)
	}

	var dialled *mesh.Service // named by address, and no workload has that address
	if snap.WorkloadAt(source.Network, ip) == nil {
		dialled = snap.ServiceAt(source.Network, ip, source.Namespace)
	}
	if dialled != nil {
		if g := pickWaypoint(dialled, choice); g != nil {
			return toWaypoint(snap, source, dialled, g, dst, choice)
		}
	}

	up, ok := upstream(snap, source, dst, choice)
	if w := snap.WorkloadAt(source.Network, ip); !ok && w != nil {
		// A service claims this workload's address too but does not serve the
		// port: what goes to a workload is never passed through in plaintext.
		up, ok = target{workload: w, port: dst.Port()}, true
	}
	if !ok {
		if dialled != nil && dialled.LoadBalancing.Mode != mesh.ModePassthrough {
			return refuse(dialled, live.NoHealthyUpstream, "no healthy upstream: %s (service %s)", dst, dialled.Key())
		}
		if illegal(dst.Port()) {
			return refuse(dialled, live.SelfCall, "connection to %s: the port is the mesh's own", dst)
		}
		return Route{Kind: PassThrough, Addr: dst, Service: dialled}
	}
	if up.workload.Network != source.Network {
		return toGateway(snap, source, up.service, up, dst, choice)
	}
	if dialled == nil && up.workload.Waypoint != nil && !fromWaypoint(snap, source, up.workload) {
		return toWaypoint(snap, source, nil, up.workload.Waypoint, dst, choice)
	}
	addr, ok := reachable(up.workload, up.service, ip)
	if !ok {
		return refuse(dialled, live.NoAddress, "endpoint %s of %s has no usable address", up.workload.UID, dst)
	}
	chosen := up.workload.UID
	if w := snap.WorkloadAt(source.Network, addr); w != nil && w.Protocol == mesh.ProtocolHBONE && up.workload.Protocol != w.Protocol {
		// An endpoint written by hand at the address of a pod of the mesh is that
		// pod: what goes to one is never in plaintext.
		up.workload = w
	}
	target := netip.AddrPortFrom(addr, up.port)
	r := Route{Kind: TCP, Addr: target, Upstream: up.workload, Service: up.service, chosen: chosen}
	if up.workload.Protocol == mesh.ProtocolHBONE {
		r.Kind = HBONE
		r.Addr = netip.AddrPortFrom(addr, HBONEPort)
		r.Authority = target
		r.Expect = expected(up.service, up.workload)
	}
	return r
}

// target is an upstream that was selected.
type target struct {
	workload *mesh.Workload
	service  *mesh.Service // through which it was selected, if through one
	port     uint16
}

// upstream selects who serves dst: a service's endpoint, or the workload with
// that address.
func upstream(snap *mesh.Snapshot, source *mesh.Workload, dst netip.AddrPort, choice Choice) (target, bool) {
	if svc := snap.ServiceAt(source.Network, dst.Addr(), source.Namespace); svc != nil {
		return balance(snap, source, svc, dst.Addr(), dst.Port(), false, choice)
	}
	if w := snap.WorkloadAt(source.Network, dst.Addr()); w != nil {
		return target{workload: w, port: dst.Port()}, true
	}
	return target{}, false
}

// reachable is address for a workload that may have a host name instead: then
// the address is to be asked for, and none is given.
func reachable(w *mesh.Workload, svc *mesh.Service, dialled netip.Addr) (netip.Addr, bool) {
	a, ok := address(w, svc, dialled)
	return a, ok || w.Hostname != ""
}

// toWaypoint routes by way of gateway. The authority stays what the
// application dialled; a waypoint that cannot be found refuses, it is never
// bypassed.
func toWaypoint(snap *mesh.Snapshot, source *mesh.Workload, svc *mesh.Service, g *mesh.GatewayAddress, dst netip.AddrPort, choice Choice) Route {
	up, name, ok := gateway(snap, source, g, true, choice)
	if !ok {
		return refuse(svc, live.UnknownWaypoint, "unknown waypoint: %s", name)
	}
	if up.workload.Network != source.Network {
		return toGateway(snap, source, svc, up, dst, choice)
	}
	family := dst.Addr()
	if g.Hostname == "" {
		family = g.Address.Prefix.Addr()
	}
	addr, ok := reachable(up.workload, up.service, family)
	if !ok {
		return refuse(svc, live.NoAddress, "waypoint %s has no usable address", name)
	}
	return Route{
		Kind: Waypoint, Addr: netip.AddrPortFrom(addr, up.port), Authority: dst,
		Expect: expected(up.service, up.workload), Upstream: up.workload, Service: svc,
	}
}

// toGateway routes to remote, an endpoint or a waypoint in another network, by way of
// that network's gateway. What is asked for is the service that was dialled,
// since addresses mean nothing there.
func toGateway(snap *mesh.Snapshot, source *mesh.Workload, svc *mesh.Service, remote target, dst netip.AddrPort, choice Choice) Route {
	w := remote.workload
	unknown := func(format string, args ...any) Route {
		return refuse(svc, live.UnknownGateway, "%s for %s is in network %q, %w", w.UID, dst, w.Network, fmt.Errorf(format, args...))
	}
	if svc == nil {
		return unknown("and was not dialled by a service")
	}
	if w.NetworkGateway == nil {
		return unknown("which has no gateway")
	}
	inner := names(nil, remote.service)
	if len(inner) == 0 {
		return unknown("and no service says who may answer there")
	}
	gw, name, ok := gateway(snap, source, w.NetworkGateway, false, choice)
	if !ok {
		return unknown("whose gateway %s is not known", name)
	}
	family := dst.Addr()
	if w.NetworkGateway.Hostname == "" {
		family = w.NetworkGateway.Address.Prefix.Addr()
	}
	addr, ok := reachable(gw.workload, gw.service, family)
	if !ok {
		return refuse(svc, live.NoAddress, "gateway %s of network %q has no usable address", name, w.Network)
	}
	return Route{
		Kind: Gateway, Addr: netip.AddrPortFrom(addr, gw.port), Expect: expected(gw.service, gw.workload), Upstream: gw.workload,
		Service: svc, Port: dst.Port(), Remote: w, Inner: inner,
	}
}

// gateway finds the workload behind a gateway address; forWaypoint is balance's.
func gateway(snap *mesh.Snapshot, source *mesh.Workload, g *mesh.GatewayAddress, forWaypoint bool, choice Choice) (target, string, bool) {
	alone := func(w *mesh.Workload, name string) (target, string, bool) {
		return target{workload: w, port: g.HBONEPort}, name, w != nil && !slices.Contains(choice.Skip, w.UID)
	}
	if g.Hostname == "" {
		a := g.Address.Prefix.Addr()
		name := g.Address.Network + "/" + a.String()
		if svc := snap.ServiceAt(g.Address.Network, a, source.Namespace); svc != nil {
			up, ok := balance(snap, source, svc, a, g.HBONEPort, forWaypoint, choice)
			return up, name, ok
		}
		return alone(snap.WorkloadAt(g.Address.Network, a), name)
	}
	name := g.Namespace + "/" + g.Hostname
	if svc := snap.Service(name); svc != nil {
		up, ok := balance(snap, source, svc, netip.Addr{}, g.HBONEPort, forWaypoint, choice)
		return up, name, ok
	}
	return alone(snap.WorkloadByHostname(g.Namespace, g.Hostname), name)
}

// fromWaypoint reports whether source is the waypoint of w: then it has had
// its say and goes direct.
func fromWaypoint(snap *mesh.Snapshot, source, w *mesh.Workload) bool {
	is := func(p *mesh.Workload) bool {
		return p != nil && p.Identity() == source.Identity() &&
			slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return slices.Contains(source.Addresses, a) })
	}
	var svc *mesh.Service
	if g := w.Waypoint; g.Hostname != "" {
		if svc = snap.Service(g.Namespace + "/" + g.Hostname); svc == nil {
			return is(snap.WorkloadByHostname(g.Namespace, g.Hostname))
		}
	} else {
		a := g.Address.Prefix.Addr()
		if is(snap.WorkloadAt(g.Address.Network, a)) {
			return true
		}
		svc = snap.ServiceAt(g.Address.Network, a, source.Namespace)
	}
	if svc == nil {
		return false
	}
	return slices.ContainsFunc(snap.Endpoints(svc.Key()), func(e mesh.Endpoint) bool { return is(e.Workload) })
}

// pickWaypoint is the service's waypoint; among weighted ones it samples.
func pickWaypoint(svc *mesh.Service, choice Choice) *mesh.GatewayAddress {
	var total uint64
	for i := range svc.Weighted {
		total += uint64(svc.Weighted[i].Weight)
	}
	if total > 0 {
		n := choice.rand(total)
		for i := range svc.Weighted {
			w := uint64(svc.Weighted[i].Weight)
			if n < w {
				return &svc.Weighted[i].Destination
			}
			n -= w
		}
	}
	return svc.Waypoint
}

// expected are the identities a server may have: the workload's own and what
// its service lists.
func expected(svc *mesh.Service, w *mesh.Workload) []identity.ID {
	return names([]identity.ID{w.Identity()}, svc)
}

// names adds to ids the identities that svc lists.
func names(ids []identity.ID, svc *mesh.Service) []identity.ID {
	if svc == nil {
		return ids
	}
	for _, san := range svc.SubjectAltNames {
		if id, err := identity.Parse(san); err == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// address chooses an address of w: the one dialled if it is w's, else one the
// service's families allow, preferring the family that was dialled.
func address(w *mesh.Workload, svc *mesh.Service, dialled netip.Addr) (netip.Addr, bool) {
	if slices.Contains(w.Addresses, dialled) {
		return dialled, true
	}
	var first netip.Addr
	for _, a := range w.Addresses {
		if svc != nil && (svc.IPFamilies == mesh.FamiliesIPv4 && !a.Is4() || svc.IPFamilies == mesh.FamiliesIPv6 && !a.Is6()) {
			continue
		}
		if a.Is4() == dialled.Is4() {
			return a, true
		}
		if !first.IsValid() {
			first = a
		}
	}
	return first, first.IsValid()
}
