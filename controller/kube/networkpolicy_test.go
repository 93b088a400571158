package kube

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
)

func newNetworkBench(t testing.TB) *translator {
	tr := newBench(t)
	tr.cfg.Translate.NetworkPolicies = true
	return tr
}

// Pods, namespaces and NetworkPolicies change at random, and the policies that
// are made again where a change touches them are those made of everything.
//
//ambit:feature networkpolicy-follows
func TestNetworkPoliciesIncrementally(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tr := newNetworkBench(t)
			rnd := rand.New(rand.NewPCG(seed, 7))
			made := 0
			for step := range 250 {
				for range 1 + rnd.IntN(3) {
					mutateNetwork(tr, rnd)
				}
				tr.batch(tr.dirty.drain())
				d, err := translate.All(tr.cfg.Translate, tr.set())
				if err != nil {
					t.Fatal(err)
				}
				compare(t, step, tr.store.Load(), d)
				if t.Failed() {
					return
				}
				if len(d.Policies) > 0 {
					made++
				}
				wantSets(t, tr)
			}
			if made < 60 {
				t.Errorf("in %d of 250 steps there was a policy", made)
			}
			for _, np := range all[*netv1.NetworkPolicy](tr.caches.networkPolicies) {
				tr.del(kindNetworkPolicy, np)
			}
			tr.batch(tr.dirty.drain())
			if len(tr.networks.groups)+len(tr.networks.sets) > 0 {
				t.Errorf("without NetworkPolicies %d groups and %d sets are kept", len(tr.networks.groups), len(tr.networks.sets))
			}
		})
	}
}

// wantSets wants every set to have users and to be what gathering it gives.
func wantSets(t *testing.T, tr *translator) {
	t.Helper()
	users := map[string]int{}
	for _, g := range tr.networks.groups {
		for _, k := range g.sets {
			users[k]++
		}
	}
	v := newView(tr.caches, &tr.good, &tr.cfg.Translate)
	for k, s := range tr.networks.sets {
		if users[k] == 0 || users[k] != s.users {
			t.Errorf("set %s: %d users, counted %d", k, users[k], s.users)
		}
		if want := v.gather(s.peers); fmt.Sprint(want.members) != fmt.Sprint(s.members) {
			t.Errorf("set %s: %v, want %v", k, s.members, want.members)
		}
	}
}

func mutateNetwork(tr *translator, rnd *rand.Rand) {
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	labels := func() map[string]string { return map[string]string{"app": pick("x", "y", "z")} }
	selector := func() *metav1.LabelSelector {
		if rnd.IntN(3) == 0 {
			return &metav1.LabelSelector{}
		}
		return &metav1.LabelSelector{MatchLabels: labels()}
	}
	ns := pick("a", "b", "c")
	var k kind
	var o metav1.Object
	switch rnd.IntN(8) {
	case 0:
		k, o = kindNamespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: labels()}}
	case 1, 2:
		np := &netv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pick("n1", "n2", "n3")}}
		np.Spec.PodSelector = *selector()
		for range rnd.IntN(3) {
			r := netv1.NetworkPolicyIngressRule{}
			for range rnd.IntN(3) {
				p := netv1.NetworkPolicyPeer{PodSelector: selector()}
				switch rnd.IntN(3) {
				case 0:
					p.NamespaceSelector = selector()
				case 1:
					p = netv1.NetworkPolicyPeer{NamespaceSelector: selector()}
				}
				r.From = append(r.From, p)
			}
			if rnd.IntN(2) == 0 {
				port := intstr.Parse(pick("80", "main"))
				r.Ports = append(r.Ports, netv1.NetworkPolicyPort{Port: &port})
			}
			np.Spec.Ingress = append(np.Spec.Ingress, r)
		}
		k, o = kindNetworkPolicy, np
	default:
		name := pick("p1", "p2", "p3", "p4")
		p := pod(ns, name, labels(), int(ns[0])*16+int(name[1])+256*rnd.IntN(2))
		if rnd.IntN(4) > 0 {
			p.Annotations = map[string]string{translate.RedirectionAnnotation: translate.RedirectionEnabled}
		}
		p.Spec.HostNetwork = rnd.IntN(10) == 0
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "main", ContainerPort: int32(80 + rnd.IntN(2))}}}}
		p.Status.Phase = corev1.PodPhase(pick("Running", "Running", "Running", "Failed"))
		k, o = kindPod, p
	}
	if rnd.IntN(4) == 0 {
		tr.del(k, o)
	} else {
		tr.put(k, o)
	}
}

// Only what a pod's change touches is made again: not a policy that does not
// mean the pod, and nothing where there are no NetworkPolicies.
//
//ambit:feature networkpolicy-follows
func TestNetworkPolicyIsLeftAlone(t *testing.T) {
	tr := newNetworkBench(t)
	captured := func(name string, labels map[string]string, n int) *corev1.Pod {
		p := pod("a", name, labels, n)
		p.Annotations = map[string]string{translate.RedirectionAnnotation: translate.RedirectionEnabled}
		return p
	}
	tr.put(kindPod, captured("server", map[string]string{"app": "server"}, 1))
	tr.put(kindPod, captured("client", map[string]string{"app": "client"}, 2))
	tr.batch(tr.dirty.drain())
	if len(tr.networks.groups)+len(tr.networks.sets) > 0 {
		t.Fatal("something is kept without NetworkPolicies")
	}
	np := &netv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "np"}, Spec: netv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
		Ingress:     []netv1.NetworkPolicyIngressRule{{From: []netv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}}}},
	}}
	tr.put(kindNetworkPolicy, np)
	tr.batch(tr.dirty.drain())
	policy := func() *mesh.Policy { return tr.store.Load().Policy("a/" + mesh.NetworkPolicyName([]string{"np"}, "")) }
	first := policy()
	if first == nil {
		t.Fatal("no policy")
	}
	tr.put(kindPod, captured("other", map[string]string{"app": "other"}, 3))
	tr.batch(tr.dirty.drain())
	if policy() != first {
		t.Error("a pod that is no peer had the policy made again")
	}
	tr.put(kindPod, captured("client-2", map[string]string{"app": "client"}, 4))
	tr.batch(tr.dirty.drain())
	if policy() == first {
		t.Error("a new peer is not in the policy")
	}
}

// BenchmarkNetworkPolicyPeer is one peer's change in a namespace of 1 000 pods
// under 50 NetworkPolicies, all of which mean it.
func BenchmarkNetworkPolicyPeer(b *testing.B) {
	tr := newNetworkBench(b)
	app := map[string]string{"app": "x"}
	for i := range 1000 {
		p := pod("a", fmt.Sprint("p", i), map[string]string{"app": "x", "n": fmt.Sprint(i % 50)}, i)
		p.Annotations = map[string]string{translate.RedirectionAnnotation: translate.RedirectionEnabled}
		tr.put(kindPod, p)
	}
	for i := range 50 {
		tr.put(kindNetworkPolicy, &netv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprint("np", i)}, Spec: netv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"n": fmt.Sprint(i)}},
			Ingress:     []netv1.NetworkPolicyIngressRule{{From: []netv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: app}}}}}}})
	}
	tr.batch(tr.dirty.drain())
	n := 0
	for b.Loop() {
		n++
		tr.put(kindPod, pod("a", "peer", app, 5000+n%2*7))
		tr.batch(tr.dirty.drain())
	}
}
