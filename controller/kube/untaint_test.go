package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestUntaintPatch: one key comes off, with all its effects, and nothing else.
//
//ambit:feature cni-taint
func TestUntaintPatch(t *testing.T) {
	const key = "cni.istio.io/not-ready"
	taint := func(key string, e corev1.TaintEffect) corev1.Taint { return corev1.Taint{Key: key, Effect: e} }
	for _, c := range []struct {
		name string
		have []corev1.Taint
		want string
	}{
		{"none", nil, ""},
		{"others", []corev1.Taint{taint("a", "NoSchedule")}, ""},
		{"alone", []corev1.Taint{taint(key, "NoSchedule")},
			`[{"op":"test","path":"/spec/taints","value":[{"key":"cni.istio.io/not-ready","effect":"NoSchedule"}]},{"op":"replace","path":"/spec/taints","value":[]}]`},
		{"twice among others", []corev1.Taint{taint(key, "NoSchedule"), taint("a", "NoExecute"), taint(key, "NoExecute")},
			`[{"op":"test","path":"/spec/taints","value":[{"key":"cni.istio.io/not-ready","effect":"NoSchedule"},{"key":"a","effect":"NoExecute"},{"key":"cni.istio.io/not-ready","effect":"NoExecute"}]},{"op":"replace","path":"/spec/taints","value":[{"key":"a","effect":"NoExecute"}]}]`},
	} {
		got, err := untaintPatch(c.have, key)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}

// TestAgentReady: an agent that is about to end, or on no node yet, does not count.
//
//ambit:feature cni-taint
func TestAgentReady(t *testing.T) {
	ready := func(s corev1.ConditionStatus) []corev1.PodCondition {
		return []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: s}}
	}
	now := metav1.Now()
	for _, c := range []struct {
		name string
		pod  corev1.Pod
		want bool
	}{
		{"ready", corev1.Pod{Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Conditions: ready(corev1.ConditionTrue)}}, true},
		{"not ready", corev1.Pod{Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Conditions: ready(corev1.ConditionFalse)}}, false},
		{"says nothing", corev1.Pod{Spec: corev1.PodSpec{NodeName: "n"}}, false},
		{"on no node", corev1.Pod{Status: corev1.PodStatus{Conditions: ready(corev1.ConditionTrue)}}, false},
		{"ending", corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Conditions: ready(corev1.ConditionTrue)}}, false},
	} {
		if got := agentReady(&c.pod); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
