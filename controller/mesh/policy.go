package mesh

import (
	"net/netip"
	"strings"
)

// Policy is one authorization policy as a data plane evaluates it: it matches
// when any rule matches; a rule when all its clauses match; a clause when any
// of its matches does; a match when every attribute it names holds.
type Policy struct {
	Name      string
	Namespace string
	Scope     PolicyScope
	Action    Action
	DryRun    bool
	Rules     []Rule
}

// Key is the xDS name of the policy, <namespace>/<name>.
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// RequireWaypointPrefix begins the names of the policies that refuse what does not
// come through a waypoint. It is no name that an object of Kubernetes can have.
const RequireWaypointPrefix = "ambitmesh_require_waypoint_"

// RequiresWaypoint reports whether the policy is about the way a connection took,
// not about who began it.
func (p *Policy) RequiresWaypoint() bool {
	return p.Action == Deny && strings.HasPrefix(p.Name, RequireWaypointPrefix)
}

// PolicyScope says which workloads a policy applies to.
type PolicyScope uint8

const (
	ScopeGlobal           PolicyScope = iota // every workload
	ScopeNamespace                           // workloads of the policy's namespace
	ScopeWorkloadSelector                    // workloads that name it in Policies
)

// Action of a policy.
type Action uint8

const (
	Allow Action = iota
	Deny
)

// Rule holds clauses that must all match; without any it matches everything.
type Rule struct{ Clauses []Clause }

// Clause holds matches of which one must hold; without any it holds.
type Clause struct{ Matches []Match }

// Match holds attributes that must all hold; with none set it never matches.
type Match struct {
	Namespaces, NotNamespaces           []StringMatch
	Principals, NotPrincipals           []StringMatch
	SourceIPs, NotSourceIPs             []netip.Prefix
	DestinationIPs, NotDestinationIPs   []netip.Prefix
	DestinationPorts, NotDestPorts      []uint16
	ServiceAccounts, NotServiceAccounts []ServiceAccountMatch
}

// ServiceAccountMatch compares namespace and service account exactly; the
// trust domain is not looked at.
type ServiceAccountMatch struct{ Namespace, ServiceAccount string }

// StringMatch is one string pattern.
type StringMatch struct {
	Kind  MatchKind
	Value string
}

// MatchKind is the form of a StringMatch.
type MatchKind uint8

const (
	Exact MatchKind = iota
	Prefix
	Suffix
	Presence // any non-empty string
)
