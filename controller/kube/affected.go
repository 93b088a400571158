package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// names is a set of <namespace>/<name>.
type names map[string]struct{}

func (n names) add(namespace, name string) { n[namespace+"/"+name] = struct{}{} }

// affected are the objects one batch translates again.
type affected struct {
	pods, slices, services, policies, peers names
	entries, external                       names // WorkloadEntries, ServiceEntries
	expanded                                names // of external, with what they select
}

func newAffected() affected {
	return affected{
		pods: names{}, slices: names{}, services: names{}, policies: names{}, peers: names{},
		entries: names{}, external: names{}, expanded: names{},
	}
}

// expand finds what the changed objects touch: what they match now, and what
// named their translation before.
func (t *translator) expand(v *view, changed map[key]struct{}) affected {
	a := newAffected()
	network := ""
	if ns := v.Namespace(t.cfg.Translate.RootNamespace); ns != nil {
		network = ns.Labels[translate.NetworkLabel]
	}
	if network != t.network { // stands in every object
		t.network = network
		t.everything(&a)
	}
	t.expandNetworks(v, &a, changed)
	if t.whole {
		t.whole = false
		t.everything(&a)
		for k := range t.gateways.required { // the trust domains stand in them
			t.gateways.stale[k] = struct{}{}
		}
	}
	for k := range changed {
		if k.kind == kindPod {
			t.expandMember(k)
		}
	}
	if t.store.Load().Version() == 0 {
		// The first batch has everything changed: to look for what each object
		// touches would be every service times every pod.
		t.everything(&a)
		return a
	}
	for k := range changed {
		switch k.kind {
		case kindPod:
			t.expandPod(v, &a, k)
		case kindNode:
			for _, pod := range list[*corev1.Pod](t.caches.pods, byNode, k.name) {
				t.expandPod(v, &a, key{kindPod, pod.Namespace, pod.Name})
			}
		case kindNamespace: // its annotation is a default for its services
			addAll[*corev1.Service](a.services, t.caches.services, cache.NamespaceIndex, k.name)
			t.expandNamespaceExternal(v, &a, k.name)
			t.expandNamespaceLabels(&a, k.name)
		case kindService:
			t.expandService(v, &a, k)
		case kindSlice:
			t.expandSlice(v, &a, k)
		case kindPolicy:
			t.expandPolicy(v, &a, k)
		case kindPeer:
			t.expandPeer(v, &a, k)
		case kindServiceEntry:
			t.expandServiceEntry(v, &a, k.namespace+"/"+k.name)
		case kindWorkloadEntry:
			a.entries.add(k.namespace, k.name)
		case kindGateway:
			t.expandGateway(v, &a, k.namespace+"/"+k.name)
		case kindGatewayClass:
			t.expandGatewayClass(v, &a, k.name)
		case kindNetworkPolicy:
			t.expandNetworkPolicy(&a, k)
		case kindMeshConfig: // settle has seen to it
		}
	}
	return a
}

func (t *translator) expandService(v *view, a *affected, k key) {
	a.services.add(k.namespace, k.name)
	t.expandServiceExternal(v, a, k)
	t.addNaming(a.pods, t.cfg.Translate.ServiceKey(k.namespace, k.name))
	for _, slice := range list[*discoveryv1.EndpointSlice](t.caches.slices, byService, k.namespace+"/"+k.name) {
		a.slices.add(slice.Namespace, slice.Name)
		addTargets(a.pods, slice)
	}
	svc := v.Service(k.namespace, k.name)
	if svc == nil {
		return
	}
	for _, pod := range list[*corev1.Pod](t.caches.pods, cache.NamespaceIndex, k.namespace) {
		if translate.Selects(svc, pod.Namespace, pod.Labels) {
			a.pods.add(pod.Namespace, pod.Name)
		}
	}
}

