package authz

import (
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// What comes through a trusted waypoint is judged as the client's own, and the
// waypoint counts only where it is named exactly.
//
//ambit:feature waypoint-original-client
func TestThroughWaypoint(t *testing.T) {
	way := identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "waypoint"}
	other := identity.ID{TrustDomain: "cluster.local", Namespace: "bank", ServiceAccount: "clerk"}
	through := func(client identity.ID) Conn {
		c := call
		c.Peer, c.Through = client, way
		return c
	}
	named := exact(way.Principal())
	ns := func(form mesh.MatchKind, v string) []mesh.StringMatch {
		return []mesh.StringMatch{{Kind: form, Value: v}}
	}
	account := func(id identity.ID) []mesh.ServiceAccountMatch {
		return []mesh.ServiceAccountMatch{{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount}}
	}
	for _, tt := range []struct {
		name   string
		action mesh.Action
		match  mesh.Match
		conn   Conn
		allow  bool
	}{
		{"ALLOW of the client", mesh.Allow, mesh.Match{Principals: exact(web.Principal())}, through(web), true},
		{"ALLOW of another client", mesh.Allow, mesh.Match{Principals: exact(web.Principal())}, through(other), false},
		{"ALLOW of the waypoint by name", mesh.Allow, mesh.Match{Principals: named}, through(other), true},
		{"ALLOW of the waypoint's account", mesh.Allow, mesh.Match{ServiceAccounts: account(way)}, through(other), true},
		{"ALLOW of the waypoint's namespace is of clients", mesh.Allow, mesh.Match{Namespaces: exact("shop")}, through(other), false},
		{"ALLOW of a prefix that the waypoint has is of clients", mesh.Allow, mesh.Match{Principals: ns(mesh.Prefix, "cluster.local/ns/shop/")}, through(other), false},
		{"ALLOW of a pattern that is all of the waypoint's name is of clients", mesh.Allow, mesh.Match{Principals: ns(mesh.Prefix, way.Principal())}, through(other), false},
		{"ALLOW of a suffix that the waypoint has is of clients", mesh.Allow, mesh.Match{Principals: ns(mesh.Suffix, "/sa/waypoint")}, through(other), false},
		{"ALLOW of the client's namespace", mesh.Allow, mesh.Match{Namespaces: exact("bank")}, through(other), true},
		{"DENY of the client", mesh.Deny, mesh.Match{Principals: exact(other.Principal())}, through(other), false},
		{"DENY of the client's namespace", mesh.Deny, mesh.Match{Namespaces: exact("bank")}, through(other), false},
		{"DENY of another client", mesh.Deny, mesh.Match{Principals: exact(other.Principal())}, through(web), true},
		{"DENY of all but the waypoint", mesh.Deny, mesh.Match{NotPrincipals: named}, through(other), true},
		{"DENY of all but the waypoint, direct", mesh.Deny, mesh.Match{NotPrincipals: named}, Conn{Peer: other, Src: call.Src, Dst: call.Dst}, false},
		{"DENY of all but the waypoint's account", mesh.Deny, mesh.Match{NotServiceAccounts: account(way)}, through(other), true},
		{"DENY of who is not of the waypoint's namespace", mesh.Deny, mesh.Match{NotNamespaces: exact("shop")}, through(other), false},
		{"STRICT", mesh.Deny, mesh.Match{NotPrincipals: ns(mesh.Presence, "")}, through(other), true},
		{"a client that calls itself nobody", mesh.Deny, mesh.Match{NotPrincipals: ns(mesh.Presence, "")}, through(identity.ID{}), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := snapshot(one(tt.action, tt.match))
			if v := Decide(s, &mesh.Workload{Namespace: "x"}, tt.conn); v.Allow != tt.allow {
				t.Errorf("%+v", v)
			}
		})
	}
}

// A policy that requires a waypoint asks who the connection comes from, whomever
// that speaks for.
//
//ambit:feature waypoint-required
func TestRequireWaypoint(t *testing.T) {
	way := identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "waypoint"}
	another := identity.ID{TrustDomain: "cluster.local", Namespace: "bank", ServiceAccount: "waypoint"}
	p := one(mesh.Deny, mesh.Match{NotPrincipals: exact(way.Principal())})
	p.Name, p.Namespace, p.Scope = mesh.RequireWaypointPrefix+"svc", "shop", mesh.ScopeWorkloadSelector
	s := snapshot(p)
	w := &mesh.Workload{Namespace: "shop", Policies: []string{p.Key()}}
	for _, tt := range []struct {
		name          string
		peer, through identity.ID
		allow         bool
	}{
		{"direct", web, identity.ID{}, false},
		{"plaintext", identity.ID{}, identity.ID{}, false},
		{"the waypoint for a client", web, way, true},
		{"a waypoint that does not say for whom", way, identity.ID{}, true},
		{"another waypoint", web, another, false},
		{"another waypoint that speaks for this one", way, another, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := Decide(s, w, Conn{Peer: tt.peer, Through: tt.through, Src: call.Src, Dst: call.Dst})
			if v.Allow != tt.allow || v.Direct == tt.allow {
				t.Errorf("%+v", v)
			}
		})
	}
}
