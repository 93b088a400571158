package translate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Labels by which services, workloads and namespaces ask for a waypoint.
const (
	UseWaypointLabel          = "istio.io/use-waypoint"
	UseWaypointNamespaceLabel = "istio.io/use-waypoint-namespace"
	IngressUseWaypointLabel   = "istio.io/ingress-use-waypoint"

	canaryLabel            = "istio.io/use-waypoint-canary"
	canaryNamespaceLabel   = "istio.io/use-waypoint-canary-namespace"
	canaryWeightAnnotation = "istio.io/use-waypoint-canary-weight"
)

// noWaypoint as the value of UseWaypointLabel opts out.
const noWaypoint = "none"

// Binding is what the waypoint labels on and around an object come to.
type Binding struct {
	Waypoint *mesh.GatewayAddress // nil: none, traffic is not sent through one
	Weighted []mesh.WeightedWaypoint
	Ingress  bool       // ingress gateways send through the waypoint too
	Status   *Condition // nil: no waypoint is asked for
	// Gateways are the <namespace>/<name> that decide, there or not: the object
	// is to be translated again when one of them changes.
	Gateways []string

	through []gatewayRef // that connections come from, if there is a Waypoint
}

// newBinding is that of an object which nothing is known of but whether it is
// part of a Gateway, in which case traffic must not be sent through another one
// to it.
func newBinding(o metav1.Object, objs Objects) (b Binding, part bool) {
	if name := o.GetLabels()[GatewayNameLabel]; name != "" {
		b.Gateways = []string{o.GetNamespace() + "/" + name}
	}
	return b, belongs(o, objs)
}

// gatewayRef is the Gateway that labels name.
type gatewayRef struct{ namespace, name string }

func (r gatewayRef) String() string { return r.namespace + "/" + r.name }

// refusal is why a waypoint that was asked for is not used.
type refusal struct{ reason, message string }

// BindService is the binding of a Service or ServiceEntry. NamespaceOnly says
// that it is visible in its own namespace alone, so that a waypoint elsewhere
// would be unable to serve it.
func (c Config) BindService(o metav1.Object, namespaceOnly bool, objs Objects) Binding {
	b, part := newBinding(o, objs)
	if part {
		return b
	}
	ns := labelsOf(objs, o.GetNamespace())
	b.Ingress = truth(o.GetLabels(), ns, IngressUseWaypointLabel)
	ref, level, ok := asked(o, objs, UseWaypointLabel, UseWaypointNamespaceLabel)
	if !ok {
		return b
	}
	b.Gateways = append(b.Gateways, ref.String())
	address, no := c.attach(ref, o.GetNamespace(), trafficService, namespaceOnly, objs)
	if no != nil {
		b.Status = notBound(no)
		return b
	}
	if address.Hostname != "" && address.Hostname == c.Hostname(o.GetNamespace(), o.GetName()) {
		return b // the waypoint's own Service, unlabelled: through itself leads nowhere
	}
	b.Waypoint, b.through = address, []gatewayRef{ref}
	message := "Successfully attached to waypoint " + ref.String()
	switch v, labelled := o.GetLabels()[IngressUseWaypointLabel]; {
	case labelled && strings.EqualFold(v, "true"):
		message += ". Ingress traffic will traverse the waypoint"
	case labelled:
		message += ". Ingress traffic does not traverse the waypoint; set the " + IngressUseWaypointLabel + " label to true if it should"
	}
	if canary, ok := named(level, canaryLabel, canaryNamespaceLabel); ok {
		b.Gateways = append(b.Gateways, canary.String())
		weighted, no := c.canary(ref, *address, canary, level, o.GetNamespace(), namespaceOnly, objs)
		if no != nil {
			message += ". Canary waypoint not attached: " + no.message + " (" + no.reason + ")"
		}
		if b.Weighted = weighted; no == nil {
			b.through = append(b.through, canary)
		}
	}
	b.Status = &Condition{Type: ConditionWaypointBound, True: true, Reason: ReasonWaypointAccepted, Message: message}
	return b
}

// fill puts b into the service it is of.
func (b Binding) fill(s *mesh.Service) {
	s.Waypoint, s.Weighted, s.IngressWaypoint = b.Waypoint, b.Weighted, b.Ingress
}

// BindWorkload is the binding of a Pod, WorkloadEntry or inline endpoint, whose
// labels o has: for traffic addressed to it and not to a service.
func (c Config) BindWorkload(o metav1.Object, objs Objects) Binding {
	b, part := newBinding(o, objs)
	if part {
		return b
	}
	ref, level, ok := asked(o, objs, UseWaypointLabel, UseWaypointNamespaceLabel)
	if !ok {
		return b
	}
	b.Gateways = append(b.Gateways, ref.String())
	address, no := c.attach(ref, o.GetNamespace(), trafficWorkload, false, objs)
	switch {
	case no == nil:
		b.Waypoint, b.through = address, []gatewayRef{ref}
		b.Status = &Condition{Type: ConditionWaypointBound, True: true, Reason: ReasonWaypointAccepted, Message: "Successfully attached to waypoint " + ref.String()}
	case no.reason == ReasonUnsupportedTraffic && level != o:
		// A namespace's waypoint for services is nothing its workloads asked for.
	default:
		b.Status = notBound(no)
	}
	return b
}

