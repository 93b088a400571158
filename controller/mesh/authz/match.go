package authz

import (
	"net/netip"
	"slices"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// facts are the properties of one connection in the form matches compare.
type facts struct {
	src, dst  netip.Addr
	port      uint16
	peer      identity.ID
	principal []byte // without spiffe://; empty when unauthenticated
	through   identity.ID
}

// ofWaypoint are the facts of the connection itself, as if it had not said whom it
// speaks for.
func (f *facts) ofWaypoint() *facts {
	own := *f
	own.peer, own.through = f.through, identity.ID{}
	own.principal = appendPrincipal(nil, f.through)
	return &own
}

func (f *facts) policy(p *mesh.Policy) bool {
	for i := range p.Rules {
		if f.rule(&p.Rules[i]) {
			return true
		}
	}
	return false
}

func (f *facts) rule(r *mesh.Rule) bool {
	for i := range r.Clauses {
		if !f.clause(&r.Clauses[i]) {
			return false
		}
	}
	return true
}

func (f *facts) clause(c *mesh.Clause) bool {
	for i := range c.Matches {
		if f.match(&c.Matches[i]) {
			return true
		}
	}
	return len(c.Matches) == 0
}

// match holds when every attribute that is set holds. The cheap attributes
// come first.
func (f *facts) match(m *mesh.Match) bool {
	set := false
	if len(m.DestinationPorts) > 0 {
		set = true
		if !slices.Contains(m.DestinationPorts, f.port) {
			return false
		}
	}
	if len(m.NotDestPorts) > 0 {
		set = true
		if slices.Contains(m.NotDestPorts, f.port) {
			return false
		}
	}
	if len(m.Namespaces) > 0 {
		set = true
		if !anyString(m.Namespaces, f.peer.Namespace) {
			return false
		}
	}
	if len(m.NotNamespaces) > 0 {
		set = true
		if anyString(m.NotNamespaces, f.peer.Namespace) {
			return false
		}
	}
	if len(m.ServiceAccounts) > 0 {
		set = true
		if !f.account(m.ServiceAccounts) {
			return false
		}
	}
	if len(m.NotServiceAccounts) > 0 {
		set = true
		if f.account(m.NotServiceAccounts) {
			return false
		}
	}
	if len(m.Principals) > 0 {
		set = true
		if !f.principalIn(m.Principals) {
			return false
		}
	}
	if len(m.NotPrincipals) > 0 {
		set = true
		if f.principalIn(m.NotPrincipals) {
			return false
		}
	}
	if len(m.SourceIPs) > 0 {
		set = true
		if !contains(m.SourceIPs, f.src) {
			return false
		}
	}
	if len(m.NotSourceIPs) > 0 {
		set = true
		if contains(m.NotSourceIPs, f.src) {
			return false
		}
	}
	if len(m.DestinationIPs) > 0 {
		set = true
		if !contains(m.DestinationIPs, f.dst) {
			return false
		}
	}
	if len(m.NotDestinationIPs) > 0 {
		set = true
		if contains(m.NotDestinationIPs, f.dst) {
			return false
		}
	}
	return set
}

func (f *facts) account(list []mesh.ServiceAccountMatch) bool {
	if f.peer.IsZero() {
		return false
	}
	for _, a := range list {
		if a.Namespace == f.peer.Namespace && a.ServiceAccount == f.peer.ServiceAccount {
			return true
		}
		if !f.through.IsZero() && a.Namespace == f.through.Namespace && a.ServiceAccount == f.through.ServiceAccount {
			return true
		}
	}
	return false
}

func (f *facts) principalIn(list []mesh.StringMatch) bool {
	if len(f.principal) == 0 {
		return false // nobody matches no pattern, presence included
	}
	for _, m := range list {
		if matchString(m, f.principal) {
			return true
		}
		if m.Kind == mesh.Exact && !f.through.IsZero() && m.Value == f.through.Principal() {
			return true
		}
	}
	return false
}

func anyString(list []mesh.StringMatch, s string) bool {
	for _, m := range list {
		if matchString(m, s) {
			return true
		}
	}
	return false
}

// matchString converts slices only inside comparisons, where the compiler
// needs no copy.
func matchString[S string | []byte](m mesh.StringMatch, s S) bool {
	n := len(m.Value)
	switch m.Kind {
	case mesh.Exact:
		return string(s) == m.Value
	case mesh.Prefix:
		return len(s) >= n && string(s[:n]) == m.Value
	case mesh.Suffix:
		return len(s) >= n && string(s[len(s)-n:]) == m.Value
	case mesh.Presence:
		return len(s) > 0
	}
	return false
}

// canonical is a as policies name it. A link-local peer comes with the zone it
// was seen in, and netip finds an address with a zone in no prefix: a DENY of
// fe80::/10 would let it pass.
func canonical(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
