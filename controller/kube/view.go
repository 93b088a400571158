package kube

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// view is the translate.Objects of one batch. A namespace's lists are read
// once, so everything in the batch sees the same ones.
type view struct {
	caches    *caches
	good      *lastGood
	cfg       *translate.Config
	selectors map[string]*selectors[*corev1.Service]
	peerSets  map[string]*peerSet // kept by the translator, by key
	policies  map[string][]*securityv1.AuthorizationPolicy
	peers     map[string][]*securityv1.PeerAuthentication

	serviceEntries  map[string][]*networkingv1.ServiceEntry
	workloadEntries map[string][]*networkingv1.WorkloadEntry
	networkPolicies map[string][]*netv1.NetworkPolicy
	gateways        map[string][]*gatewayv1.Gateway
	external        externalView
	networks        map[string]translate.Network // nil until somebody asks
}

var _ translate.Objects = (*view)(nil)

// lastGood holds, for objects whose newest version cannot be honoured, the
// version that stays in force; and for all others the version that would.
type lastGood struct {
	policies map[string]*securityv1.AuthorizationPolicy
	peers    map[string]*securityv1.PeerAuthentication
	gateways map[string]*gatewayv1.Gateway // the newest with an address
}

func newView(cs *caches, good *lastGood, cfg *translate.Config) *view {
	return &view{
		caches:    cs,
		good:      good,
		cfg:       cfg,
		selectors: make(map[string]*selectors[*corev1.Service]),
		policies:  make(map[string][]*securityv1.AuthorizationPolicy),
		peers:     make(map[string][]*securityv1.PeerAuthentication),

		serviceEntries:  make(map[string][]*networkingv1.ServiceEntry),
		workloadEntries: make(map[string][]*networkingv1.WorkloadEntry),
		networkPolicies: make(map[string][]*netv1.NetworkPolicy),
		gateways:        make(map[string][]*gatewayv1.Gateway),
		external:        newExternalView(),
	}
}

func (v *view) Namespace(name string) *corev1.Namespace {
	return get[*corev1.Namespace](v.caches.namespaces, name)
}

func (v *view) Node(name string) *corev1.Node { return get[*corev1.Node](v.caches.nodes, name) }

func (v *view) Service(namespace, name string) *corev1.Service {
	if !v.cfg.Looks(namespace, v) {
		return nil
	}
	return get[*corev1.Service](v.caches.services, namespace+"/"+name)
}

func (v *view) SelectingServices(namespace string, labels map[string]string) []*corev1.Service {
	s := v.selectors[namespace]
	if s == nil {
		s = newSelectors(list[*corev1.Service](v.caches.services, cache.NamespaceIndex, namespace),
			func(svc *corev1.Service) map[string]string { return svc.Spec.Selector })
		v.selectors[namespace] = s
	}
	return s.picking(labels)
}

func (v *view) SlicesTargeting(pod *corev1.Pod) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, s := range list[*discoveryv1.EndpointSlice](v.caches.slices, byPod, pod.Namespace+"/"+pod.Name) {
		if translate.Targets(s, pod) {
			out = append(out, s)
		}
	}
	return out
}

func (v *view) AuthorizationPolicies(namespace string) []*securityv1.AuthorizationPolicy {
	return memo(v.policies, namespace, func() []*securityv1.AuthorizationPolicy {
		return inForce(readOnly(v, list[*securityv1.AuthorizationPolicy](v.caches.policies, cache.NamespaceIndex, namespace)), v.good.policies)
	})
}

func (v *view) PeerAuthentications(namespace string) []*securityv1.PeerAuthentication {
	return memo(v.peers, namespace, func() []*securityv1.PeerAuthentication {
		return inForce(readOnly(v, list[*securityv1.PeerAuthentication](v.caches.peers, cache.NamespaceIndex, namespace)), v.good.peers)
	})
}

