package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	netv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayinformers "sigs.k8s.io/gateway-api/pkg/client/informers/externalversions"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// Names of the indices beside the namespace one.
const (
	byNode    = "node"    // pods: node name
	byAccount = "account" // pods: node/namespace/service account
	byService = "service" // slices: namespace/service name
	byPod     = "pod"     // slices: namespace/pod name of each target
)

// caches are the local copies of what the controller watches.
type caches struct {
	namespaces, nodes, pods, services, slices cache.SharedIndexInformer
	networkPolicies, meshConfig               cache.SharedIndexInformer
	policies, peers                           cache.SharedIndexInformer
	serviceEntries, workloadEntries           cache.SharedIndexInformer
	gateways, gatewayClasses                  cache.SharedIndexInformer

	core          informers.SharedInformerFactory
	meshFactory   informers.SharedInformerFactory // meshConfig alone
	groups        []*apiGroup
	rootNamespace string
}

func newCaches(c *Config) (*caches, error) {
	core := informers.NewSharedInformerFactoryWithOptions(c.Client, 0, informers.WithTransform(trim))
	// One object is watched, which RBAC can be limited to.
	meshFactory := informers.NewSharedInformerFactoryWithOptions(c.Client, 0, informers.WithTransform(trim),
		informers.WithNamespace(c.Translate.RootNamespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=" + translate.MeshConfigMap }))
	// A factory starts all its informers, so each group of types has its own.
	security := dynamicinformer.NewDynamicSharedInformerFactory(c.Dynamic, 0)
	networking := dynamicinformer.NewDynamicSharedInformerFactory(c.Dynamic, 0)
	gateway := gatewayinformers.NewSharedInformerFactoryWithOptions(c.Gateway, 0, gatewayinformers.WithTransform(trim))
	cs := &caches{
		core:        core,
		meshFactory: meshFactory,
		groups: []*apiGroup{
			{version: "security.istio.io/v1", resources: []string{"authorizationpolicies", "peerauthentications"},
				informers: security, without: "no policy is enforced"},
			{version: "networking.istio.io/v1", resources: []string{"serviceentries", "workloadentries"},
				informers: networking, without: "services outside the cluster are not known"},
			{version: "gateway.networking.k8s.io/v1", resources: []string{"gateways", "gatewayclasses"},
				informers: gateway, without: "there are no waypoints"},
		},
		rootNamespace: c.Translate.RootNamespace,

		namespaces: core.Core().V1().Namespaces().Informer(),
		nodes:      core.Core().V1().Nodes().Informer(),
		pods:       core.Core().V1().Pods().Informer(),
		services:   core.Core().V1().Services().Informer(),
		slices:     core.Discovery().V1().EndpointSlices().Informer(),

		networkPolicies: core.Networking().V1().NetworkPolicies().Informer(),
		meshConfig:      meshFactory.Core().V1().ConfigMaps().Informer(),
		gateways:        gateway.Gateway().V1().Gateways().Informer(),
		gatewayClasses:  gateway.Gateway().V1().GatewayClasses().Informer(),
	}
	var err [4]error
	cs.policies, err[0] = typed[securityv1.AuthorizationPolicy](security, securityv1.SchemeGroupVersion.WithResource("authorizationpolicies"), c.Logger)
	cs.peers, err[1] = typed[securityv1.PeerAuthentication](security, securityv1.SchemeGroupVersion.WithResource("peerauthentications"), c.Logger)
	cs.serviceEntries, err[2] = typed[networkingv1.ServiceEntry](networking, networkingv1.SchemeGroupVersion.WithResource("serviceentries"), c.Logger)
	cs.workloadEntries, err[3] = typed[networkingv1.WorkloadEntry](networking, networkingv1.SchemeGroupVersion.WithResource("workloadentries"), c.Logger)
	if err := errors.Join(err[:]...); err != nil {
		return nil, fmt.Errorf("watch Istio's types: %w", err)
	}
	if err := cs.pods.AddIndexers(cache.Indexers{byNode: podNode, byAccount: podAccount, byGateway: labelledGateway}); err != nil {
		return nil, fmt.Errorf("index pods: %w", err)
	}
	if err := cs.slices.AddIndexers(cache.Indexers{byService: sliceServiceKey, byPod: slicePods}); err != nil {
		return nil, fmt.Errorf("index endpoint slices: %w", err)
	}
	if err := cs.addExternalIndices(); err != nil {
		return nil, fmt.Errorf("index entries: %w", err)
	}
	if err := cs.services.AddIndexers(cache.Indexers{byNetwork: networkService, byGateway: labelledGateway}); err != nil {
		return nil, fmt.Errorf("index services: %w", err)
	}
	return cs, nil
}

// trim drops what nobody here reads and what makes up most of an object: in a
// large cluster the caches are the controller's memory. It runs before anybody
// else sees the object.
func trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		managers := m.GetManagedFields()
		m.SetManagedFields(nil)
		if se, ok := obj.(*networkingv1.ServiceEntry); ok {
			se.ManagedFields = addressManagers(managers)
		}
		if a := m.GetAnnotations(); a[corev1.LastAppliedConfigAnnotation] != "" { // the whole object once more
			delete(a, corev1.LastAppliedConfigAnnotation)
			m.SetAnnotations(a)
		}
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		o.Spec = corev1.PodSpec{
			NodeName:           o.Spec.NodeName,
			ServiceAccountName: o.Spec.ServiceAccountName,
			HostNetwork:        o.Spec.HostNetwork,
			Containers:         portsOnly(o.Spec.Containers),
			InitContainers:     portsOnly(o.Spec.InitContainers),
		}
		o.Status = corev1.PodStatus{
			Phase:      o.Status.Phase,
			Conditions: o.Status.Conditions,
			PodIP:      o.Status.PodIP,
			PodIPs:     o.Status.PodIPs,
		}
	case *corev1.Node:
		o.Spec, o.Status = corev1.NodeSpec{PodCIDRs: o.Spec.PodCIDRs}, corev1.NodeStatus{Conditions: readiness(o.Status.Conditions)}
	}
	return obj, nil
}