// bindPod puts what waypoints mean to pod into its workload. The error is of
// the Gateway that pod belongs to.
func (c Config) bindPod(w *mesh.Workload, pod *corev1.Pod, objs Objects) error {
	if !c.Meshed(pod, objs) { // another mesh's tunnels and policies are none of ours
		w.Protocol, w.NativeTunnel, w.Policies = mesh.ProtocolTCP, false, nil
		return nil
	}
	w.Waypoint = c.BindWorkload(pod, objs).Waypoint
	if key := c.requirePolicy(pod, c.servicesOf(w, objs), objs); key != "" {
		w.Policies = append(w.Policies, key)
		slices.Sort(w.Policies)
	}
	c.putBehind(w, pod, objs)
	gw := instanceOf(pod, objs)
	if gw == nil {
		return nil
	}
	tunnel, err := inboundBinding(gw, objs)
	w.AppTunnel = tunnel
	return err
}

// servicesOf are the Services of its own namespace that w is an endpoint of, in
// any order.
func (c Config) servicesOf(w *mesh.Workload, objs Objects) []*corev1.Service {
	var out []*corev1.Service
	for key := range w.Services {
		name, ok := strings.CutSuffix(strings.TrimPrefix(key, w.Namespace+"/"), "."+w.Namespace+".svc."+c.ClusterDomain)
		if !ok {
			continue
		}
		if svc := objs.Service(w.Namespace, name); svc != nil {
			out = append(out, svc)
		}
	}
	return out
}

func notBound(no *refusal) *Condition {
	return &Condition{Type: ConditionWaypointBound, Reason: no.reason, Message: no.message}
}

// asked is the Gateway that o, or else its namespace, names with the labels,
// and which of the two did.
func asked(o metav1.Object, objs Objects, name, namespace string) (ref gatewayRef, level metav1.Object, ok bool) {
	if o.GetLabels()[name] != "" {
		ref, ok = named(o, name, namespace)
		return ref, o, ok
	}
	if ns := objs.Namespace(o.GetNamespace()); ns != nil {
		// A namespace has none itself: the default is the namespace it is.
		ref, ok = named(ns, name, namespace)
		if ref.namespace == "" {
			ref.namespace = ns.Name
		}
		return ref, ns, ok
	}
	return gatewayRef{}, nil, false
}

// named is the Gateway that the labels of o itself name.
func named(o metav1.Object, name, namespace string) (gatewayRef, bool) {
	v := o.GetLabels()[name]
	if v == "" || v == noWaypoint {
		return gatewayRef{}, false
	}
	ref := gatewayRef{namespace: o.GetLabels()[namespace], name: v}
	if ref.namespace == "" {
		if ref.namespace = o.GetNamespace(); ref.namespace == "" {
			ref.namespace = o.GetName() // o is a namespace
		}
	}
	return ref, true
}

// attach binds an object of namespace to the waypoint, or says why not. A
// Gateway without an address counts as not there: traffic goes on without it.
func (c Config) attach(ref gatewayRef, namespace, traffic string, namespaceOnly bool, objs Objects) (*mesh.GatewayAddress, *refusal) {
	gw := objs.Gateway(ref.namespace, ref.name)
	if gw == nil {
		return nil, &refusal{ReasonWaypointNotReady, fmt.Sprintf("waypoint %q is not ready", ref)}
	}
	address, ok := c.gatewayAddress(gw, objs)
	switch takes := waypointFor(gw, objs); {
	case !ok:
		return nil, &refusal{ReasonWaypointNotReady, fmt.Sprintf("waypoint %q is not ready", ref)}
	case namespaceOnly && ref.namespace != namespace:
		return nil, &refusal{ReasonCrossNamespace, fmt.Sprintf("waypoint %q is in another namespace, where this is not visible", ref)}
	case !admits(gw, namespace, objs):
		return nil, &refusal{ReasonAttachmentDenied, fmt.Sprintf("not permitted to attach to waypoint %q (missing allowedRoutes?)", ref)}
	case takes != traffic && takes != trafficAll:
		return nil, &refusal{ReasonUnsupportedTraffic, fmt.Sprintf("waypoint %q is for %s traffic, not for %s traffic", ref, takes, traffic)}
	}
	return &address, nil
}

// canary splits connections between the primary and a second waypoint. When
// that cannot be, the primary has them all.
func (c Config) canary(primary gatewayRef, address mesh.GatewayAddress, ref gatewayRef, level metav1.Object, namespace string, namespaceOnly bool, objs Objects) ([]mesh.WeightedWaypoint, *refusal) {
	weight := 0
	if text, ok := level.GetAnnotations()[canaryWeightAnnotation]; ok {
		var err error
		if weight, err = strconv.Atoi(text); err != nil || weight < 0 || weight > 100 {
			return nil, &refusal{"CanaryInvalidWeight", fmt.Sprintf("%s is %q and must be an integer in [0,100]", canaryWeightAnnotation, text)}
		}
	}
	if ref == primary {
		return nil, &refusal{"CanarySameAsPrimary", fmt.Sprintf("%q is the primary waypoint itself", ref)}
	}
	second, no := c.attach(ref, namespace, trafficService, namespaceOnly, objs)
	if no != nil {
		return nil, no
	}
	return []mesh.WeightedWaypoint{
		{Destination: address, Weight: uint32(100 - weight)},
		{Destination: *second, Weight: uint32(weight)},
	}, nil
}

// truth is the boolean label of an object, or of its namespace when the object
// does not have it. What is no boolean is false.
func truth(own, namespace map[string]string, label string) bool {
	v, ok := own[label]
	if !ok {
		v = namespace[label]
	}
	return strings.EqualFold(v, "true")
}

func labelsOf(objs Objects, namespace string) map[string]string {
	if ns := objs.Namespace(namespace); ns != nil {
		return ns.Labels
	}
	return nil
}
