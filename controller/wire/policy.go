package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire/securityapi"
)

func decodePolicy(m *securityapi.Authorization) (*mesh.Policy, error) {
	if m.GetName() == "" {
		return nil, errors.New("name: empty")
	}
	p := &mesh.Policy{Name: m.GetName(), Namespace: m.GetNamespace(), DryRun: m.GetDryRun()}
	switch s := m.GetScope(); s {
	case securityapi.Scope_GLOBAL:
		p.Scope = mesh.ScopeGlobal
	case securityapi.Scope_NAMESPACE:
		p.Scope = mesh.ScopeNamespace
	case securityapi.Scope_WORKLOAD_SELECTOR:
		p.Scope = mesh.ScopeWorkloadSelector
	default:
		return nil, fmt.Errorf("scope: unknown value %d", s)
	}
	switch a := m.GetAction(); a {
	case securityapi.Action_ALLOW:
		p.Action = mesh.Allow
	case securityapi.Action_DENY:
		p.Action = mesh.Deny
	default:
		return nil, fmt.Errorf("action: unknown value %d", a)
	}
	for _, r := range m.GetRules() {
		var rule mesh.Rule
		for _, c := range r.GetClauses() {
			var clause mesh.Clause
			for _, x := range c.GetMatches() {
				m, anything := decodeMatch(x, p.Action)
				if anything {
					clause.Matches = nil // holds always
					break
				}
				clause.Matches = append(clause.Matches, m)
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p, nil
}

// decodeMatch drops entries it cannot read (an impossible CIDR, a pattern
// without form), as Istio's data plane does: refusing the whole policy would
// leave nothing in force. Where dropping would let an ALLOW policy admit more
// than was asked (an attribute that loses its last value, a negative that
// loses any), the match can never hold instead; anything says that nothing
// readable is left of a DENY policy's match, which then holds for everybody.
func decodeMatch(m *securityapi.Match, action mesh.Action) (out mesh.Match, anything bool) {
	d := matchDecoder{}
	out = mesh.Match{
		Namespaces:         d.patterns(m.GetNamespaces(), false),
		NotNamespaces:      d.patterns(m.GetNotNamespaces(), true),
		Principals:         d.patterns(m.GetPrincipals(), false),
		NotPrincipals:      d.patterns(m.GetNotPrincipals(), true),
		SourceIPs:          d.prefixes(m.GetSourceIps(), false),
		NotSourceIPs:       d.prefixes(m.GetNotSourceIps(), true),
		DestinationIPs:     d.prefixes(m.GetDestinationIps(), false),
		NotDestinationIPs:  d.prefixes(m.GetNotDestinationIps(), true),
		DestinationPorts:   policyPorts(m.GetDestinationPorts()),
		NotDestPorts:       policyPorts(m.GetNotDestinationPorts()),
		ServiceAccounts:    accounts(m.GetServiceAccounts()),
		NotServiceAccounts: accounts(m.GetNotServiceAccounts()),
	}
	if d.widened && action == mesh.Allow {
		return mesh.Match{}, false
	}
	return out, d.widened && reflect.DeepEqual(out, mesh.Match{})
}

// matchDecoder notes whether an unreadable entry made the match hold for more
// connections than intended.
type matchDecoder struct{ widened bool }

func (d *matchDecoder) dropped(in, out int, negative bool) {
	if out < in && (negative || out == 0) {
		d.widened = true
	}
}

func (d *matchDecoder) patterns(list []*securityapi.StringMatch, negative bool) []mesh.StringMatch {
	var out []mesh.StringMatch
	for _, m := range list {
		switch t := m.GetMatchType().(type) {
		case *securityapi.StringMatch_Exact:
			out = append(out, mesh.StringMatch{Kind: mesh.Exact, Value: t.Exact})
		case *securityapi.StringMatch_Prefix:
			out = append(out, mesh.StringMatch{Kind: mesh.Prefix, Value: t.Prefix})
		case *securityapi.StringMatch_Suffix:
			out = append(out, mesh.StringMatch{Kind: mesh.Suffix, Value: t.Suffix})
		case *securityapi.StringMatch_Presence:
			out = append(out, mesh.StringMatch{Kind: mesh.Presence})
		}
	}
	d.dropped(len(list), len(out), negative)
	return out
}

func (d *matchDecoder) prefixes(list []*securityapi.Address, negative bool) []netip.Prefix {
	var out []netip.Prefix
	for _, m := range list {
		n := m.GetLength()
		if p, err := decodePrefix(m.GetAddress(), &n); err == nil {
			out = append(out, p.Masked())
		}
	}
	d.dropped(len(list), len(out), negative)
	return out
}

// policyPorts keeps the low 16 bits, as Istio's data plane does.
func policyPorts(list []uint32) []uint16 {
	var out []uint16
	for _, p := range list {
		out = append(out, uint16(p))
	}
	return out
}

func accounts(list []*securityapi.ServiceAccountMatch) []mesh.ServiceAccountMatch {
	var out []mesh.ServiceAccountMatch
	for _, m := range list {
		out = append(out, mesh.ServiceAccountMatch{Namespace: m.GetNamespace(), ServiceAccount: m.GetServiceAccount()})
	}
	return out
}

func encodePolicy(p *mesh.Policy) *securityapi.Authorization {
	m := &securityapi.Authorization{
		Name:      p.Name,
		Namespace: p.Namespace,
		Scope:     securityapi.Scope(p.Scope),
		Action:    securityapi.Action(p.Action),
		DryRun:    p.DryRun,
	}
	for _, r := range p.Rules {
		rule := &securityapi.Rule{}
		for _, c := range r.Clauses {
			clause := &securityapi.Clause{}
			for i := range c.Matches {
				clause.Matches = append(clause.Matches, encodeMatch(&c.Matches[i]))
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		m.Rules = append(m.Rules, rule)
	}
	return m
}

func encodeMatch(x *mesh.Match) *securityapi.Match {
	return &securityapi.Match{
		Namespaces:          encodePatterns(x.Namespaces),
		NotNamespaces:       encodePatterns(x.NotNamespaces),
		Principals:          encodePatterns(x.Principals),
		NotPrincipals:       encodePatterns(x.NotPrincipals),
		SourceIps:           encodePrefixes(x.SourceIPs),
		NotSourceIps:        encodePrefixes(x.NotSourceIPs),
		DestinationIps:      encodePrefixes(x.DestinationIPs),
		NotDestinationIps:   encodePrefixes(x.NotDestinationIPs),
		DestinationPorts:    encodePolicyPorts(x.DestinationPorts),
		NotDestinationPorts: encodePolicyPorts(x.NotDestPorts),
		ServiceAccounts:     encodeAccounts(x.ServiceAccounts),
		NotServiceAccounts:  encodeAccounts(x.NotServiceAccounts),
	}
}

func encodePatterns(list []mesh.StringMatch) []*securityapi.StringMatch {
	var out []*securityapi.StringMatch
	for _, s := range list {
		m := &securityapi.StringMatch{}
		switch s.Kind {
		case mesh.Exact:
			m.MatchType = &securityapi.StringMatch_Exact{Exact: s.Value}
		case mesh.Prefix:
			m.MatchType = &securityapi.StringMatch_Prefix{Prefix: s.Value}
		case mesh.Suffix:
			m.MatchType = &securityapi.StringMatch_Suffix{Suffix: s.Value}
		case mesh.Presence:
			m.MatchType = &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}
		}
		out = append(out, m)
	}
	return out
}

func encodePrefixes(list []netip.Prefix) []*securityapi.Address {
	var out []*securityapi.Address
	for _, p := range list {
		p = unmapPrefix(p)
		out = append(out, &securityapi.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func encodePolicyPorts(list []uint16) []uint32 {
	var out []uint32
	for _, p := range list {
		out = append(out, uint32(p))
	}
	return out
}

func encodeAccounts(list []mesh.ServiceAccountMatch) []*securityapi.ServiceAccountMatch {
	var out []*securityapi.ServiceAccountMatch
	for _, a := range list {
		out = append(out, &securityapi.ServiceAccountMatch{Namespace: a.Namespace, ServiceAccount: a.ServiceAccount})
	}
	return out
}
