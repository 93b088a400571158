package ztunnel

import (
	"net/netip"

	"github.com/ambitmesh/ambit/controller/mesh"
)

type policyJSON struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Scope     string          `json:"scope"`
	Action    string          `json:"action"`
	Rules     [][][]matchJSON `json:"rules"`
	DryRun    bool            `json:"dryRun,omitempty"`
}

// A string match is an object with one key, the form of the match.
type stringJSON map[string]any

type accountJSON struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

type matchJSON struct {
	Namespaces          []stringJSON  `json:"namespaces,omitempty"`
	NotNamespaces       []stringJSON  `json:"notNamespaces,omitempty"`
	ServiceAccounts     []accountJSON `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []accountJSON `json:"notServiceAccounts,omitempty"`
	Principals          []stringJSON  `json:"principals,omitempty"`
	NotPrincipals       []stringJSON  `json:"notPrincipals,omitempty"`
	SourceIPs           []string      `json:"sourceIps,omitempty"`
	NotSourceIPs        []string      `json:"notSourceIps,omitempty"`
	DestinationIPs      []string      `json:"destinationIps,omitempty"`
	NotDestinationIPs   []string      `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16      `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16      `json:"notDestinationPorts,omitempty"`
}

func dumpPolicy(p *mesh.Policy) policyJSON {
	out := policyJSON{
		Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun, Action: "Allow", Rules: [][][]matchJSON{},
		Scope: [...]string{"Global", "Namespace", "WorkloadSelector"}[min(p.Scope, mesh.ScopeWorkloadSelector)],
	}
	if p.Action == mesh.Deny {
		out.Action = "Deny"
	}
	for _, r := range p.Rules {
		clauses := [][]matchJSON{}
		for _, c := range r.Clauses {
			matches := []matchJSON{}
			for i := range c.Matches {
				matches = append(matches, dumpMatch(&c.Matches[i]))
			}
			clauses = append(clauses, matches)
		}
		out.Rules = append(out.Rules, clauses)
	}
	return out
}

func dumpMatch(m *mesh.Match) matchJSON {
	return matchJSON{
		Namespaces: dumpStrings(m.Namespaces), NotNamespaces: dumpStrings(m.NotNamespaces),
		ServiceAccounts: dumpAccounts(m.ServiceAccounts), NotServiceAccounts: dumpAccounts(m.NotServiceAccounts),
		Principals: dumpStrings(m.Principals), NotPrincipals: dumpStrings(m.NotPrincipals),
		SourceIPs: dumpPrefixes(m.SourceIPs), NotSourceIPs: dumpPrefixes(m.NotSourceIPs),
		DestinationIPs: dumpPrefixes(m.DestinationIPs), NotDestinationIPs: dumpPrefixes(m.NotDestinationIPs),
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestPorts,
	}
}

func dumpStrings(in []mesh.StringMatch) []stringJSON {
	var out []stringJSON
	for _, m := range in {
		switch m.Kind {
		case mesh.Prefix:
			out = append(out, stringJSON{"Prefix": m.Value})
		case mesh.Suffix:
			out = append(out, stringJSON{"Suffix": m.Value})
		case mesh.Presence:
			out = append(out, stringJSON{"Presence": []any{}})
		default:
			out = append(out, stringJSON{"Exact": m.Value})
		}
	}
	return out
}

func dumpAccounts(in []mesh.ServiceAccountMatch) []accountJSON {
	var out []accountJSON
	for _, m := range in {
		out = append(out, accountJSON{m.Namespace, m.ServiceAccount})
	}
	return out
}

func dumpPrefixes(in []netip.Prefix) []string {
	var out []string
	for _, p := range in {
		out = append(out, p.String())
	}
	return out
}
