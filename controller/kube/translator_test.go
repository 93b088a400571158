package kube

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	"istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	istioclient "istio.io/client-go/pkg/clientset/versioned"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
)

// newBench is a translator over caches that no watch fills; the clients behind
// them are never used.
func newBench(t testing.TB) *translator {
	t.Helper()
	rc := &rest.Config{Host: "http://192.0.2.1"}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	istio, err := istioclient.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := gatewayclient.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := dynamic.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &Config{
		Client: client, Istio: istio, Gateway: gateway, Dynamic: reader, Enrolment: translate.DefaultEnrolment(),
		Translate: translate.Config{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"},
		Namespace: "ambit-system", Replica: "test", Roots: ca.NewKeyring(0),
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	cs, err := newCaches(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return newTranslator(cfg, cs, newDirtySet(), newMetrics(cfg.Registerer, func() int { return 0 }), func(policyVerdict) {})
}

func (t *translator) informer(k kind) cache.SharedIndexInformer {
	return map[kind]cache.SharedIndexInformer{
		kindNamespace: t.caches.namespaces, kindNode: t.caches.nodes, kindPod: t.caches.pods, kindService: t.caches.services,
		kindSlice: t.caches.slices, kindPolicy: t.caches.policies, kindPeer: t.caches.peers,
		kindServiceEntry: t.caches.serviceEntries, kindWorkloadEntry: t.caches.workloadEntries, kindGateway: t.caches.gateways,
		kindGatewayClass: t.caches.gatewayClasses, kindNetworkPolicy: t.caches.networkPolicies, kindMeshConfig: t.caches.meshConfig,
	}[k]
}

// put does what a watch event does.
func (t *translator) put(k kind, o metav1.Object) {
	if err := t.informer(k).GetIndexer().Update(o); err != nil {
		panic(err)
	}
	t.dirty.add(key{k, o.GetNamespace(), o.GetName()})
}

func (t *translator) del(k kind, o metav1.Object) {
	if err := t.informer(k).GetIndexer().Delete(o); err != nil {
		panic(err)
	}
	t.dirty.add(key{k, o.GetNamespace(), o.GetName()})
}

func all[T any](inf cache.SharedIndexInformer) []T {
	var out []T
	for _, o := range inf.GetIndexer().List() {
		out = append(out, o.(T))
	}
	return out
}

// gatewaysInEffect are all Gateways, read or not, with the address each had.
func (t *translator) gatewaysInEffect() []*gatewayv1.Gateway {
	v := newView(t.caches, &t.good, &t.cfg.Translate)
	out := all[*gatewayv1.Gateway](t.caches.gateways)
	for i := range out {
		out[i] = v.inEffect(out[i])
	}
	return out
}

func (t *translator) set() *translate.Set {
	return &translate.Set{
		NamespaceList: all[*corev1.Namespace](t.caches.namespaces),
		NodeList:      all[*corev1.Node](t.caches.nodes),
		PodList:       all[*corev1.Pod](t.caches.pods),
		ServiceList:   all[*corev1.Service](t.caches.services),
		SliceList:     all[*discoveryv1.EndpointSlice](t.caches.slices),
		PolicyList:    all[*securityv1.AuthorizationPolicy](t.caches.policies),
		PeerList:      all[*securityv1.PeerAuthentication](t.caches.peers),

		ServiceEntryList:  all[*networkingv1.ServiceEntry](t.caches.serviceEntries),
		WorkloadEntryList: all[*networkingv1.WorkloadEntry](t.caches.workloadEntries),
		NetworkPolicyList: all[*netv1.NetworkPolicy](t.caches.networkPolicies),
		GatewayList:       t.gatewaysInEffect(),
		GatewayClassList:  all[*gatewayv1.GatewayClass](t.caches.gatewayClasses),
		MeshConfigObject:  newView(t.caches, &t.good, &t.cfg.Translate).MeshConfig(),
	}
}

// TestIncrementalAgainstAll changes random objects and compares the snapshot,
// which only ever translates what a change touches, with a translation of
// everything.
//
//ambit:feature binding-incremental workload-incremental workload-address-reuse workload-external-hosts policy-behind-waypoint
func TestIncrementalAgainstAll(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tr := newBench(t)
			rnd := rand.New(rand.NewPCG(seed, 1))
			for step := range 400 {
				for range 1 + rnd.IntN(4) {
					mutate(tr, rnd)
				}
				before := tr.store.Load().Version()
				tr.batch(tr.dirty.drain())
				if v := tr.store.Load().Version(); v > before+1 {
					t.Fatalf("step %d: one batch made %d snapshots", step, v-before)
				}
				// Settings that cannot be read leave the last good ones.
				d, err := translate.All(tr.cfg.Translate, tr.set())
				if err != nil && !strings.Contains(err.Error(), "data.mesh") {
					t.Fatal(err)
				}
				compare(t, step, tr.store.Load(), d)
				if t.Failed() {
					return
				}
			}
		})
	}
}

