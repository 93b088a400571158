package authz

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// misreading is one sentence of the rules got wrong on purpose; the zero value
// reads them all as they are written. A case in which a misreading leads to
// another outcome is one that the sentence decided, and that would find the
// same mistake in Decide.
type misreading struct {
	of   string
	form form // of which this form never matches; empty: the attribute always holds
}

// form is the way one value of an attribute is written.
type form string

const (
	exactForm    form = "exact"
	prefixForm   form = "prefix"
	suffixForm   form = "suffix"
	presenceForm form = "presence"

	hostForm    form = "host"
	networkForm form = "network"
	allForm     form = "zero length"
)

// attributes are the fields of a match with the forms each is written in.
func attributes() map[string][]form {
	text := []form{exactForm, prefixForm, suffixForm, presenceForm}
	var cidr []form
	for _, family := range []form{"IPv4 ", "IPv6 "} {
		cidr = append(cidr, family+hostForm, family+networkForm, family+allForm)
	}
	return map[string][]form{
		"namespaces": text, "not_namespaces": text, "principals": text, "not_principals": text,
		"source_ips": cidr, "not_source_ips": cidr, "destination_ips": cidr, "not_destination_ips": cidr,
		"destination_ports": nil, "not_destination_ports": nil, "service_accounts": nil, "not_service_accounts": nil,
	}
}

// The sentences that are not about one attribute, each named by its opposite.
const (
	allowUnseen          = "ALLOW policies do not count"
	denyUnseen           = "DENY policies do not count"
	allowFirst           = "an ALLOW that matches overrules DENY"
	dryRunDecides        = "a dry-run policy decides"
	globalUnseen         = "a global policy does not apply"
	globalInItsNamespace = "a global policy applies to its own namespace"
	namespaceUnseen      = "a namespace's policy does not apply"
	namespaceEverywhere  = "a namespace's policy applies everywhere"
	selectorUnseen       = "a listed policy does not apply"
	selectorUnlisted     = "a selector policy applies without being listed"
	missingSkipped       = "a listed policy that is not here is skipped"
	noRulesMatch         = "a policy without rules matches"
	oneRule              = "only the first rule counts"
	noClausesFail        = "a rule without clauses does not match"
	oneClause            = "only the first clause counts"
	noMatchesFail        = "a clause without matches does not hold"
	oneMatch             = "only the first match counts"
	emptyMatchHolds      = "a match without attributes holds"
	oneValue             = "only the first value of an attribute counts"
	nobodyPresent        = "nobody is present"
	nobodyMatches        = "nobody's principal is an empty string"
	nobodyHasNoNamespace = "nobody's namespace equals no string"
	nobodysAccount       = "nobody has the account without a name"
	schemeCounts         = "principals carry their scheme"
	trustDomainIgnored   = "principals are compared without trust domain"
	trustDomainCounts    = "accounts are of one trust domain"
	accountAnywhere      = "an account's namespace is not compared"
	accountAnyName       = "an account's name is not compared"
	mappedKept           = "a mapped address is not IPv4"
	zoneKept             = "an address with a zone is in no network"
	selfRefused          = "NetworkPolicies keep a pod from itself"
)

// misreadings are all of them, in a fixed order.
func misreadings() []misreading {
	var out []misreading
	for _, s := range []string{allowUnseen, denyUnseen, allowFirst, dryRunDecides, globalUnseen, globalInItsNamespace, namespaceUnseen,
		namespaceEverywhere, selectorUnseen, selectorUnlisted, missingSkipped, noRulesMatch, oneRule, noClausesFail, oneClause,
		noMatchesFail, oneMatch, emptyMatchHolds, oneValue, nobodyPresent, nobodyMatches, nobodyHasNoNamespace, nobodysAccount,
		schemeCounts, trustDomainIgnored, trustDomainCounts, accountAnywhere, accountAnyName, mappedKept, zoneKept, selfRefused} {
		out = append(out, misreading{of: s})
	}
	for a, forms := range attributes() {
		out = append(out, misreading{of: a})
		for _, f := range forms {
			out = append(out, misreading{a, f})
		}
	}
	slices.SortFunc(out, func(a, b misreading) int {
		return strings.Compare(a.of+"\x00"+string(a.form), b.of+"\x00"+string(b.form))
	})
	return out
}

