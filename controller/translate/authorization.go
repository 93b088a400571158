package translate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

const dryRunAnnotation = "istio.io/dry-run"

// Authorization is what an AuthorizationPolicy means to ztunnels.
type Authorization struct {
	Policy *mesh.Policy // nil: nothing is sent
	// Behind is the policy for workloads behind a waypoint of ours; nil: the
	// same.
	Behind    *mesh.Policy
	Condition *Condition // nil: ztunnel has nothing to say about it
	// Err joins an *Error per field that cannot be honoured. Policy is then
	// the most restrictive reading: an ALLOW rule with such a field never
	// allows, a DENY rule denies whatever that field could have meant.
	Err error
}

// AuthorizationPolicy translates ap. HTTP attributes cannot be seen by a
// ztunnel; they make a policy stricter, never laxer: what only somebody who
// sees requests could allow is not allowed, and what he could deny is denied.
func (c Config) AuthorizationPolicy(ap *securityv1.AuthorizationPolicy) Authorization {
	if targeted(ap) && ap.Spec.GetSelector() == nil {
		return Authorization{} // a waypoint's business
	}
	unsupported := func(what string) Authorization {
		return Authorization{Condition: &Condition{Type: ConditionZtunnelAccepted, Reason: ReasonUnsupportedValue, Message: "ztunnel does not support " + what}}
	}
	action, ok := actionOf(ap)
	if !ok {
		return unsupported("the " + ap.Spec.GetAction().String() + " action")
	}
	p := &mesh.Policy{Name: ap.Name, Namespace: ap.Namespace, Scope: c.scope(ap), Action: action, DryRun: dryRun(ap)}
	r := ruleReader{
		object:    object{kind: "AuthorizationPolicy", namespace: ap.Namespace, name: ap.Name},
		action:    action,
		namespace: ap.Namespace,
		domains:   c.TrustDomains(),
		http:      make(map[string]bool),
	}
	if targeted(ap) {
		// One says whose business it is, the other says somebody else's: an ALLOW
		// allows nobody, a DENY holds for those who are selected.
		r.bad("spec.selector", "", "both a selector and targetRefs are set")
		r.rules = action == mesh.Allow
	}
	var behind []mesh.Rule
	for i, rule := range ap.Spec.GetRules() {
		if r.rules {
			break
		}
		out, here, there := r.rule(index("spec.rules", i), rule)
		if here {
			p.Rules = append(p.Rules, out)
		}
		if there {
			behind = append(behind, out)
		}
	}
	a := Authorization{Policy: p, Condition: r.condition(p.DryRun), Err: r.err()}
	if NeedsWaypoint(ap) {
		a.Behind = &mesh.Policy{Name: behindPrefix + ap.Name, Namespace: ap.Namespace, Scope: p.Scope, Action: action, Rules: behind}
	}
	return a
}

// Meanwhile says what a policy with errors does as long as no earlier version
// of it is in force.
func (a Authorization) Meanwhile() string {
	if a.Policy != nil && a.Policy.Action == mesh.Deny {
		return meanwhileDeny
	}
	return meanwhileAllow
}

// Listed reports whether ap reaches workloads through their Policies list: it
// is sent to ztunnels and has a selector, or differs between workloads.
func (c Config) Listed(ap *securityv1.AuthorizationPolicy) bool {
	_, ok := actionOf(ap)
	return ok && (ap.Spec.GetSelector() != nil || NeedsWaypoint(ap))
}

func (c Config) scope(ap *securityv1.AuthorizationPolicy) mesh.PolicyScope {
	switch {
	case c.Listed(ap):
		return mesh.ScopeWorkloadSelector
	case ap.Namespace == c.RootNamespace:
		return mesh.ScopeGlobal
	}
	return mesh.ScopeNamespace
}

func targeted(ap *securityv1.AuthorizationPolicy) bool {
	return ap.Spec.GetTargetRef() != nil || len(ap.Spec.GetTargetRefs()) > 0
}