func compare(t *testing.T, step int, s *mesh.Snapshot, d mesh.Delta) {
	t.Helper()
	want, got := map[string]any{}, map[string]any{}
	for _, w := range d.Workloads {
		want["workload "+w.UID] = w
	}
	for _, v := range d.Services {
		want["service "+v.Key()] = v
	}
	for _, p := range d.Policies {
		want["policy "+p.Key()] = p
	}
	for w := range s.AllWorkloads() {
		got["workload "+w.UID] = w
	}
	for v := range s.AllServices() {
		got["service "+v.Key()] = v
	}
	for p := range s.AllPolicies() {
		got["policy "+p.Key()] = p
	}
	for k, w := range want {
		if t.Failed() {
			return
		}
		if !reflect.DeepEqual(got[k], w) {
			t.Errorf("step %d: %s\n got  %+v\n want %+v", step, k, got[k], w)
		}
	}
	for k := range got {
		if want[k] == nil {
			t.Errorf("step %d: %s should be gone", step, k)
		}
	}
}

// mutate makes, changes or removes one object of a small world, in which
// everything collides with everything.
func mutate(tr *translator, rnd *rand.Rand) {
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	ns := pick("a", "b", "istio-system")
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{
			Namespace: ns, Name: name, UID: types.UID(pick("1", "2")),
			CreationTimestamp: metav1.NewTime(time.Unix(int64(rnd.IntN(3)), 0)),
			Labels:            map[string]string{"app": pick("x", "y", "z")},
		}
	}
	revised := func(m metav1.ObjectMeta) metav1.ObjectMeta {
		if rnd.IntN(6) == 0 {
			m.Labels[translate.RevisionLabel] = pick("other", "default")
		}
		return m
	}
	selector := func() *typev1beta1.WorkloadSelector {
		if rnd.IntN(3) == 0 {
			return nil
		}
		return &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": pick("x", "y")}}
	}
	mode := func() *v1beta1.PeerAuthentication_MutualTLS {
		return &v1beta1.PeerAuthentication_MutualTLS{Mode: v1beta1.PeerAuthentication_MutualTLS_Mode(rnd.IntN(4))}
	}
	k := []kind{
		kindNamespace, kindNode, kindPod, kindPod, kindService, kindService, kindSlice, kindPolicy, kindPeer,
		kindServiceEntry, kindServiceEntry, kindWorkloadEntry, kindGateway, kindGateway, kindGatewayClass, kindMeshConfig,
	}[rnd.IntN(16)]
	// Most objects are of no revision and ask for no waypoint.
	waypointLabels := func(m map[string]string) map[string]string {
		for name, values := range map[string][]string{
			translate.UseWaypointLabel:          {"", "", "w1", "w2", "none"},
			translate.UseWaypointNamespaceLabel: {"", "", "", "a", "b"},
			"istio.io/use-waypoint-canary":      {"", "", "w1", "w2"},
			translate.RequireWaypointLabel:      {"", "", "true", "false"},
			translate.IngressUseWaypointLabel:   {"", "", "true"},
			translate.GatewayNameLabel:          {"", "", "", "", "", "w1", "w2"},
			translate.RevisionLabel:             {"", "", "", "", "", "", "", "other"},
		} {
			if v := pick(values...); v != "" {
				m[name] = v
			}
		}
		return m
	}
	var o metav1.Object
	switch k {
	case kindNamespace:
		o = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns,
			Labels:      waypointLabels(map[string]string{"topology.istio.io/network": pick("", "", "n1"), "env": pick("prod", "test")}),
			Annotations: map[string]string{"networking.istio.io/traffic-distribution": pick("", "PreferClose"), "istio.io/use-waypoint-canary-weight": pick("", "20", "many")}}}
	case kindNode:
		o = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: pick("n1", "n2"), Labels: map[string]string{corev1.LabelTopologyZone: pick("z1", "z2")}},
			Spec:   corev1.NodeSpec{PodCIDRs: []string{pick("10.0.0.1/32", "10.0.0.2/32", "10.9.0.0/16")}},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionStatus(pick("True", "True", "Unknown"))}}}}
	case kindPod:
		m := meta(pick("p1", "p2", "p3", "p4"))
		m.Labels = waypointLabels(m.Labels)
		o = &corev1.Pod{ObjectMeta: m,
			Spec: corev1.PodSpec{NodeName: pick("n1", "n2"), ServiceAccountName: pick("", "sa1"), Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "main", ContainerPort: int32(1 + rnd.IntN(3))}}}}},
			Status: corev1.PodStatus{Phase: corev1.PodPhase(pick("Running", "Running", "Succeeded")), PodIP: pick("10.0.0.1", "10.0.0.2", ""),
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionStatus(pick("True", "False"))}}}}
	case kindService:
		m := meta(pick("s1", "s2"))
		m.Labels = waypointLabels(m.Labels)
		if rnd.IntN(6) == 0 {
			m.Labels[translate.NetworkLabel] = pick("n1", "n2")
		}
		svc := &corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{
			ClusterIP: pick("10.1.0.1", "None"), Type: corev1.ServiceType(pick("ClusterIP", "ClusterIP", "ExternalName")),
			Ports: []corev1.ServicePort{{Name: "http", Port: []int32{80, 81, 15008}[rnd.IntN(3)]}}}}
		if rnd.IntN(2) == 0 {
			svc.Spec.Selector = map[string]string{"app": pick("x", "y")}
		}
		o = svc
	case kindSlice:
		m, port, name := meta(pick("e1", "e2")), int32(1+rnd.IntN(2)), "http"
		m.Labels = map[string]string{discoveryv1.LabelServiceName: pick("s1", "s2", "s3")}
		o = &discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{pick("172.16.0.1", "172.16.0.2")}},
				{Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: pick("p1", "p2", "p3"), UID: types.UID(pick("1", "2"))}},
			}}
	case kindPolicy:
		o = &securityv1.AuthorizationPolicy{ObjectMeta: revised(meta(pick("q1", "q2"))), Spec: v1beta1.AuthorizationPolicy{
			Selector: selector(), Action: v1beta1.AuthorizationPolicy_Action(rnd.IntN(3)),
			Rules: []*v1beta1.Rule{{To: []*v1beta1.Rule_To{{Operation: &v1beta1.Operation{Ports: []string{pick("1", "2")}, Methods: [][]string{nil, {"GET"}}[rnd.IntN(2)]}}}}}}}
	case kindPeer:
		o = &securityv1.PeerAuthentication{ObjectMeta: revised(meta(pick("q1", "q2"))), Spec: v1beta1.PeerAuthentication{
			Selector: selector(), Mtls: mode(), PortLevelMtls: map[uint32]*v1beta1.PeerAuthentication_MutualTLS{uint32(1 + rnd.IntN(2)): mode()}}}
	}
	switch k {
	case kindServiceEntry:
		m := revised(meta(pick("x1", "x2", "x3")))
		m.Labels = waypointLabels(m.Labels)
		o = randomServiceEntry(rnd, m)
	case kindWorkloadEntry:
		m := revised(meta(pick("w1", "w2", "w3")))
		m.Labels = waypointLabels(m.Labels)
		o = randomWorkloadEntry(rnd, m)
	case kindGateway:
		o = randomGateway(rnd, revised(meta(pick("w1", "w2", "far"))), pick)
	case kindGatewayClass:
		o = &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: pick("c1", "c2"),
			Labels:      map[string]string{translate.WaypointForLabel: pick("", "all", "workload")},
			Annotations: map[string]string{"ambient.istio.io/waypoint-inbound-binding": pick("PROXY/15088", "NONE")}}}
	case kindMeshConfig:
		o = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: translate.MeshConfigMap},
			Data: map[string]string{"mesh": pick("", "discoverySelectors: [{matchLabels: {env: prod}}]", "discoverySelectors: 7", "trustDomainAliases: [old]")}}
	}
	if rnd.IntN(4) == 0 {
		tr.del(k, o)
	} else {
		tr.put(k, o)
	}
}

