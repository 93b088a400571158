package translate

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// A policy without targetRefs may name attributes that only a waypoint sees. A
// workload that has a waypoint of ours then takes connections from that alone,
// and the waypoint enforces such rules. What ztunnel asks there is another form
// of the policy, under a name of its own: it leaves those rules to the waypoint,
// save for what of them it can see itself.

// behindPrefix begins the name of that form. It is no name that an object of
// Kubernetes can have.
const behindPrefix = "ambitmesh_behind_waypoint_"

// BehindKey is the key of the form of a policy for workloads behind a waypoint.
func BehindKey(namespace, name string) string { return namespace + "/" + behindPrefix + name }

// NeedsWaypoint reports whether ap, which has no targetRefs, names attributes
// that only a waypoint sees. Such a policy is listed by every workload it is
// for, because it differs between those with a waypoint and those without.
func NeedsWaypoint(ap *securityv1.AuthorizationPolicy) bool {
	if _, ok := actionOf(ap); !ok || targeted(ap) || dryRun(ap) {
		return false
	}
	return slices.ContainsFunc(ap.Spec.GetRules(), namesHTTP)
}

func namesHTTP(r *v1beta1.Rule) bool {
	for _, f := range r.GetFrom() {
		s := f.GetSource()
		if len(s.GetRequestPrincipals())+len(s.GetNotRequestPrincipals())+len(s.GetRemoteIpBlocks())+len(s.GetNotRemoteIpBlocks()) > 0 {
			return true
		}
	}
	for _, t := range r.GetTo() {
		op := t.GetOperation()
		if len(op.GetHosts())+len(op.GetNotHosts())+len(op.GetMethods())+len(op.GetNotMethods())+len(op.GetPaths())+len(op.GetNotPaths()) > 0 {
			return true
		}
	}
	return slices.ContainsFunc(r.GetWhen(), func(w *v1beta1.Condition) bool { return !seenByZtunnel(w.GetKey()) })
}

// seenByZtunnel reports whether a when key is about the connection.
func seenByZtunnel(key string) bool {
	switch key {
	case "source.ip", "destination.ip", "destination.port", "source.namespace", "source.principal":
		return true
	}
	return false
}

// putBehind has w, whose pod has waypoints of ours, take connections from these
// alone if a policy needs that.
func (c Config) putBehind(w *mesh.Workload, pod *corev1.Pod, objs Objects) {
	if belongs(pod, objs) {
		return
	}
	var needing []string
	for _, ns := range []string{pod.Namespace, c.RootNamespace} {
		for _, ap := range objs.AuthorizationPolicies(ns) {
			key := ap.Namespace + "/" + ap.Name
			if slices.Contains(w.Policies, key) && NeedsWaypoint(ap) {
				needing = append(needing, key)
			}
		}
	}
	if len(needing) == 0 {
		return
	}
	through := c.ownWaypoints(w, pod, objs)
	if len(through) == 0 {
		return
	}
	for i, key := range w.Policies {
		if slices.Contains(needing, key) {
			namespace, name, _ := strings.Cut(key, "/")
			w.Policies[i] = BehindKey(namespace, name)
		}
	}
	w.Policies = append(w.Policies, requireKey(pod.Namespace, through))
	slices.Sort(w.Policies)
	w.Policies = slices.Compact(w.Policies)
}

// ownWaypoints are the waypoints of ours that connections to w come from, its
// own and those of its services.
func (c Config) ownWaypoints(w *mesh.Workload, pod *corev1.Pod, objs Objects) []gatewayRef {
	refs := slices.Clone(c.BindWorkload(pod, objs).through)
	for _, svc := range c.servicesOf(w, objs) {
		refs = append(refs, c.BindService(svc, false, objs).through...)
	}
	return slices.DeleteFunc(refs, func(r gatewayRef) bool {
		gw := objs.Gateway(r.namespace, r.name)
		return gw == nil || !c.ours(gw, objs)
	})
}