// Outcomes of a decision.
const (
	noAllowPolicy = "allowed, there is no ALLOW policy"
	allowMatched  = "allowed by an ALLOW policy"
	denied        = "denied"
	noneAllowed   = "no ALLOW policy matched"
	pending       = "a policy is missing"
)

// answer is what the rules say of one connection.
type answer struct {
	outcome string
	deniers []string // every DENY that matches; the reason names one of them
	missing string   // the first listed policy that is not here
}

// differs says how v is not what a asks for; empty when it is.
func (a answer) differs(v Verdict) string {
	want := Verdict{}
	switch a.outcome {
	case noAllowPolicy, allowMatched:
		want.Allow = true
	case denied:
		want.Policy = a.deniers[0]
		if slices.Contains(a.deniers, v.Policy) {
			want.Policy = v.Policy
		}
		want.Reason = "explicitly denied by: " + want.Policy
		if ns, np, ok := strings.Cut(want.Policy, "/ambitmesh_networkpolicy_"); ok {
			want.Reason = "explicitly denied by: networkpolicy " + ns + "/" + np
		}
	case noneAllowed:
		want.Reason = "allow policies exist, but none allowed"
	case pending:
		want.Pending, want.Policy, want.Reason = true, a.missing, "policy not received yet: "+a.missing
	}
	if v == want {
		return ""
	}
	return fmt.Sprintf("%+v, want %+v (%s, denied by %v)", v, want, a.outcome, a.deniers)
}

// oracle applies the rules to one connection sentence by sentence, with no eye
// to cost, save for the one that it misreads.
type oracle struct {
	policies []*mesh.Policy
	workload *mesh.Workload
	conn     Conn
	wrong    misreading
}

func (o *oracle) misreads(sentence string) bool { return o.wrong == misreading{of: sentence} }

func (o *oracle) decide() answer {
	var a answer
	allows, allowed := false, false
	for _, p := range o.policies {
		if !o.applies(p) || p.DryRun && !o.misreads(dryRunDecides) {
			continue
		}
		matches := o.policy(p)
		switch {
		case p.Action == mesh.Deny && o.own(p):
		case p.Action == mesh.Deny && matches && !o.misreads(denyUnseen):
			a.deniers = append(a.deniers, p.Namespace+"/"+p.Name)
		case p.Action == mesh.Allow && !o.misreads(allowUnseen):
			allows = true
			allowed = allowed || matches
		}
	}
	for _, key := range o.workload.Policies {
		here := slices.ContainsFunc(o.policies, func(p *mesh.Policy) bool { return p.Namespace+"/"+p.Name == key })
		if !here && a.missing == "" && !o.misreads(missingSkipped) {
			a.missing = key
		}
	}
	switch {
	case len(a.deniers) > 0 && !(allowed && o.misreads(allowFirst)):
		a.outcome = denied
	case a.missing != "":
		a.outcome = pending
	case !allows:
		a.outcome = noAllowPolicy
	case allowed:
		a.outcome = allowMatched
	default:
		a.outcome = noneAllowed
	}
	return a
}

// trace: first the dry-run DENY policies that match, each; then the DENY that
// refuses, and nothing after it; then the dry-run ALLOW policies that match, or,
// if there is no ALLOW in force, that none of them does.
func (o *oracle) trace() (tried []string, last string) {
	denied, allows, allowed, dryAllows, dryMatches := false, false, false, 0, 0
	for _, key := range o.concerning() {
		p := o.byKey(key)
		if p.Action == mesh.Deny && p.DryRun && o.policy(p) && !o.own(p) {
			tried = append(tried, "dry-run: deny policy match "+key)
		}
		denied = denied || p.Action == mesh.Deny && !p.DryRun && o.policy(p) && !o.own(p)
	}
	if denied {
		return tried, "deny policy match"
	}
	for _, key := range o.concerning() {
		p := o.byKey(key)
		switch {
		case p.Action == mesh.Deny:
		case !p.DryRun:
			allows = true
			allowed = allowed || o.policy(p)
		case o.policy(p):
			dryMatches++
			tried = append(tried, "dry-run: allow policy match "+key)
		default:
			dryAllows++
		}
	}
	switch {
	case !allows:
		if dryMatches == 0 && dryAllows > 0 {
			tried = append(tried, "dry-run: no allow policies match ")
		}
		return tried, "no allow policies, allow"
	case allowed:
		return tried, "allow policy match"
	}
	return tried, "no allow policies matched"
}

