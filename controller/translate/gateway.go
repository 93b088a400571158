package translate

import (
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// gatewayObjects are the Objects that only waypoints and gateways ask for.
type gatewayObjects interface {
	// GatewayPods are the pods of a namespace that are labelled as a Gateway's.
	GatewayPods(namespace, gateway string) []*corev1.Pod
	// NetworkServices are the Services, of all namespaces, that have
	// NetworkLabel.
	NetworkServices() []*corev1.Service
	// Networks is what find says, which is asked as seldom as the objects allow:
	// every endpoint of another network needs it.
	Networks(find func() map[string]Network) map[string]Network
}

// Labels and annotations that make a Gateway a waypoint, and mark what belongs
// to one.
const (
	WaypointForLabel = "istio.io/waypoint-for"
	GatewayNameLabel = "gateway.networking.k8s.io/gateway-name"

	managedLabel             = "gateway.istio.io/managed"
	inboundBindingAnnotation = "ambient.istio.io/waypoint-inbound-binding"
	gatewayAccountAnnotation = "gateway.istio.io/service-account"
)

// Kinds of traffic in WaypointForLabel.
const (
	trafficService  = "service"
	trafficWorkload = "workload"
	trafficAll      = "all"
)

const (
	hbonePort     = 15008
	protocolHBONE = gatewayv1.ProtocolType("HBONE")
	protocolPROXY = gatewayv1.ProtocolType("istio.io/PROXY")
)

// managers are the values of managedLabel on what belongs to a waypoint or an
// east-west gateway; such objects have no waypoint themselves.
var managers = map[string]bool{
	"istio.io-mesh-controller":     true,
	"istio.io-eastwest-controller": true,
	"ambitmesh.io-waypoint":        true,
}

// gatewayAddress is where clients find gw: by the host name of its status, so
// that they see its replicas come and go, else by address. A Gateway without a
// status address has never been ready.
func (c Config) gatewayAddress(gw *gatewayv1.Gateway, objs Objects) (mesh.GatewayAddress, bool) {
	var byAddress *mesh.GatewayAddress
	for i := range gw.Status.Addresses {
		a := &gw.Status.Addresses[i]
		if a.Type != nil && *a.Type == gatewayv1.HostnameAddressType {
			if a.Value != "" {
				return mesh.GatewayAddress{Namespace: gw.Namespace, Hostname: a.Value, HBONEPort: hbonePort}, true
			}
			continue
		}
		if ip, err := netip.ParseAddr(a.Value); err == nil && ip.Zone() == "" && byAddress == nil {
			ip = ip.Unmap()
			byAddress = &mesh.GatewayAddress{
				Address:   mesh.NetworkAddress{Network: c.network(objs), Prefix: netip.PrefixFrom(ip, ip.BitLen())},
				HBONEPort: hbonePort,
			}
		}
	}
	if byAddress == nil {
		return mesh.GatewayAddress{}, false
	}
	return *byAddress, true
}

// waypointFor is the kind of traffic gw takes: its own label, its class's,
// services.
func waypointFor(gw *gatewayv1.Gateway, objs Objects) string {
	if v := gw.Labels[WaypointForLabel]; v != "" {
		return v
	}
	if class := objs.GatewayClass(string(gw.Spec.GatewayClassName)); class != nil && class.Labels[WaypointForLabel] != "" {
		return class.Labels[WaypointForLabel]
	}
	return trafficService
}

// admits reports whether objects of namespace may use gw: what the listener
// allows that clients' tunnels end at.
func admits(gw *gatewayv1.Gateway, namespace string, objs Objects) bool {
	l := tunnelListener(gw, objs)
	from := gatewayv1.NamespacesFromSame
	var namespaces *gatewayv1.RouteNamespaces
	if l != nil && l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil {
		namespaces = l.AllowedRoutes.Namespaces
		if namespaces.From != nil {
			from = *namespaces.From
		}
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == gw.Namespace
	case gatewayv1.NamespacesFromSelector:
		return selectsNamespace(namespaces.Selector, objs.Namespace(namespace))
	}
	return false
}

func selectsNamespace(s *metav1.LabelSelector, ns *corev1.Namespace) bool {
	if s == nil || ns == nil {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(ns.Labels))
}

// tunnelListener is the listener that an inbound binding names, else the one
// for HBONE.
func tunnelListener(gw *gatewayv1.Gateway, objs Objects) *gatewayv1.Listener {
	if b, err := inboundBinding(gw, objs); b != nil && err == nil && b.Port != 0 {
		for i := range gw.Spec.Listeners {
			if l := &gw.Spec.Listeners[i]; int(l.Port) == int(b.Port) {
				return l
			}
		}
	}
	for i := range gw.Spec.Listeners {
		if l := &gw.Spec.Listeners[i]; l.Protocol == protocolHBONE && l.Port == hbonePort {
			return l
		}
	}
	return nil
}

// inboundBinding says how the ztunnel in front of gw's pods hands them what
// came for them, nil when they speak HBONE themselves: <NONE or PROXY>[/<port>]
// in an annotation of the Gateway, or of its class.
func inboundBinding(gw *gatewayv1.Gateway, objs Objects) (*mesh.AppTunnel, error) {
	kind, namespace, name := "Gateway", gw.Namespace, gw.Name
	text, ok := gw.Annotations[inboundBindingAnnotation]
	if !ok {
		class := objs.GatewayClass(string(gw.Spec.GatewayClassName))
		if class == nil {
			return nil, nil
		}
		if text, ok = class.Annotations[inboundBindingAnnotation]; !ok {
			return nil, nil
		}
		kind, namespace, name = "GatewayClass", "", class.Name
	}
	bad := func(problem string) (*mesh.AppTunnel, error) {
		return nil, &Error{Kind: kind, Namespace: namespace, Name: name,
			Field: "metadata.annotations[" + inboundBindingAnnotation + "]", Value: text, Problem: problem}
	}
	protocol, port, hasPort := strings.Cut(text, "/")
	b := &mesh.AppTunnel{}
	switch protocol {
	case "NONE":
	case "PROXY":
		b.Proxy = true
	default:
		return bad("neither NONE nor PROXY")
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return bad("not followed by a port number")
		}
		b.Port = uint16(n)
		return b, nil
	}
	if b.Proxy {
		for i := range gw.Spec.Listeners {
			if l := &gw.Spec.Listeners[i]; l.Protocol == protocolPROXY {
				b.Port = uint16(l.Port)
				return b, nil
			}
		}
	}
	return b, nil
}

// instanceOf is the Gateway that pod or Service o belongs to, nil for none.
func instanceOf(o metav1.Object, objs Objects) *gatewayv1.Gateway {
	name := o.GetLabels()[GatewayNameLabel]
	if name == "" {
		return nil
	}
	return objs.Gateway(o.GetNamespace(), name)
}

// belongs reports whether o is part of a gateway, which traffic must not be
// sent through another one to.
func belongs(o metav1.Object, objs Objects) bool {
	return managers[o.GetLabels()[managedLabel]] || instanceOf(o, objs) != nil
}