// readiness keeps of a node's conditions what decides about its pods.
func readiness(in []corev1.NodeCondition) []corev1.NodeCondition {
	for i := range in {
		if in[i].Type == corev1.NodeReady {
			return []corev1.NodeCondition{{Type: in[i].Type, Status: in[i].Status}}
		}
	}
	return nil
}

func portsOnly(in []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, len(in))
	for i := range in {
		out[i] = corev1.Container{Name: in[i].Name, Ports: in[i].Ports, RestartPolicy: in[i].RestartPolicy}
	}
	return out
}

func podNode(obj any) ([]string, error) {
	if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
		return []string{pod.Spec.NodeName}, nil
	}
	return nil, nil
}

func podAccount(obj any) ([]string, error) {
	if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
		return []string{accountKey(pod.Spec.NodeName, pod.Namespace, account(pod))}, nil
	}
	return nil, nil
}

func accountKey(node, namespace, account string) string {
	return node + "/" + namespace + "/" + account
}

func account(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return pod.Spec.ServiceAccountName
}

func sliceServiceKey(obj any) ([]string, error) {
	if s, ok := obj.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelServiceName] != "" {
		return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
	}
	return nil, nil
}

func slicePods(obj any) ([]string, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, nil
	}
	var keys []string
	for i := range s.Endpoints {
		if r := s.Endpoints[i].TargetRef; r != nil && r.Kind == "Pod" {
			keys = append(keys, s.Namespace+"/"+r.Name)
		}
	}
	return keys, nil
}