// concerning are the keys of the policies that apply, as often as they do.
func (o *oracle) concerning() (keys []string) {
	for _, p := range o.policies {
		if p.Scope == mesh.ScopeGlobal || p.Scope == mesh.ScopeNamespace && p.Namespace == o.workload.Namespace {
			keys = append(keys, p.Namespace+"/"+p.Name)
		}
	}
	for _, key := range o.workload.Policies {
		if o.byKey(key) != nil {
			keys = append(keys, key)
		}
	}
	return keys
}

func (o *oracle) byKey(key string) *mesh.Policy {
	for _, p := range o.policies {
		if p.Namespace+"/"+p.Name == key {
			return p
		}
	}
	return nil
}

// own: what NetworkPolicies say is not about a pod's connections to itself.
func (o *oracle) own(p *mesh.Policy) bool {
	return strings.HasPrefix(p.Name, "ambitmesh_networkpolicy_") && !o.misreads(selfRefused) &&
		o.conn.Src.Addr().Unmap().WithZone("") == o.conn.Dst.Addr().Unmap().WithZone("")
}

// applies: global policies to every workload, those of a namespace to its
// workloads, and any policy to a workload that lists it.
func (o *oracle) applies(p *mesh.Policy) bool {
	here := p.Namespace == o.workload.Namespace
	if slices.Contains(o.workload.Policies, p.Namespace+"/"+p.Name) && !o.misreads(selectorUnseen) {
		return true
	}
	switch p.Scope {
	case mesh.ScopeGlobal:
		return !o.misreads(globalUnseen) && (here || !o.misreads(globalInItsNamespace))
	case mesh.ScopeNamespace:
		return !o.misreads(namespaceUnseen) && here || o.misreads(namespaceEverywhere)
	}
	return o.misreads(selectorUnlisted)
}

// policy: the rules are OR-ed; without one it never matches.
func (o *oracle) policy(p *mesh.Policy) bool {
	if len(p.Rules) == 0 {
		return o.misreads(noRulesMatch)
	}
	for i, r := range p.Rules {
		if o.rule(r) && (i == 0 || !o.misreads(oneRule)) {
			return true
		}
	}
	return false
}

// rule: the clauses are AND-ed; without one it matches everything.
func (o *oracle) rule(r mesh.Rule) bool {
	if len(r.Clauses) == 0 {
		return !o.misreads(noClausesFail)
	}
	for i, c := range r.Clauses {
		if !o.clause(c) && (i == 0 || !o.misreads(oneClause)) {
			return false
		}
	}
	return true
}

// clause: the matches are OR-ed; without one it matches everything.
func (o *oracle) clause(c mesh.Clause) bool {
	if len(c.Matches) == 0 {
		return !o.misreads(noMatchesFail)
	}
	for i, m := range c.Matches {
		if o.match(m) && (i == 0 || !o.misreads(oneMatch)) {
			return true
		}
	}
	return false
}

// match: the attributes are AND-ed, the values of each OR-ed, and a not_
// attribute fails if any of its values matches. Without attributes it does not
// match.
func (o *oracle) match(m mesh.Match) bool {
	set, holds := false, true
	attribute := func(name string, n int, matches func(i int) bool) {
		if n == 0 {
			return
		}
		set = true
		if o.misreads(oneValue) {
			n = 1
		}
		any := false
		for i := range n {
			any = any || matches(i)
		}
		if strings.HasPrefix(name, "not_") {
			any = !any
		}
		if !any && !o.misreads(name) {
			holds = false
		}
	}
	strs := func(name string, list []mesh.StringMatch, matches func(string, mesh.StringMatch) bool) {
		attribute(name, len(list), func(i int) bool { return matches(name, list[i]) })
	}
	nets := func(name string, list []netip.Prefix, a netip.Addr) {
		attribute(name, len(list), func(i int) bool { return o.contains(name, list[i], a) })
	}
	ports := func(name string, list []uint16) {
		attribute(name, len(list), func(i int) bool { return list[i] == o.conn.Dst.Port() })
	}
	accounts := func(name string, list []mesh.ServiceAccountMatch) {
		attribute(name, len(list), func(i int) bool { return o.account(list[i]) })
	}
	strs("namespaces", m.Namespaces, o.namespace)
	strs("not_namespaces", m.NotNamespaces, o.namespace)
	strs("principals", m.Principals, o.principal)
	strs("not_principals", m.NotPrincipals, o.principal)
	nets("source_ips", m.SourceIPs, o.conn.Src.Addr())
	nets("not_source_ips", m.NotSourceIPs, o.conn.Src.Addr())
	nets("destination_ips", m.DestinationIPs, o.conn.Dst.Addr())
	nets("not_destination_ips", m.NotDestinationIPs, o.conn.Dst.Addr())
	ports("destination_ports", m.DestinationPorts)
	ports("not_destination_ports", m.NotDestPorts)
	accounts("service_accounts", m.ServiceAccounts)
	accounts("not_service_accounts", m.NotServiceAccounts)
	if !set {
		return o.misreads(emptyMatchHolds)
	}
	return holds
}