func actionOf(ap *securityv1.AuthorizationPolicy) (mesh.Action, bool) {
	switch ap.Spec.GetAction() {
	case v1beta1.AuthorizationPolicy_ALLOW:
		return mesh.Allow, true
	case v1beta1.AuthorizationPolicy_DENY:
		return mesh.Deny, true
	}
	return 0, false
}

// dryRun: an annotation that is no boolean counts as absent, the policy is
// then enforced.
func dryRun(ap *securityv1.AuthorizationPolicy) bool {
	v, _ := strconv.ParseBool(ap.Annotations[dryRunAnnotation])
	return v
}

// ruleReader reads the rules of one policy.
type ruleReader struct {
	object
	action    mesh.Action
	namespace string
	domains   []string        // the mesh's trust domain and its aliases
	rules     bool            // no rule counts
	blunt     bool            // a DENY rule is left with nothing a ztunnel can tell
	http      map[string]bool // HTTP attributes met in any rule
	skipped   int             // attributes of the current rule that only a waypoint sees
	lost      int             // fields of the current rule that cannot be read
}

// condition is the status for the policy that was read.
func (r *ruleReader) condition(dryRun bool) *Condition {
	c := &Condition{Type: ConditionZtunnelAccepted, True: true, Reason: ReasonAccepted, Message: attachedMessage}
	if len(r.http) > 0 {
		ending := httpDeny
		switch {
		case r.action == mesh.Allow:
			ending = httpAllow
		case r.blunt:
			ending = httpDeny + httpBlunt
		}
		c.Reason = ReasonUnsupportedValue
		c.Message = fmt.Sprintf(httpMessage, strings.Join(slices.Sorted(maps.Keys(r.http)), ", ")) + ending
		if !dryRun {
			c.Message += httpBehind
		}
	}
	if dryRun {
		c.Message += dryRunMessage
	}
	if len(r.errs) > 0 {
		details := make([]string, len(r.errs))
		for i, err := range r.errs {
			details[i] = err.Detail()
		}
		c.True, c.Reason, c.Message = false, ReasonInvalid, strings.Join(details, "; ")
	}
	return c
}

// rule reads one rule, and says whether it is sent for workloads without a
// waypoint and for those behind one.
func (r *ruleReader) rule(path string, in *v1beta1.Rule) (out mesh.Rule, here, there bool) {
	r.skipped, r.lost = 0, 0
	add := func(matches []mesh.Match) {
		if slices.ContainsFunc(matches, func(m mesh.Match) bool { return empty(&m) }) {
			// An entry named what cannot be read, or HTTP attributes alone: it
			// could be about anything, and the clause narrows nothing.
			return
		}
		if len(matches) > 0 {
			out.Clauses = append(out.Clauses, mesh.Clause{Matches: matches})
		}
	}
	var to, from []mesh.Match
	for i, t := range in.GetTo() {
		to = append(to, r.operation(index(path+".to", i)+".operation", t.GetOperation()))
	}
	add(to)
	for i, f := range in.GetFrom() {
		from = append(from, r.source(index(path+".from", i)+".source", f.GetSource()))
	}
	add(from)
	for i, w := range in.GetWhen() {
		add([]mesh.Match{r.when(index(path+".when", i), w)})
	}
	if r.action == mesh.Allow {
		// What a waypoint lets through has at least to be what can be seen here.
		return out, r.skipped+r.lost == 0, r.lost == 0
	}
	// Without a clause a DENY rule denies everything: who wrote it wanted
	// something refused, and nobody here can tell what. A waypoint can.
	r.blunt = r.blunt || r.skipped > 0 && len(out.Clauses) == 0
	return out, true, r.skipped == 0 || r.lost > 0
}