// record makes inf report changes of kind k to dirty, except updates that same
// says change nothing a translation reads. The result says whether everything
// inf found at its start has been reported: the informer itself is synced a
// moment before that, because it calls its handlers from another goroutine.
func record[T metav1.Object](inf cache.SharedIndexInformer, k kind, dirty *dirtySet, same func(old, now T) bool) (cache.InformerSynced, error) {
	add := func(obj any, e event) {
		dirty.events[k][e].Add(1)
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if o, ok := obj.(T); ok {
			dirty.add(key{k, o.GetNamespace(), o.GetName()})
		}
	}
	reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { add(obj, added) },
		DeleteFunc: func(obj any) { add(obj, deleted) },
		UpdateFunc: func(old, now any) {
			o, ok1 := old.(T)
			n, ok2 := now.(T)
			if ok1 && ok2 && (o.GetResourceVersion() == n.GetResourceVersion() || same(o, n)) {
				dirty.events[k][unchanged].Add(1)
				return
			}
			add(now, updated)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", k, err)
	}
	return reg.HasSynced, nil
}

// recordAll returns, of the types every cluster has, whether all that was there
// at the start is in the dirty set; the other types' groups hold theirs.
func (cs *caches) recordAll(dirty *dirtySet) (reported []cache.InformerSynced, err error) {
	var errs []error
	into := func(list *[]cache.InformerSynced) func(cache.InformerSynced, error) {
		return func(synced cache.InformerSynced, err error) {
			*list = append(*list, synced)
			errs = append(errs, err)
		}
	}
	core, policies := into(&reported), into(&cs.groups[0].reported)
	networking, gateway := into(&cs.groups[1].reported), into(&cs.groups[2].reported)
	core(record(cs.namespaces, kindNamespace, dirty, func(o, n *corev1.Namespace) bool {
		return maps.Equal(o.Labels, n.Labels) && maps.Equal(o.Annotations, n.Annotations)
	}))
	// A kubelet writes its node's status all the time; labels, ranges and
	// readiness count.
	core(record(cs.nodes, kindNode, dirty, func(o, n *corev1.Node) bool {
		return maps.Equal(o.Labels, n.Labels) && slices.Equal(o.Spec.PodCIDRs, n.Spec.PodCIDRs) && slices.EqualFunc(o.Status.Conditions, n.Status.Conditions, func(a, b corev1.NodeCondition) bool {
			return a.Type == b.Type && a.Status == b.Status
		})
	}))
	core(record(cs.pods, kindPod, dirty, func(_, _ *corev1.Pod) bool { return false }))
	core(record(cs.services, kindService, dirty, func(_, _ *corev1.Service) bool { return false }))
	core(record(cs.slices, kindSlice, dirty, func(_, _ *discoveryv1.EndpointSlice) bool { return false }))
	policies(record(cs.policies, kindPolicy, dirty, func(o, n *securityv1.AuthorizationPolicy) bool {
		return o.UID == n.UID && o.Generation == n.Generation && maps.Equal(o.Annotations, n.Annotations)
	}))
	policies(record(cs.peers, kindPeer, dirty, func(o, n *securityv1.PeerAuthentication) bool {
		return o.UID == n.UID && o.Generation == n.Generation
	}))
	core(record(cs.networkPolicies, kindNetworkPolicy, dirty, func(o, n *netv1.NetworkPolicy) bool {
		return o.UID == n.UID && o.Generation == n.Generation
	}))
	core(record(cs.meshConfig, kindMeshConfig, dirty, func(o, n *corev1.ConfigMap) bool { return maps.Equal(o.Data, n.Data) }))
	networking(record(cs.serviceEntries, kindServiceEntry, dirty, func(_, _ *networkingv1.ServiceEntry) bool { return false }))
	networking(record(cs.workloadEntries, kindWorkloadEntry, dirty, func(_, _ *networkingv1.WorkloadEntry) bool { return false }))
	gateway(record(cs.gateways, kindGateway, dirty, func(_, _ *gatewayv1.Gateway) bool { return false }))
	gateway(record(cs.gatewayClasses, kindGatewayClass, dirty, func(o, n *gatewayv1.GatewayClass) bool {
		return o.UID == n.UID && o.Generation == n.Generation
	}))
	return reported, errors.Join(errs...)
}

// awaitSync waits until everything the API server had has arrived.
func awaitSync(ctx context.Context, synced ...cache.InformerSynced) error {
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return fmt.Errorf("wait for the API server's objects: %w", context.Cause(ctx))
	}
	return nil
}