func (o *oracle) nobody() bool { return o.conn.Peer.IsZero() }

// namespace: compared with the namespace of the identity, "" if there is none.
func (o *oracle) namespace(attribute string, m mesh.StringMatch) bool {
	if o.nobody() && o.misreads(nobodyHasNoNamespace) {
		return false
	}
	return o.text(attribute, m, o.conn.Peer.Namespace)
}

// principal: compared with the identity without spiffe://; without an identity
// no form matches, presence included.
func (o *oracle) principal(attribute string, m mesh.StringMatch) bool {
	id := o.conn.Peer
	if o.nobody() {
		return o.misreads(nobodyPresent) && m.Kind == mesh.Presence || o.misreads(nobodyMatches) && o.text(attribute, m, "")
	}
	s := "spiffe://" + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
	if !o.misreads(schemeCounts) {
		s = strings.TrimPrefix(s, "spiffe://")
	}
	if o.misreads(trustDomainIgnored) {
		s = strings.Replace(s, id.TrustDomain, trustDomains()[0], 1)
	}
	return o.text(attribute, m, s)
}

func (o *oracle) text(attribute string, m mesh.StringMatch, s string) bool {
	never := func(f form) bool { return o.wrong == misreading{attribute, f} }
	switch m.Kind {
	case mesh.Exact:
		return s == m.Value && !never(exactForm)
	case mesh.Prefix:
		return strings.HasPrefix(s, m.Value) && !never(prefixForm)
	case mesh.Suffix:
		return strings.HasSuffix(s, m.Value) && !never(suffixForm)
	case mesh.Presence:
		return s != "" && !never(presenceForm)
	}
	panic(fmt.Sprintf("kind %d", m.Kind))
}

// account: namespace and service account are compared exactly, the trust
// domain is ignored; without an identity none matches.
func (o *oracle) account(m mesh.ServiceAccountMatch) bool {
	id := o.conn.Peer
	if o.nobody() && !o.misreads(nobodysAccount) {
		return false
	}
	return (m.Namespace == id.Namespace || o.misreads(accountAnywhere)) &&
		(m.ServiceAccount == id.ServiceAccount || o.misreads(accountAnyName)) &&
		(id.TrustDomain == trustDomains()[0] || !o.misreads(trustDomainCounts))
}

// contains: the first bits of the canonical address are those of the network.
// An address in IPv4-mapped form is the IPv4 address, and the zone says where
// it was seen, not which it is.
func (o *oracle) contains(attribute string, n netip.Prefix, a netip.Addr) bool {
	if a.Is4In6() && !o.misreads(mappedKept) {
		a = a.Unmap()
	}
	if a.Zone() != "" && o.misreads(zoneKept) {
		return false
	}
	if a.BitLen() != n.Addr().BitLen() {
		return false
	}
	have, want := a.AsSlice(), n.Addr().AsSlice()
	for i := range n.Bits() {
		mask := byte(0x80) >> (i % 8)
		if have[i/8]&mask != want[i/8]&mask {
			return false
		}
	}
	return o.wrong != misreading{attribute, cidrForm(n)}
}

func cidrForm(n netip.Prefix) form {
	family := form("IPv6 ")
	if n.Addr().Is4() {
		family = "IPv4 "
	}
	switch n.Bits() {
	case 0:
		return family + allForm
	case n.Addr().BitLen():
		return family + hostForm
	}
	return family + networkForm
}
