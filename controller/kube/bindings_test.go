package kube

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/meta/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// A new holder of the Lease takes back what an earlier one left, and nothing
// that is another control plane's: the conditions have the same names.
func TestStaleBindings(t *testing.T) {
	rev := func(name string) map[string]string {
		if name == "" {
			return nil
		}
		return map[string]string{translate.RevisionLabel: name}
	}
	for _, c := range []struct {
		name     string
		beside   bool
		revision string
		want     []string // entries: namespace and revision
	}{
		{"alone", false, "", []string{"ours/", "ours/default", "theirs/", "theirs/default"}},
		{"alone, of a revision", false, "ambit", []string{"ours/", "ours/ambit", "theirs/", "theirs/ambit"}},
		{"beside another", true, "ambit", []string{"ours/ambit", "theirs/ambit"}},
	} {
		tr := newBench(t)
		tr.cfg.Translate.Beside, tr.cfg.Translate.Revision = c.beside, c.revision
		b := newBindings(tr.cfg, tr.caches, tr.metrics)
		tr.put(kindNamespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ours", Labels: rev("ambit")}})
		tr.put(kindNamespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}})
		for _, ns := range []string{"ours", "theirs"} {
			for _, r := range []string{"", "ambit", "default"} {
				meta := metav1.ObjectMeta{Namespace: ns, Name: "r" + r, Labels: rev(r)}
				bound := []*v1alpha1.IstioCondition{{Type: translate.ConditionWaypointBound, Status: "True"}}
				se := &networkingv1.ServiceEntry{ObjectMeta: meta}
				se.Status.Conditions = bound
				tr.put(kindServiceEntry, se)
				we := &networkingv1.WorkloadEntry{ObjectMeta: meta}
				we.Status.Conditions = bound
				tr.put(kindWorkloadEntry, we)
				tr.put(kindService, &corev1.Service{ObjectMeta: meta, Status: corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: translate.ConditionWaypointBound}}}})
				bare := metav1.ObjectMeta{Namespace: ns, Name: "bare" + r, Labels: rev(r)}
				tr.put(kindServiceEntry, &networkingv1.ServiceEntry{ObjectMeta: bare})
			}
		}
		got := map[kind][]string{}
		for _, k := range b.stale() {
			got[k.kind] = append(got[k.kind], k.namespace+"/"+k.name[1:])
		}
		for _, k := range []kind{kindServiceEntry, kindWorkloadEntry} {
			if slices.Sort(got[k]); !slices.Equal(got[k], c.want) {
				t.Errorf("%s: %s %q, want %q", c.name, k, got[k], c.want)
			}
		}
		services := 6
		if c.beside { // its own word, else its namespace's
			services = 3
		}
		if len(got[kindService]) != services {
			t.Errorf("%s: services %q, want %d", c.name, got[kindService], services)
		}
	}
}