func (r *ruleReader) operation(path string, op *v1beta1.Operation) mesh.Match {
	r.present(path, op != nil && (len(op.Ports)+len(op.NotPorts)+len(op.Hosts)+len(op.NotHosts)+
		len(op.Methods)+len(op.NotMethods)+len(op.Paths)+len(op.NotPaths)) > 0)
	r.beyond("hosts", op.GetHosts())
	r.beyond("notHosts", op.GetNotHosts())
	r.beyond("methods", op.GetMethods())
	r.beyond("notMethods", op.GetNotMethods())
	r.beyond("paths", op.GetPaths())
	r.beyond("notPaths", op.GetNotPaths())
	return mesh.Match{
		DestinationPorts: whole(r, r.ports, path+".ports", op.GetPorts()),
		NotDestPorts:     r.ports(path+".notPorts", op.GetNotPorts()),
	}
}

func (r *ruleReader) source(path string, s *v1beta1.Source) mesh.Match {
	r.present(path, s != nil && (len(s.Principals)+len(s.NotPrincipals)+len(s.RequestPrincipals)+len(s.NotRequestPrincipals)+
		len(s.Namespaces)+len(s.NotNamespaces)+len(s.ServiceAccounts)+len(s.NotServiceAccounts)+
		len(s.IpBlocks)+len(s.NotIpBlocks)+len(s.RemoteIpBlocks)+len(s.NotRemoteIpBlocks)) > 0)
	r.beyond("remoteIpBlocks", s.GetRemoteIpBlocks())
	r.beyond("notRemoteIpBlocks", s.GetNotRemoteIpBlocks())
	r.beyond("requestPrincipals", s.GetRequestPrincipals())
	r.beyond("notRequestPrincipals", s.GetNotRequestPrincipals())
	return mesh.Match{
		Namespaces:         whole(r, r.strings, path+".namespaces", s.GetNamespaces()),
		NotNamespaces:      r.strings(path+".notNamespaces", s.GetNotNamespaces()),
		Principals:         whole(r, r.principals, path+".principals", s.GetPrincipals()),
		NotPrincipals:      r.principals(path+".notPrincipals", s.GetNotPrincipals()),
		ServiceAccounts:    whole(r, r.accounts, path+".serviceAccounts", s.GetServiceAccounts()),
		NotServiceAccounts: r.accounts(path+".notServiceAccounts", s.GetNotServiceAccounts()),
		SourceIPs:          whole(r, r.prefixes, path+".ipBlocks", s.GetIpBlocks()),
		NotSourceIPs:       r.prefixes(path+".notIpBlocks", s.GetNotIpBlocks()),
	}
}

func (r *ruleReader) when(path string, w *v1beta1.Condition) mesh.Match {
	values, nots := w.GetValues(), w.GetNotValues()
	vp, np := path+".values", path+".notValues"
	r.present(path, len(values)+len(nots) > 0)
	switch w.GetKey() {
	case "source.ip":
		return mesh.Match{SourceIPs: whole(r, r.prefixes, vp, values), NotSourceIPs: r.prefixes(np, nots)}
	case "destination.ip":
		return mesh.Match{DestinationIPs: whole(r, r.prefixes, vp, values), NotDestinationIPs: r.prefixes(np, nots)}
	case "destination.port":
		return mesh.Match{DestinationPorts: whole(r, r.ports, vp, values), NotDestPorts: r.ports(np, nots)}
	case "source.namespace":
		return mesh.Match{Namespaces: whole(r, r.strings, vp, values), NotNamespaces: r.strings(np, nots)}
	case "source.principal":
		return mesh.Match{Principals: whole(r, r.principals, vp, values), NotPrincipals: r.principals(np, nots)}
	}
	r.http[w.GetKey()] = true // seenByZtunnel knows the others
	r.skipped++
	return mesh.Match{}
}

// empty reports whether m names no attribute.
func empty(m *mesh.Match) bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.SourceIPs)+len(m.NotSourceIPs)+len(m.DestinationIPs)+len(m.NotDestinationIPs)+
		len(m.DestinationPorts)+len(m.NotDestPorts)+len(m.ServiceAccounts)+len(m.NotServiceAccounts) == 0
}