func (v *view) ServiceEntries(namespace string) []*networkingv1.ServiceEntry {
	return memo(v.serviceEntries, namespace, func() []*networkingv1.ServiceEntry {
		return readOnly(v, listOrAll[*networkingv1.ServiceEntry](v.caches.serviceEntries, namespace))
	})
}

func (v *view) WorkloadEntries(namespace string) []*networkingv1.WorkloadEntry {
	return memo(v.workloadEntries, namespace, func() []*networkingv1.WorkloadEntry {
		return readOnly(v, listOrAll[*networkingv1.WorkloadEntry](v.caches.workloadEntries, namespace))
	})
}

func (v *view) NetworkPolicies(namespace string) []*netv1.NetworkPolicy {
	return memo(v.networkPolicies, namespace, func() []*netv1.NetworkPolicy {
		return listOrAll[*netv1.NetworkPolicy](v.caches.networkPolicies, namespace)
	})
}

func (v *view) Gateways(namespace string) []*gatewayv1.Gateway {
	return memo(v.gateways, namespace, func() []*gatewayv1.Gateway {
		all := readOnly(v, listOrAll[*gatewayv1.Gateway](v.caches.gateways, namespace))
		for i := range all {
			all[i] = v.inEffect(all[i])
		}
		return all
	})
}

func (v *view) Gateway(namespace, name string) *gatewayv1.Gateway {
	gw := get[*gatewayv1.Gateway](v.caches.gateways, namespace+"/"+name)
	if gw == nil || !v.reads(gw) {
		return nil
	}
	return v.inEffect(gw)
}

func (v *view) GatewayClass(name string) *gatewayv1.GatewayClass {
	return get[*gatewayv1.GatewayClass](v.caches.gatewayClasses, name)
}

func (v *view) MeshConfig() *corev1.ConfigMap {
	return get[*corev1.ConfigMap](v.caches.meshConfig, v.caches.rootNamespace+"/"+translate.MeshConfigMap)
}

// reads reports whether o, which configures a mesh, is ours to read.
func (v *view) reads(o metav1.Object) bool { return v.cfg.Reads(o, v) }

// readOnly drops from a fresh list what is not.
func readOnly[T metav1.Object](v *view, all []T) []T {
	return slices.DeleteFunc(all, func(o T) bool { return !v.reads(o) })
}

// inForce puts the version that is in force in each object's place.
func inForce[T metav1.Object](all []T, good map[string]T) []T {
	for i, o := range all {
		if g, ok := good[o.GetNamespace()+"/"+o.GetName()]; ok && g.GetUID() == o.GetUID() {
			all[i] = g
		}
	}
	return all
}

func memo[T any](m map[string][]T, k string, read func() []T) []T {
	if l, ok := m[k]; ok {
		return l
	}
	l := read()
	m[k] = l
	return l
}

// get is the cached object of that name, nil when there is none.
func get[T any](inf cache.SharedIndexInformer, name string) T {
	obj, ok, _ := inf.GetIndexer().GetByKey(name) // its error is always nil
	if !ok {
		var none T
		return none
	}
	return obj.(T)
}

// listOrAll is a fresh list of namespace's cached objects, of all for "".
func listOrAll[T any](inf cache.SharedIndexInformer, namespace string) []T {
	if namespace != "" {
		return list[T](inf, cache.NamespaceIndex, namespace)
	}
	objs := inf.GetIndexer().List()
	out := make([]T, len(objs))
	for i, o := range objs {
		out[i] = o.(T)
	}
	return out
}

// list is a fresh list of the cached objects under an index value.
func list[T any](inf cache.SharedIndexInformer, index, value string) []T {
	objs, err := inf.GetIndexer().ByIndex(index, value)
	if err != nil { // only for an index that was never added
		panic("kube: " + err.Error())
	}
	out := make([]T, len(objs))
	for i, o := range objs {
		out[i] = o.(T)
	}
	return out
}