func randomGateway(rnd *rand.Rand, m metav1.ObjectMeta, pick func(...string) string) *gatewayv1.Gateway {
	gw := &gatewayv1.Gateway{ObjectMeta: m, Spec: gatewayv1.GatewaySpec{GatewayClassName: gatewayv1.ObjectName(pick("c1", "c2"))}}
	hostname, from := gatewayv1.HostnameAddressType, gatewayv1.FromNamespaces(pick("Same", "All", "Selector"))
	l := gatewayv1.Listener{Name: "mesh", Port: 15008, Protocol: "HBONE", AllowedRoutes: &gatewayv1.AllowedRoutes{
		Namespaces: &gatewayv1.RouteNamespaces{From: &from, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}}}}
	gw.Spec.Listeners = []gatewayv1.Listener{l}
	gw.Labels[translate.WaypointForLabel] = pick("", "service", "workload", "all", "none")
	switch rnd.IntN(4) {
	case 0:
	case 1:
		gw.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Value: pick("10.1.0.7", "10.1.0.8")}}
	default:
		gw.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Value: "10.1.0.7"}, {Type: &hostname, Value: m.Name + "." + m.Namespace + ".svc.cluster.local"}}
	}
	if m.Name == "far" {
		gw.Labels[translate.NetworkLabel] = pick("n1", "n2")
		gw.Spec.GatewayClassName = "istio-remote"
		gw.Spec.Addresses = []gatewayv1.GatewaySpecAddress{{Value: pick("192.0.2.1", "192.0.2.2", "far.example")}}
	}
	return gw
}

