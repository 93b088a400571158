package translate

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// RequireWaypointLabel on a Service or a Namespace refuses connections that go
// past the waypoint; on a Service, "false" takes back what its namespace says.
const RequireWaypointLabel = "ambitmesh.io/require-waypoint"

// RequirePrefix begins the name of the policies that RequireWaypointLabel
// becomes: <namespace>/<prefix><waypoint>[_<waypoint>...], where a waypoint of
// another namespace is <name>@<namespace>, and "none" stands for no waypoint at
// all. They are judged by the connection's own peer and never by whom a
// waypoint speaks for.
const RequirePrefix = mesh.RequireWaypointPrefix

const connectStrategyAnnotation = "istio.io/connect-strategy"

// IsRequire reports whether key names such a policy.
func IsRequire(key string) bool {
	_, name, _ := strings.Cut(key, "/")
	return strings.HasPrefix(name, RequirePrefix)
}

// requires reports whether connections to svc have to come from its waypoint.
func requires(svc *corev1.Service, objs Objects) bool {
	return truth(svc.Labels, labelsOf(objs, svc.Namespace), RequireWaypointLabel)
}

// requirePolicy is the key of the policy that keeps connections past their
// waypoints out of pod, an endpoint of services; "" for none.
//
// A pod knows no service by its address: what one service requires holds for
// every port of the pod, for whoever comes from none of its waypoints.
func (c Config) requirePolicy(pod *corev1.Pod, services []*corev1.Service, objs Objects) string {
	if belongs(pod, objs) {
		return ""
	}
	required := false
	through := map[gatewayRef]bool{}
	for _, svc := range services {
		if !requires(svc, objs) {
			continue
		}
		required = true
		for _, ref := range c.BindService(svc, false, objs).through {
			through[ref] = true
		}
	}
	if len(services) == 0 {
		required = truth(nil, labelsOf(objs, pod.Namespace), RequireWaypointLabel)
	}
	if !required {
		return ""
	}
	for _, ref := range c.BindWorkload(pod, objs).through {
		through[ref] = true
	}
	return requireKey(pod.Namespace, slices.Collect(maps.Keys(through)))
}

// requireKey is the key of the policy that lets waypoints into pods of
// namespace, and nobody else.
func requireKey(namespace string, through []gatewayRef) string {
	tokens := make([]string, 0, len(through))
	for _, ref := range through {
		token := ref.name
		if ref.namespace != namespace {
			token += "@" + ref.namespace
		}
		tokens = append(tokens, token)
	}
	if len(tokens) == 0 {
		tokens = append(tokens, noWaypoint)
	}
	slices.Sort(tokens)
	return namespace + "/" + RequirePrefix + strings.Join(slices.Compact(tokens), "_")
}

// RequirePolicy is the policy of a key that requirePolicy gave: it denies
// whoever is none of the waypoints it names. Without any it denies everybody.
func (c Config) RequirePolicy(key string, objs Objects) *mesh.Policy {
	namespace, name, _ := strings.Cut(key, "/")
	p := &mesh.Policy{Name: name, Namespace: namespace, Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny}
	var principals []mesh.StringMatch
	for _, ref := range requiredOf(key) {
		if gw := objs.Gateway(ref.namespace, ref.name); gw != nil {
			for _, account := range gatewayAccounts(gw, objs) {
				for _, domain := range c.TrustDomains() {
					principals = append(principals, mesh.StringMatch{Kind: mesh.Exact, Value: domain + "/ns/" + gw.Namespace + "/sa/" + account})
				}
			}
		}
	}
	if len(principals) == 0 {
		p.Rules = []mesh.Rule{{}} // without a clause it matches everybody
		return p
	}
	slices.SortFunc(principals, func(a, b mesh.StringMatch) int { return cmp.Compare(a.Value, b.Value) })
	principals = slices.Compact(principals)
	p.Rules = []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{NotPrincipals: principals}}}}}}
	return p
}

// requiredOf are the waypoints that the policy of a key lets in.
func requiredOf(key string) []gatewayRef {
	namespace, name, _ := strings.Cut(key, "/")
	var refs []gatewayRef
	for token := range strings.SplitSeq(strings.TrimPrefix(name, RequirePrefix), "_") {
		if token == noWaypoint {
			continue
		}
		ref := gatewayRef{namespace: namespace, name: token}
		if n, ns, ok := strings.Cut(token, "@"); ok {
			ref = gatewayRef{namespace: ns, name: n}
		}
		refs = append(refs, ref)
	}
	return refs
}

// RequireGateways are the <namespace>/<name> of the Gateways that the policy of
// a key lets in.
func RequireGateways(key string) []string {
	var out []string
	for _, ref := range requiredOf(key) {
		out = append(out, ref.String())
	}
	return out
}

