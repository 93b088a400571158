package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// fillExternal makes namespaces with a service entry each that picks two of
// their ten pods and two of their four workload entries, under a host of its
// own and one that all namespaces share.
func fillExternal(tr *translator, namespaces int) {
	for i := range namespaces {
		ns := fmt.Sprint("ns", i)
		tr.put(kindServiceEntry, sharing(ns, 80))
		for j := range 10 {
			p := pod(ns, fmt.Sprint("pod", j), map[string]string{"app": fmt.Sprint("app", j/2)}, i*10+j)
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			tr.put(kindPod, p)
		}
		for j := range 4 {
			tr.put(kindWorkloadEntry, &networkingv1.WorkloadEntry{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("we", j), Labels: map[string]string{"app": fmt.Sprint("app", j/2)}},
				Spec:       networking.WorkloadEntry{Address: fmt.Sprintf("172.%d.%d.%d", 16+i>>8, i&255, j)},
			})
		}
	}
}

func sharing(ns string, port uint32) *networkingv1.ServiceEntry {
	return &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "entry"}, Spec: networking.ServiceEntry{
		Hosts: []string{"shared.example.com", ns + ".example.com"}, Resolution: networking.ServiceEntry_STATIC,
		Ports:            []*networking.ServicePort{{Number: port, Name: "http"}},
		WorkloadSelector: &networking.WorkloadSelector{Labels: map[string]string{"app": "app0"}},
	}}
}

// One change touches as much in a large cluster as in a small one, though every
// namespace has an entry for the same host; and a start touches each entry
// once.
//
//ambit:feature workload-growth
func TestExternalGrowth(t *testing.T) {
	type cost struct{ entries, pods, workloads int }
	var first []cost
	for _, namespaces := range []int{20, 200} {
		tr := newBench(t)
		entries := 0
		tr.external.addresses = func(string, []string, bool) { entries++ }
		fillExternal(tr, namespaces)
		tr.batch(tr.dirty.drain())
		if entries != namespaces {
			t.Fatalf("%d entries are translated %d times", namespaces, entries)
		}
		if e := tr.store.Load().Endpoints("ns7/shared.example.com"); len(e) != 4 {
			t.Fatalf("ns7's entry has %d endpoints, want two pods and two workload entries", len(e))
		}
		var costs []cost
		// One in the middle, and the one that is canonical: the first by name.
		for _, ns := range []string{"ns7", "ns0"} {
			tr.put(kindServiceEntry, sharing(ns, 81))
			changed := tr.dirty.drain()
			a := tr.expand(newView(tr.caches, &tr.good, &tr.cfg.Translate), changed)
			entries = 0
			tr.batch(changed)
			costs = append(costs, cost{entries, len(a.pods), len(a.entries)})
		}
		tr.del(kindServiceEntry, sharing("ns0", 81))
		entries = 0
		tr.batch(tr.dirty.drain())
		costs = append(costs, cost{entries: entries})
		if s := tr.store.Load().Service("ns1/shared.example.com"); s == nil || !s.Canonical {
			t.Error("nobody has become canonical")
		}
		t.Logf("%d namespaces: %+v", namespaces, costs)
		if first == nil {
			first = costs
			if c := costs[0]; c.entries > 2 || c.pods != 2 || c.workloads != 2 {
				t.Errorf("one entry's change costs %+v", c)
			}
		}
		for i := range costs {
			if costs[i] != first[i] {
				t.Errorf("%d namespaces: change %d costs %+v, with 20 it was %+v", namespaces, i, costs[i], first[i])
			}
		}
	}
}

// BenchmarkExternalStart is the first translation of a cluster in which 2 000
// namespaces have an entry of one host, 20 000 pods and 8 000 workload entries.
func BenchmarkExternalStart(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		tr := newBench(b)
		fillExternal(tr, 2000)
		b.StartTimer()
		tr.batch(tr.dirty.drain())
	}
}

// BenchmarkExternalChange is one of these entries' change.
func BenchmarkExternalChange(b *testing.B) {
	tr := newBench(b)
	fillExternal(tr, 2000)
	tr.batch(tr.dirty.drain())
	n := uint32(0)
	for b.Loop() {
		n++
		tr.put(kindServiceEntry, sharing("ns7", 1+n%60000))
		tr.batch(tr.dirty.drain())
	}
}

// countingView counts who goes through all Gateways.
type countingView struct {
	*view
	listed int
}

func (v *countingView) Gateways(namespace string) []*gatewayv1.Gateway {
	if namespace == "" {
		v.listed++
	}
	return v.view.Gateways(namespace)
}

// The gateways of other networks are looked for once in a batch, however many
// endpoints are behind them.
func TestNetworksOncePerBatch(t *testing.T) {
	tr := newBench(t)
	address := gatewayv1.IPAddressType
	tr.put(kindGateway, &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "east", Labels: map[string]string{translate.NetworkLabel: "east"}},
		Spec: gatewayv1.GatewaySpec{GatewayClassName: "istio-remote",
			Addresses: []gatewayv1.GatewaySpecAddress{{Type: &address, Value: "192.0.2.10"}},
			Listeners: []gatewayv1.Listener{{Port: 15008, Protocol: "HBONE"}}},
	})
	v := &countingView{view: newView(tr.caches, &tr.good, &tr.cfg.Translate)}
	for i := range 100 {
		w, err := tr.cfg.Translate.WorkloadEntry(&networkingv1.WorkloadEntry{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("we", i)},
			Spec:       networking.WorkloadEntry{Address: fmt.Sprintf("172.16.0.%d", i), Network: "east"},
		}, v)
		if err != nil || w == nil || w.NetworkGateway == nil || w.NetworkGateway.Address.Prefix.Addr().String() != "192.0.2.10" {
			t.Fatalf("%+v: %v", w, err)
		}
	}
	if v.listed != 1 {
		t.Errorf("all Gateways are gone through %d times for 100 endpoints", v.listed)
	}
}
