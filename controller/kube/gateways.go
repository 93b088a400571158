package kube

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
)

// Names of the indices of gateways.
const (
	byGateway = "gateway" // pods and services: namespace/Gateway they are labelled as
	byNetwork = "network" // services with the label of a network, all under ""
)

func labelledGateway(obj any) ([]string, error) {
	if o, ok := obj.(interface {
		GetNamespace() string
		GetLabels() map[string]string
	}); ok && o.GetLabels()[translate.GatewayNameLabel] != "" {
		return []string{o.GetNamespace() + "/" + o.GetLabels()[translate.GatewayNameLabel]}, nil
	}
	return nil, nil
}

func networkService(obj any) ([]string, error) {
	if svc, ok := obj.(*corev1.Service); ok && svc.Labels[translate.NetworkLabel] != "" {
		return []string{""}, nil
	}
	return nil, nil
}

// GatewayPods implements translate.Objects.
func (v *view) GatewayPods(namespace, gateway string) []*corev1.Pod {
	return list[*corev1.Pod](v.caches.pods, byGateway, namespace+"/"+gateway)
}

// NetworkServices implements translate.Objects.
func (v *view) NetworkServices() []*corev1.Service {
	return slices.DeleteFunc(list[*corev1.Service](v.caches.services, byNetwork, ""), func(svc *corev1.Service) bool {
		return !v.cfg.Looks(svc.Namespace, v)
	})
}

// Networks implements translate.Objects.
func (v *view) Networks(find func() map[string]translate.Network) map[string]translate.Network {
	if v.networks == nil {
		v.networks = find()
	}
	return v.networks
}

// gatewayState remembers what was translated with which Gateways.
type gatewayState struct {
	// asking holds, per <namespace>/<name> of a Gateway, there or not, the
	// objects that ask for it; asked is the same the other way round.
	asking map[string]map[key]struct{}
	asked  map[key][]string
	// member is the Gateway that a pod was labelled as, by the pod's
	// <namespace>/<name>.
	member map[string]string
	// required are the policies that workloads name because a waypoint is
	// required; stale those to be made again.
	required, stale names
	networks        map[string]translate.Network
}

func newGatewayState() gatewayState {
	return gatewayState{
		asking: make(map[string]map[key]struct{}), asked: make(map[key][]string), member: make(map[string]string),
		required: names{}, stale: names{},
	}
}

// ask records the Gateways that an object was translated with.
func (s *gatewayState) ask(k key, gateways []string) {
	if old := s.asked[k]; !slices.Equal(old, gateways) {
		for _, g := range old {
			if delete(s.asking[g], k); len(s.asking[g]) == 0 {
				delete(s.asking, g)
			}
		}
		if len(gateways) == 0 {
			delete(s.asked, k)
		} else {
			s.asked[k] = gateways
		}
	}
	for _, g := range gateways {
		if s.asking[g] == nil {
			s.asking[g] = make(map[key]struct{})
		}
		s.asking[g][k] = struct{}{}
	}
}

// sticky keeps, for a Gateway that has had an address and for a while has none,
// the address it had: a waypoint that is scaled to nothing is unreachable, it
// is not as if it had never been asked for.
func (t *translator) sticky(k key) {
	name := k.namespace + "/" + k.name
	switch gw := get[*gatewayv1.Gateway](t.caches.gateways, name); {
	case gw == nil:
		delete(t.good.gateways, name)
	case len(gw.Status.Addresses) > 0:
		t.good.gateways[name] = gw
	case t.good.gateways[name] != nil && t.good.gateways[name].UID != gw.UID:
		delete(t.good.gateways, name)
	}
}

// inEffect is gw with the address it had last, if it has none.
func (v *view) inEffect(gw *gatewayv1.Gateway) *gatewayv1.Gateway {
	if gw == nil || len(gw.Status.Addresses) > 0 {
		return gw
	}
	had := v.good.gateways[gw.Namespace+"/"+gw.Name]
	if had == nil || had.UID != gw.UID {
		return gw
	}
	out := *gw
	out.Status.Addresses = had.Status.Addresses
	return &out
}

// expandGateway: who asks for it, what belongs to it, who requires it.
func (t *translator) expandGateway(v *view, a *affected, gateway string) {
	for k := range t.gateways.asking[gateway] {
		t.again(v, a, k)
	}
	namespace, name, _ := strings.Cut(gateway, "/")
	for _, pod := range v.GatewayPods(namespace, name) {
		a.pods.add(pod.Namespace, pod.Name)
	}
	for _, svc := range list[*corev1.Service](t.caches.services, byGateway, gateway) {
		t.again(v, a, key{kindService, svc.Namespace, svc.Name})
	}
	t.staleFor(gateway)
}