// gatewayAccounts are the service accounts gw's pods run as; without a pod, the
// one they would run as.
func gatewayAccounts(gw *gatewayv1.Gateway, objs Objects) []string {
	var out []string
	for _, pod := range objs.GatewayPods(gw.Namespace, gw.Name) {
		if !Ended(pod) {
			out = append(out, cmp.Or(pod.Spec.ServiceAccountName, "default"))
		}
	}
	if len(out) == 0 {
		out = append(out, cmp.Or(gw.Annotations[gatewayAccountAnnotation], gw.Name))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// requiredStatus says on a Service whether what it requires is so.
func (c Config) requiredStatus(svc *corev1.Service, b Binding, objs Objects) *Condition {
	if !requires(svc, objs) || belongs(svc, objs) {
		return nil
	}
	if b.Waypoint != nil {
		var names []string
		for _, ref := range b.through {
			names = append(names, ref.String())
		}
		return &Condition{Type: ConditionWaypointRequired, True: true, Reason: "Enforced",
			Message: "connections to the pods that do not come from waypoint " + strings.Join(names, " or ") + " are refused"}
	}
	why := "no label " + UseWaypointLabel + " names one"
	if b.Status != nil {
		why = b.Status.Message
	}
	return &Condition{Type: ConditionWaypointRequired, Reason: "WaypointMissing",
		Message: "a waypoint is required and none is bound, so every connection to the pods is refused: " + why}
}

// ServiceStatus are the conditions that a Service should bear. None, as on
// entries, when it is not ours to write on.
func (c Config) ServiceStatus(svc *corev1.Service, objs Objects) []Condition {
	if !published(svc) || !c.Writes(svc, objs) {
		return nil
	}
	b := c.BindService(svc, false, objs)
	return conditions(b.Status, c.requiredStatus(svc, b, objs))
}

// ServiceEntryStatus are the Gateways that se, or one of its endpoints, asks
// for, and the conditions that it should bear.
func (c Config) ServiceEntryStatus(se *networkingv1.ServiceEntry, objs Objects) ([]string, []Condition) {
	visible := c.visibility(se, nil, objs)
	b := c.BindService(se, visible == VisibleNamespace, objs)
	gateways := b.Gateways
	for _, e := range se.Spec.GetEndpoints() {
		for _, g := range c.BindWorkload(bearing(se, e.GetLabels()), objs).Gateways {
			if !slices.Contains(gateways, g) {
				gateways = append(gateways, g)
			}
		}
	}
	if !c.Writes(se, objs) || visible == VisibleNone {
		return gateways, nil
	}
	var applied *Condition
	if c.Mesh.Visibility.Default != VisiblePublic || len(c.Mesh.Visibility.Policies) > 0 {
		applied = &Condition{Type: ConditionVisibilityApplied, True: true, Reason: "Public", Message: "visible in all namespaces"}
		if visible == VisibleNamespace {
			applied.Reason, applied.Message = "Namespace", "visible in its own namespace"
		}
	}
	return gateways, conditions(b.Status, waypointMissing(se, b), applied)
}

// waypointMissing says of an entry that only a waypoint can serve that it has
// none.
func waypointMissing(se *networkingv1.ServiceEntry, b Binding) *Condition {
	if b.Waypoint != nil {
		return nil
	}
	missing := func(reason, message string) *Condition {
		return &Condition{Type: ConditionWaypointMissing, True: true, Reason: reason, Message: message}
	}
	switch se.Spec.GetResolution() {
	case networking.ServiceEntry_DYNAMIC_DNS:
		return missing("NoWaypointForWildcardService", "resolution DYNAMIC_DNS needs a waypoint, which looks up the names that clients ask for; none is bound")
	case networking.ServiceEntry_DNS:
		if strings.EqualFold(se.Annotations[connectStrategyAnnotation], "RACE_FIRST_TCP_CONNECT") {
			return missing("NoWaypointForRacingConnectStrategy", "to race connections needs a waypoint; none is bound")
		}
	}
	return nil
}

// WorkloadEntryStatus is the same for a WorkloadEntry.
func (c Config) WorkloadEntryStatus(we *networkingv1.WorkloadEntry, objs Objects) ([]string, []Condition) {
	b := c.BindWorkload(bearing(we, EntryLabels(we)), objs)
	if !c.Writes(we, objs) {
		return b.Gateways, nil
	}
	return b.Gateways, conditions(b.Status)
}

func conditions(all ...*Condition) []Condition {
	var out []Condition
	for _, c := range all {
		if c != nil {
			out = append(out, *c)
		}
	}
	return out
}
