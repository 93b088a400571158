package kube

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambitmesh/ambit/controller/translate"
)

// TestLackingNodes: everybody who may verify a certificate counts, and nobody
// who gets the roots before he does.
//
//ambit:feature identity-root-stalled
func TestLackingNodes(t *testing.T) {
	pod := func(name, node string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: types.UID(name)},
			Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}}
	}
	captured := func(name, node string) *corev1.Pod {
		p := pod(name, node, corev1.PodRunning)
		p.Annotations = map[string]string{translate.RedirectionAnnotation: translate.RedirectionEnabled}
		return p
	}
	zt := func(name, node string, phase corev1.PodPhase) *corev1.Pod {
		p := pod(name, node, phase)
		p.Namespace, p.Labels = "ambit-system", map[string]string{"app": "ztunnel"}
		p.Spec.ServiceAccountName = "ztunnel"
		return p
	}
	if e := translate.DefaultEnrolment(); !e.Ztunnel(zt("z", "n", corev1.PodRunning)) {
		t.Fatal("the test's ztunnel is none")
	}
	leaving := zt("z2", "n1", corev1.PodRunning)
	leaving.DeletionTimestamp = &metav1.Time{}
	for _, c := range []struct {
		name string
		pods []*corev1.Pod
		has  []string
		want []string
	}{
		{"nothing", nil, nil, nil},
		{"has it", []*corev1.Pod{zt("z1", "n1", corev1.PodRunning), captured("a", "n1")}, []string{"z1"}, nil},
		{"has it not", []*corev1.Pod{zt("z1", "n1", corev1.PodRunning), captured("a", "n1")}, nil, []string{"ztunnel z1 on n1"}},
		{"one of two, while one replaces the other", []*corev1.Pod{zt("z1", "n1", corev1.PodRunning), leaving}, []string{"z1"}, []string{"ztunnel z2 on n1"}},
		{"not running yet", []*corev1.Pod{zt("z1", "n1", corev1.PodPending)}, nil, nil},
		{"not running yet, but pods are captured", []*corev1.Pod{zt("z1", "n1", corev1.PodPending), captured("a", "n1")}, nil, []string{"node n1"}},
		{"ended", []*corev1.Pod{zt("z1", "n1", corev1.PodFailed)}, nil, nil},
		{"no ztunnel, nothing captured", []*corev1.Pod{pod("a", "n1", corev1.PodRunning)}, nil, nil},
		{"no ztunnel where pods are captured", []*corev1.Pod{captured("a", "n1"), captured("b", "n1")}, nil, []string{"node n1"}},
	} {
		got := lackingNodes(c.pods, translate.DefaultEnrolment(), func(uid string) bool { return slices.Contains(c.has, uid) })
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
