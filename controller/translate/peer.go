package translate

import (
	"maps"
	"slices"
	"strconv"

	"istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Names of the policies PeerAuthentications become; peers and their tools know
// them.
const (
	staticStrictName = "istio_converted_static_strict"
	convertedPrefix  = "converted_peer_authentication_"
)

// StaticStrictKey is the policy workloads name that accept no plaintext at all.
func (c Config) StaticStrictKey() string { return c.RootNamespace + "/" + staticStrictName }

// StaticStrict is that policy. It is sent as soon as any PeerAuthentication
// exists.
func (c Config) StaticStrict() *mesh.Policy {
	return &mesh.Policy{
		Name:      staticStrictName,
		Namespace: c.RootNamespace,
		Scope:     mesh.ScopeWorkloadSelector,
		Action:    mesh.Deny,
		Rules:     []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{NotPrincipals: anyPrincipal()}}}}}},
	}
}

// ConvertedKey is the policy a PeerAuthentication with port exceptions becomes.
func ConvertedKey(namespace, name string) string { return namespace + "/" + convertedPrefix + name }

// PeerAuthentication is pa's own policy, or nil when it needs none: without a
// selector or without ports that differ from the rest, workloads name the
// static policy or nothing. Ports that cannot be read are left out of it.
func (c Config) PeerAuthentication(pa *securityv1.PeerAuthentication, objs Objects) (*mesh.Policy, error) {
	o := object{kind: "PeerAuthentication", namespace: pa.Namespace, name: pa.Name}
	for _, n := range slices.Sorted(maps.Keys(pa.Spec.GetPortLevelMtls())) {
		if n == 0 || n > 65535 {
			o.bad("spec.portLevelMtls", strconv.FormatUint(uint64(n), 10), "not a port number")
		}
	}
	p := c.peerPorts(pa, objs)
	rules := p.rules()
	if rules == nil {
		return nil, o.err()
	}
	return &mesh.Policy{
		Name:      convertedPrefix + pa.Name,
		Namespace: pa.Namespace,
		Scope:     mesh.ScopeWorkloadSelector,
		Action:    mesh.Deny,
		Rules:     rules,
	}, o.err()
}

// peerPolicy is the key of the one policy that PeerAuthentications put on s,
// "" for none.
func (c Config) peerPolicy(s subject, objs Objects) string {
	pa := c.selecting(s, objs)
	if pa == nil {
		if c.namespaceStrict(s.namespace, objs) {
			return c.StaticStrictKey()
		}
		return ""
	}
	p := c.peerPorts(pa, objs)
	switch {
	case p.rules() != nil:
		return ConvertedKey(pa.Namespace, pa.Name)
	case p.strict:
		return c.StaticStrictKey()
	}
	return ""
}

// peerPorts is what one selector PeerAuthentication asks for: a mode, and the
// ports (of the workload, not of a service) that differ from it.
type peerPorts struct {
	strict bool
	ports  []uint16 // sorted
}

func (c Config) peerPorts(pa *securityv1.PeerAuthentication, objs Objects) peerPorts {
	var p peerPorts
	switch mode := pa.Spec.GetMtls().GetMode(); mode {
	case v1beta1.PeerAuthentication_MutualTLS_UNSET:
		p.strict = c.namespaceStrict(pa.Namespace, objs)
	default:
		p.strict = mode == v1beta1.PeerAuthentication_MutualTLS_STRICT
	}
	if pa.Namespace == c.RootNamespace || len(pa.Spec.GetSelector().GetMatchLabels()) == 0 {
		return p
	}
	for _, n := range slices.Sorted(maps.Keys(pa.Spec.GetPortLevelMtls())) {
		mode := pa.Spec.GetPortLevelMtls()[n].GetMode()
		if n == 0 || n > 65535 || mode == v1beta1.PeerAuthentication_MutualTLS_UNSET {
			continue
		}
		if strict := mode == v1beta1.PeerAuthentication_MutualTLS_STRICT; strict != p.strict {
			p.ports = append(p.ports, uint16(n))
		}
	}
	return p
}

// rules of the converted policy, nil when no port differs.
func (p peerPorts) rules() []mesh.Rule {
	if len(p.ports) == 0 {
		return nil
	}
	if p.strict { // one rule: no identity, and none of the excepted ports
		rule := mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{{NotPrincipals: anyPrincipal()}}}}}
		for _, port := range p.ports {
			rule.Clauses = append(rule.Clauses, mesh.Clause{Matches: []mesh.Match{{NotDestPorts: []uint16{port}}}})
		}
		return []mesh.Rule{rule}
	}
	var rules []mesh.Rule // one per strict port: no identity, on that port
	for _, port := range p.ports {
		rules = append(rules, mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			NotPrincipals: anyPrincipal(), DestinationPorts: []uint16{port},
		}}}}})
	}
	return rules
}

// namespaceStrict is what holds in namespace for a workload nobody selects:
// the namespace's own PeerAuthentication, else the root namespace's. DISABLE
// counts as permissive, HBONE cannot be switched off.
func (c Config) namespaceStrict(namespace string, objs Objects) bool {
	for _, ns := range []string{namespace, c.RootNamespace} {
		pa := oldest(objs.PeerAuthentications(ns), func(pa *securityv1.PeerAuthentication) bool {
			return len(pa.Spec.GetSelector().GetMatchLabels()) == 0
		})
		if mode := pa.GetMode(); mode != v1beta1.PeerAuthentication_MutualTLS_UNSET {
			return mode == v1beta1.PeerAuthentication_MutualTLS_STRICT
		}
	}
	return false
}

// selecting is the PeerAuthentication whose selector picks s. In the root
// namespace selectors are ignored.
func (c Config) selecting(s subject, objs Objects) *securityv1.PeerAuthentication {
	if s.namespace == c.RootNamespace {
		return nil
	}
	return oldest(objs.PeerAuthentications(s.namespace), func(pa *securityv1.PeerAuthentication) bool {
		want := pa.Spec.GetSelector().GetMatchLabels()
		return len(want) > 0 && matchLabels(want, s.labels)
	}).PeerAuthentication
}

// oldestPA wraps the winner so that "none" has a mode too.
type oldestPA struct{ *securityv1.PeerAuthentication }

// GetMode of the winner, UNSET without one.
func (o oldestPA) GetMode() v1beta1.PeerAuthentication_MutualTLS_Mode {
	if o.PeerAuthentication == nil {
		return v1beta1.PeerAuthentication_MutualTLS_UNSET
	}
	return o.Spec.GetMtls().GetMode()
}

// oldest among equals wins, so that a newcomer cannot loosen what is in force.
func oldest(all []*securityv1.PeerAuthentication, among func(*securityv1.PeerAuthentication) bool) oldestPA {
	var best *securityv1.PeerAuthentication
	for _, pa := range all {
		if !among(pa) {
			continue
		}
		if best == nil || pa.CreationTimestamp.Before(&best.CreationTimestamp) ||
			pa.CreationTimestamp.Equal(&best.CreationTimestamp) && pa.Name < best.Name {
			best = pa
		}
	}
	return oldestPA{best}
}

func anyPrincipal() []mesh.StringMatch { return []mesh.StringMatch{{Kind: mesh.Presence}} }
