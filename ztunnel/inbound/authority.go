package inbound

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// authority is what a CONNECT asks for: an address or a host name, and a port.
type authority struct {
	addr netip.AddrPort // valid for an address
	host string         // else
	port uint16
}

// maxAuthority bounds what is parsed and logged: a DNS name and a port.
const maxAuthority = 260

// parseAuthority reads host:port of RFC 3986 section 3.2 as CONNECT uses it (RFC
// 9110 section 7.1): an IPv6 address is in brackets, the port is required.
func parseAuthority(s string) (authority, error) {
	bad := func(why string) (authority, error) {
		return authority{}, live.Errorf(live.BadAuthority, "authority %.80q: %s", s, why)
	}
	if len(s) > maxAuthority {
		return bad("too long")
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Addr().Zone() != "" {
			return bad("an address with a zone")
		}
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		if ap.Port() == 0 {
			return bad("port 0")
		}
		return authority{addr: ap, port: ap.Port()}, nil
	}
	host, port, ok := strings.Cut(s, ":")
	if !ok {
		return bad("no port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '+' {
		return bad("port is not a number from 1 to 65535")
	}
	if !isHostname(host) {
		return bad("neither an address nor a host name")
	}
	return authority{host: strings.ToLower(host), port: uint16(n)}, nil
}

// isHostname accepts RFC 1123 names, with at least one letter so that a
// malformed address is not taken for one.
func isHostname(h string) bool {
	letter := false
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
				letter = true
			case '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return letter
}

// hop is how a CONNECT reaches the application.
type hop struct {
	// app is what the connection is for, to policy and telemetry: the address it
	// came to, and a port of the application.
	app netip.AddrPort
	// proxy is what was dialled, if the application is to be told by the PROXY
	// protocol.
	proxy netip.AddrPort
	// loopback: the application is dialled, and expects clients, there.
	loopback bool
}

// dial is the address to connect to.
func (h *hop) dial() netip.AddrPort {
	switch {
	case !h.loopback:
		return h.app
	case h.app.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), h.app.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), h.app.Port())
}

// target is where in the pod a CONNECT goes. loopback is where application
// tunnels with PROXY lead.
func target(snap *mesh.Snapshot, w *mesh.Workload, local netip.Addr, a authority, loopback bool) (hop, error) {
	port := a.port
	dialled := a.addr
	switch {
	case a.addr.IsValid():
		if err := validate(snap, w, local, a); err != nil {
			return hop{}, err
		}
	default:
		svc := snap.ServiceByHostname(a.host, w.Namespace)
		if svc == nil {
			return hop{}, live.Errorf(live.UnknownDestination, "no service %q for workload %s", a.host, w.UID)
		}
		p, ok := servicePort(svc, w, port)
		if !ok {
			return hop{}, live.Errorf(live.UnknownDestination, "service %s has no port %d at workload %s", svc.Key(), port, w.UID)
		}
		if t := w.AppTunnel; t != nil && t.Proxy {
			vip, ok := virtualAddress(svc, w.Network)
			if !ok {
				return hop{}, live.Errorf(live.UnknownDestination, "service %s has no address to tell the application of workload %s", svc.Key(), w.UID)
			}
			dialled = netip.AddrPortFrom(vip, port)
		}
		port = p
	}
	var h hop
	if t := w.AppTunnel; t != nil {
		if t.Proxy {
			h.proxy, h.loopback = dialled, loopback
		}
		if t.Port != 0 {
			port = t.Port
		}
	}
	if illegal(port) {
		return hop{}, live.Errorf(live.SelfCall, "port %d of workload %s is the mesh's own", port, w.UID)
	}
	h.app = netip.AddrPortFrom(local, port)
	return h, nil
}

// virtualAddress is the address that stands for a service which was asked for by
// name: of the workload's network if there is one, of IPv4 if there is one.
func virtualAddress(svc *mesh.Service, network string) (netip.Addr, bool) {
	var best netip.Addr
	rank := 0
	for _, a := range svc.Addresses {
		if !a.IsSingle() {
			continue
		}
		r := 1
		if a.Network == network {
			r += 2
		}
		if a.Prefix.Addr().Is4() {
			r++
		}
		if r > rank {
			best, rank = a.Prefix.Addr(), r
		}
	}
	return best, rank > 0
}

// validate refuses an address that is not the pod's, unless the pod is a
// waypoint of whatever has that address.
func validate(snap *mesh.Snapshot, w *mesh.Workload, local netip.Addr, a authority) error {
	ip := a.addr.Addr()
	if ip == local || w.AppTunnel != nil {
		return nil
	}
	if d := snap.WorkloadAt(w.Network, ip); d != nil {
		if isWaypoint(snap, w, local, d.Waypoint) {
			return nil
		}
	} else if s := snap.ServiceAt(w.Network, ip, w.Namespace); s != nil {
		if isWaypoint(snap, w, local, s.Waypoint) {
			return nil
		}
		for i := range s.Weighted {
			if isWaypoint(snap, w, local, &s.Weighted[i].Destination) {
				return nil
			}
		}
	}
	return live.Errorf(live.AddressMismatch, "ip mismatch: %s != %s", local, ip)
}

func isWaypoint(snap *mesh.Snapshot, w *mesh.Workload, local netip.Addr, g *mesh.GatewayAddress) bool {
	if g == nil {
		return false
	}
	var svc *mesh.Service
	if g.Hostname != "" {
		if svc = snap.Service(g.Namespace + "/" + g.Hostname); svc == nil {
			p := snap.WorkloadByHostname(g.Namespace, g.Hostname)
			return p != nil && p.UID == w.UID
		}
	} else {
		a := g.Address.Prefix.Addr()
		if a == local && g.Address.Network == w.Network {
			return true
		}
		svc = snap.ServiceAt(g.Address.Network, a, w.Namespace)
	}
	if svc == nil {
		return false
	}
	_, member := w.Services[svc.Key()]
	return member
}

func servicePort(svc *mesh.Service, w *mesh.Workload, port uint16) (uint16, bool) {
	for _, p := range w.Services[svc.Key()] {
		if p.ServicePort == port && p.TargetPort != 0 {
			return p.TargetPort, true
		}
	}
	for _, p := range svc.Ports {
		if p.ServicePort == port && p.TargetPort != 0 {
			return p.TargetPort, true
		}
	}
	return 0, false
}

func illegal(p uint16) bool { return p == 15001 || p == 15006 || p == 15008 }

// destinationService is the service the connection is about, for telemetry:
// the one the client names if it is one of w's, else the first of w's whose
// port leads to this one.
func destinationService(snap *mesh.Snapshot, w *mesh.Workload, forwarded string, port uint16) *mesh.Service {
	host := forwardedHost(forwarded)
	var first *mesh.Service
	for key, own := range w.Services {
		s := snap.Service(key)
		if s == nil {
			continue
		}
		if host != "" && s.Hostname == host {
			return s
		}
		for _, p := range s.Ports {
			t := p.TargetPort
			for _, o := range own {
				if o.ServicePort == p.ServicePort && o.TargetPort != 0 {
					t = o.TargetPort
				}
			}
			if t == port && (first == nil || key < first.Key()) {
				first = s
			}
		}
	}
	return first
}

// forwardedHost is the host parameter of an RFC 7239 header.
func forwardedHost(h string) string {
	for element := range strings.SplitSeq(h, ",") {
		for pair := range strings.SplitSeq(element, ";") {
			name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
			if ok && strings.EqualFold(name, "host") {
				if value = strings.Trim(value, `"`); value != "" {
					return value
				}
			}
		}
	}
	return ""
}
