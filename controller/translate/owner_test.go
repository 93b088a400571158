package translate

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWorkloadName(t *testing.T) {
	owned := func(kind, name string, labels, annotations map[string]string) *corev1.Pod {
		yes := true
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: "pod", Labels: labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: name, Controller: &yes}},
		}}
	}
	hash := map[string]string{"pod-template-hash": "6f9"}
	for _, c := range []struct {
		pod  *corev1.Pod
		want string
	}{
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "bare"}}, "bare"},
		{owned("ReplicaSet", "web-6f9", hash, nil), "web"},
		{owned("ReplicaSet", "web-6f9", nil, nil), "web-6f9"},
		{owned("ReplicaSet", "handmade", hash, nil), "handmade"},
		{owned("Job", "nightly-28000000", nil, nil), "nightly"},
		{owned("Job", "nightly-1234567", nil, nil), "nightly-1234567"},
		{owned("Job", "-28000000", nil, nil), "-28000000"},
		{owned("ReplicationController", "web-3", nil, map[string]string{"openshift.io/deployment-config.name": "web"}), "web"},
		{owned("StatefulSet", "db", nil, nil), "db"},
		{owned("StatefulSet", "db", map[string]string{"service.istio.io/workload-name": "mine"}, nil), "mine"},
	} {
		if got := workloadName(c.pod); got != c.want {
			t.Errorf("owners %v: got %q, want %q", c.pod.OwnerReferences, got, c.want)
		}
	}
}
