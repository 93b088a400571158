package translate

import (
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// Controllers of GatewayClasses: ours, and the name by which policies mean every
// waypoint of the mesh.
const (
	waypointController = "ambitmesh.io/waypoint"
	meshController     = "istio.io/mesh-controller"
)

// target is what a policy's targetRef comes to.
type target struct {
	ref     *v1beta1.PolicyTargetReference
	bound   string // the waypoint, or class of waypoints, that enforces the policy; "" for none
	reason  string // why not
	message string
	foreign bool // another control plane's waypoint: its word, not ours
}

// PolicyTargets is the condition that says where a policy with targetRefs is
// enforced; nil for one without, and for one that is another control plane's
// business.
func (c Config) PolicyTargets(ap *securityv1.AuthorizationPolicy, objs Objects) *Condition {
	refs := targetRefs(ap)
	if len(refs) == 0 {
		return nil
	}
	cond := &Condition{Type: ConditionWaypointAccepted}
	if ap.Spec.GetSelector() != nil {
		cond.Reason, cond.Message = ReasonInvalid, "both a selector and targetRefs are set"
		return cond
	}
	var lost, bound []string
	foreign := 0
	for _, ref := range refs {
		t := c.target(ap, ref, objs)
		switch {
		case t.foreign:
			foreign++
		case t.bound != "":
			bound = append(bound, t.bound)
		default:
			lost = append(lost, t.String(ap.Namespace))
			cond.Reason, cond.Message = t.reason, t.message
		}
	}
	switch {
	case foreign == len(refs):
		return nil
	case len(lost) == 0:
		cond.True, cond.Reason, cond.Message = true, ReasonAccepted, "bound to "+strings.Join(bound, ", ")
	case len(refs) == 1: // its own reason
	default:
		cond.Reason, cond.Message = ReasonInvalid, "Invalid targetRefs: "+strings.Join(lost, ", ")
		if len(bound)+foreign > 0 {
			cond.True, cond.Reason = true, ReasonPartiallyInvalid
		}
	}
	return cond
}

// targetRefs are those of the list, and the one of the field that came before
// it.
func targetRefs(ap *securityv1.AuthorizationPolicy) []*v1beta1.PolicyTargetReference {
	if refs := ap.Spec.GetTargetRefs(); len(refs) > 0 {
		return refs
	}
	if ref := ap.Spec.GetTargetRef(); ref != nil {
		return []*v1beta1.PolicyTargetReference{ref}
	}
	return nil
}

// TargetsWaypoints reports whether ap names targets, so that what they are decides its
// status.
func TargetsWaypoints(ap *securityv1.AuthorizationPolicy) bool { return targeted(ap) }

// String is the target as Istio's messages have it.
func (t *target) String(namespace string) string {
	group := t.ref.GetGroup()
	if group == "" {
		group = "core"
	}
	return t.ref.GetKind() + "." + group + ":" + namespace + "/" + t.ref.GetName()
}

func (c Config) target(ap *securityv1.AuthorizationPolicy, ref *v1beta1.PolicyTargetReference, objs Objects) target {
	t := target{ref: ref}
	no := func(reason, message string) target {
		t.reason, t.message = reason, t.String(ap.Namespace)+" "+message
		return t
	}
	if ns := ref.GetNamespace(); ns != "" && ns != ap.Namespace {
		return no(ReasonInvalid, "is of another namespace than the policy")
	}
	switch group := ref.GetGroup(); {
	case ref.GetKind() == "Gateway" && group == gatewayv1.GroupName:
		gw := objs.Gateway(ap.Namespace, ref.GetName())
		if gw == nil {
			return no(ReasonTargetNotFound, "was not found")
		}
		if !c.ours(gw, objs) {
			t.foreign = true
			return t
		}
		t.bound = gw.Namespace + "/" + gw.Name
	case ref.GetKind() == "GatewayClass" && group == gatewayv1.GroupName:
		class := objs.GatewayClass(ref.GetName())
		switch {
		case ap.Namespace != c.RootNamespace:
			return no(ReasonInvalid, "can be the target of policies in the root namespace "+c.RootNamespace+" alone")
		case class == nil:
			return no(ReasonTargetNotFound, "was not found")
		case class.Spec.ControllerName == meshController && c.Beside:
			t.foreign = true
			return t
		case class.Spec.ControllerName != waypointController && class.Spec.ControllerName != meshController:
			return no(ReasonInvalid, "is not a class of waypoints: its controller is "+string(class.Spec.ControllerName))
		}
		t.bound = class.Name
	case ref.GetKind() == "Service" && (group == "" || group == "core"):
		svc := objs.Service(ap.Namespace, ref.GetName())
		if svc == nil {
			return no(ReasonTargetNotFound, "was not found")
		}
		return c.ancestor(t, c.BindService(svc, false, objs), no, objs)
	case ref.GetKind() == "ServiceEntry" && group == "networking.istio.io":
		for _, se := range objs.ServiceEntries(ap.Namespace) {
			if se.Name == ref.GetName() {
				var b Binding
				if visible := c.visibility(se, nil, objs); visible != VisibleNone { // else it is served to nobody
					b = c.BindService(se, visible == VisibleNamespace, objs)
				}
				return c.ancestor(t, b, no, objs)
			}
		}
		return no(ReasonTargetNotFound, "was not found")
	default:
		return no(ReasonInvalid, "is not of a kind that a policy can be attached to")
	}
	return t
}

// ancestor: what a policy on a service needs is the service's waypoint.
func (c Config) ancestor(t target, b Binding, no func(reason, message string) target, objs Objects) target {
	if b.Waypoint == nil {
		return no(ReasonAncestorNotBound, "is not bound to a waypoint")
	}
	waypoint := b.through[0]
	if gw := objs.Gateway(waypoint.namespace, waypoint.name); gw == nil || !c.ours(gw, objs) {
		t.foreign = true
		return t
	}
	t.bound = waypoint.String()
	return t
}

// ours reports whether our waypoints serve gw: its class is one of our
// controller's.
func (c Config) ours(gw *gatewayv1.Gateway, objs Objects) bool {
	class := objs.GatewayClass(string(gw.Spec.GatewayClassName))
	return class != nil && (class.Spec.ControllerName == waypointController || class.Spec.ControllerName == meshController && !c.Beside)
}