// fill makes a cluster of that many services with ten pods each.
func fill(tr *translator, services int) {
	for i := range services {
		ns, app := fmt.Sprintf("ns%d", i/50), map[string]string{"app": fmt.Sprint("app", i)}
		tr.put(kindService, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("svc", i)}, Spec: corev1.ServiceSpec{
			ClusterIP: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String(), Selector: app, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}})
		for j := range 10 {
			tr.put(kindPod, pod(ns, fmt.Sprintf("pod%d-%d", i, j), app, i*10+j))
		}
	}
	tr.batch(tr.dirty.drain())
}

func pod(ns, name string, labels map[string]string, n int) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels},
		Spec:   corev1.PodSpec{NodeName: fmt.Sprint("node", n%1000), ServiceAccountName: "sa"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}).String()}}
}

// BenchmarkFill is a start in a cluster of 5 000 services and 50 000 pods.
func BenchmarkFill(b *testing.B) {
	for b.Loop() {
		fill(newBench(b), 5000)
	}
}

// BenchmarkPodChange is one pod's change in that cluster, to the new snapshot.
func BenchmarkPodChange(b *testing.B) {
	tr := newBench(b)
	fill(tr, 5000)
	n := 0
	for b.Loop() {
		n++
		p := pod("ns3", "pod170-3", map[string]string{"app": "app170"}, n)
		tr.put(kindPod, p)
		tr.batch(tr.dirty.drain())
	}
}

// BenchmarkPolicyChange is a namespace's selector policy in that cluster; 500
// pods are in the namespace, 10 are selected.
func BenchmarkPolicyChange(b *testing.B) {
	tr := newBench(b)
	fill(tr, 5000)
	n := 0
	for b.Loop() {
		n++
		tr.put(kindPolicy, &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns3", Name: "p", Generation: int64(n)}, Spec: v1beta1.AuthorizationPolicy{
			Selector: &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": "app170"}},
			Rules:    []*v1beta1.Rule{{To: []*v1beta1.Rule_To{{Operation: &v1beta1.Operation{Ports: []string{fmt.Sprint(1 + n%60000)}}}}}}}})
		tr.batch(tr.dirty.drain())
	}
}