// again translates an object again, and with a service the pods that name it:
// they may have to be reached through its waypoint.
func (t *translator) again(v *view, a *affected, k key) {
	switch k.kind {
	case kindServiceEntry:
		t.expandServiceEntry(v, a, k.namespace+"/"+k.name)
	case kindWorkloadEntry:
		a.entries.add(k.namespace, k.name)
	case kindPod:
		a.pods.add(k.namespace, k.name)
	case kindService:
		a.services.add(k.namespace, k.name)
		t.addNaming(a.pods, t.cfg.Translate.ServiceKey(k.namespace, k.name))
		t.expandServiceExternal(v, a, k)
	}
}

// staleFor makes the policies again that let gateway's pods in.
func (t *translator) staleFor(gateway string) {
	for k := range t.gateways.required {
		if slices.Contains(translate.RequireGateways(k), gateway) {
			t.gateways.stale[k] = struct{}{}
		}
	}
}

func (t *translator) expandGatewayClass(v *view, a *affected, class string) {
	for _, gw := range v.Gateways("") {
		if string(gw.Spec.GatewayClassName) == class {
			t.expandGateway(v, a, gw.Namespace+"/"+gw.Name)
		}
	}
}

// expandMember: a pod that comes to, or ceases to, be a Gateway's may change
// whose accounts its policies let in.
func (t *translator) expandMember(k key) {
	name, now := k.namespace+"/"+k.name, ""
	if pod := get[*corev1.Pod](t.caches.pods, name); pod != nil && pod.Labels[translate.GatewayNameLabel] != "" {
		now = k.namespace + "/" + pod.Labels[translate.GatewayNameLabel]
	}
	for _, g := range []string{t.gateways.member[name], now} {
		if g != "" {
			t.staleFor(g)
		}
	}
	if now == "" {
		delete(t.gateways.member, name)
	} else {
		t.gateways.member[name] = now
	}
}

// expandNamespaceLabels: what a namespace says about waypoints, or is allowed,
// is its pods' and services' too.
func (t *translator) expandNamespaceLabels(a *affected, namespace string) {
	addAll[*corev1.Pod](a.pods, t.caches.pods, cache.NamespaceIndex, namespace)
	addAll[*corev1.Service](a.services, t.caches.services, cache.NamespaceIndex, namespace)
}

// expandNetworks: another way to a network stands in all that is there.
func (t *translator) expandNetworks(v *view, a *affected, changed map[key]struct{}) {
	may := t.whole || t.gateways.networks == nil
	for k := range changed {
		may = may || k.kind == kindGateway || k.kind == kindService || k.kind == kindNamespace
	}
	if !may {
		return
	}
	now := t.cfg.Translate.Networks(v)
	if reflect.DeepEqual(now, t.gateways.networks) {
		return
	}
	if len(now)+len(t.gateways.networks) > 0 && t.gateways.networks != nil {
		t.everything(a)
	}
	t.gateways.networks = now
}

// noteRequired keeps required and stale true when what a workload names
// changes.
func (t *translator) noteRequired(old, now *mesh.Workload) {
	for _, w := range []*mesh.Workload{old, now} {
		if w == nil {
			continue
		}
		for _, k := range w.Policies {
			if translate.IsRequire(k) {
				t.gateways.stale[k] = struct{}{}
			}
		}
	}
}

// translateGateways makes what no single object makes: the gateways of other
// networks, and the policies of required waypoints. The pods come before it.
func (t *translator) translateGateways(v *view, snap *mesh.Snapshot, d *mesh.Delta) {
	now := make(map[string]*mesh.Workload)
	for _, n := range t.gateways.networks {
		w := n.Workload
		if w == nil {
			continue
		}
		now[w.UID] = w
		if !reflect.DeepEqual(snap.Workload(w.UID), w) {
			d.Workloads = append(d.Workloads, w)
		}
	}
	for uid := range t.networkUIDs {
		if now[uid] == nil {
			d.RemovedWorkloads = append(d.RemovedWorkloads, uid)
		}
	}
	t.networkUIDs = now
	for _, k := range slices.Sorted(maps.Keys(t.gateways.stale)) {
		var p *mesh.Policy
		if len(t.naming[k]) > 0 {
			p = t.cfg.Translate.RequirePolicy(k, v)
			t.gateways.required[k] = struct{}{}
		} else {
			delete(t.gateways.required, k)
		}
		diffPolicy(snap, k, p, d)
	}
	clear(t.gateways.stale)
}