func (t *translator) expandSlice(v *view, a *affected, k key) {
	a.slices.add(k.namespace, k.name)
	slice := get[*discoveryv1.EndpointSlice](t.caches.slices, k.namespace+"/"+k.name)
	services := []string{t.sliceService[k.namespace+"/"+k.name]}
	if slice != nil {
		services = append(services, slice.Labels[discoveryv1.LabelServiceName])
	}
	for _, service := range services {
		// With a selector the pods' own labels decide, and a large service's
		// slices change whenever one of its pods does.
		if svc := v.Service(k.namespace, service); service == "" || svc != nil && len(svc.Spec.Selector) > 0 {
			continue
		}
		if slice != nil {
			addTargets(a.pods, slice)
		}
		t.addNaming(a.pods, t.cfg.Translate.ServiceKey(k.namespace, service))
	}
}

func (t *translator) expandPolicy(v *view, a *affected, k key) {
	a.policies.add(k.namespace, k.name)
	t.addNaming(a.pods, k.namespace+"/"+k.name)
	ap := get[*securityv1.AuthorizationPolicy](t.caches.policies, k.namespace+"/"+k.name)
	t.addNaming(a.pods, translate.BehindKey(k.namespace, k.name))
	if ap == nil || !t.cfg.Translate.Listed(ap) {
		t.expandPolicyExternal(v, a, k, nil)
		return
	}
	t.expandPolicyExternal(v, a, k, func(labels map[string]string) bool { return translate.Picks(ap.Spec.GetSelector(), labels) })
	for _, pod := range t.podsUnder(k.namespace) {
		if translate.Picks(ap.Spec.GetSelector(), pod.Labels) {
			a.pods.add(pod.Namespace, pod.Name)
		}
	}
}

// expandPeer: what a PeerAuthentication means to a pod depends on those around
// it, so everything it could reach is looked at again.
func (t *translator) expandPeer(v *view, a *affected, k key) {
	t.expandPolicyExternal(v, a, k, func(map[string]string) bool { return true })
	a.peers.add(k.namespace, k.name)
	if k.namespace == t.cfg.Translate.RootNamespace {
		addEvery[*securityv1.PeerAuthentication](a.peers, t.caches.peers)
	} else {
		addAll[*securityv1.PeerAuthentication](a.peers, t.caches.peers, cache.NamespaceIndex, k.namespace)
	}
	for _, pod := range t.podsUnder(k.namespace) {
		a.pods.add(pod.Namespace, pod.Name)
	}
}

// podsUnder are the pods a policy of namespace can reach.
func (t *translator) podsUnder(namespace string) []*corev1.Pod {
	if namespace != t.cfg.Translate.RootNamespace {
		return list[*corev1.Pod](t.caches.pods, cache.NamespaceIndex, namespace)
	}
	objs := t.caches.pods.GetIndexer().List()
	pods := make([]*corev1.Pod, len(objs))
	for i, o := range objs {
		pods[i] = o.(*corev1.Pod)
	}
	return pods
}

func (t *translator) everything(a *affected) {
	addEvery[*corev1.Pod](a.pods, t.caches.pods)
	addEvery[*discoveryv1.EndpointSlice](a.slices, t.caches.slices)
	addEvery[*corev1.Service](a.services, t.caches.services)
	addEvery[*networkingv1.WorkloadEntry](a.entries, t.caches.workloadEntries)
	addEvery[*networkingv1.ServiceEntry](a.external, t.caches.serviceEntries)
	addEvery[*securityv1.AuthorizationPolicy](a.policies, t.caches.policies)
	addEvery[*securityv1.PeerAuthentication](a.peers, t.caches.peers)
}

// addNaming adds the pods whose workload names the service or policy.
func (t *translator) addNaming(pods names, named string) {
	for pod := range t.naming[named] {
		pods[pod] = struct{}{}
	}
}

func addTargets(pods names, slice *discoveryv1.EndpointSlice) {
	for i := range slice.Endpoints {
		if r := slice.Endpoints[i].TargetRef; r != nil && r.Kind == "Pod" {
			pods.add(slice.Namespace, r.Name)
		}
	}
}

// named is what the two functions below need of an object.
type named interface {
	GetNamespace() string
	GetName() string
}

func addAll[T named](n names, inf cache.SharedIndexInformer, index, value string) {
	for _, o := range list[T](inf, index, value) {
		n.add(o.GetNamespace(), o.GetName())
	}
}

func addEvery[T named](n names, inf cache.SharedIndexInformer) {
	for _, o := range inf.GetIndexer().List() {
		n.add(o.(T).GetNamespace(), o.(T).GetName())
	}
}
