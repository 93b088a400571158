package netns_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A node keeps its startup taint until its node agent is ready, and loses that
// taint alone; one that is put on again comes off again.
//
//ambit:feature cni-taint
func TestTaintsRemoved(t *testing.T) {
	const key = "cni.istio.io/not-ready"
	p := newPlane(t)
	p.installCRDs()
	p.namespace("ambit-system", nil)
	nodes := p.client.CoreV1().Nodes()
	for _, name := range []string{"ready", "late", "other"} {
		taints := []corev1.Taint{{Key: "mine", Effect: corev1.TaintEffectNoSchedule}, {Key: key, Effect: corev1.TaintEffectNoSchedule}, {Key: key, Effect: corev1.TaintEffectNoExecute}}
		must(nodes.Create(p.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: taints}}, metav1.CreateOptions{}))(t)
	}
	agent := func(name, node string, labels map[string]string, ready bool) *corev1.Pod {
		made := must(p.pod("ambit-system", name, "ambit-cni-node", node, "10.0.0.1", labels, nil))(t)
		if !ready {
			made.Status.Conditions[0].Status = corev1.ConditionFalse
			made = must(p.client.CoreV1().Pods("ambit-system").UpdateStatus(p.ctx, made, metav1.UpdateOptions{}))(t)
		}
		return made
	}
	label := map[string]string{"app": "ambit-cni-node"}
	agent("agent-ready", "ready", label, true)
	late := agent("agent-late", "late", label, false)
	agent("stranger", "other", map[string]string{"app": "something"}, true)
	p.controller("one", "--untaint-nodes")
	tainted := func(name string) bool {
		n := must(nodes.Get(p.ctx, name, metav1.GetOptions{}))(t)
		if !slices.ContainsFunc(n.Spec.Taints, func(x corev1.Taint) bool { return x.Key == "mine" }) {
			t.Errorf("node %s: %v: another taint is gone", name, n.Spec.Taints)
		}
		return slices.ContainsFunc(n.Spec.Taints, func(x corev1.Taint) bool { return x.Key == key })
	}
	off := func(name string) {
		t.Helper()
		eventually(t, "the taint of node "+name+" comes off", func() error {
			if tainted(name) {
				return fmt.Errorf("it is there")
			}
			return nil
		})
	}
	off("ready")
	if !tainted("late") || !tainted("other") {
		t.Error("a node without an agent that is ready lost its taint")
	}
	late.Status.Conditions[0].Status = corev1.ConditionTrue
	must(p.client.CoreV1().Pods("ambit-system").UpdateStatus(p.ctx, late, metav1.UpdateOptions{}))(t)
	off("late")
	if !tainted("other") {
		t.Error("a node without an agent lost its taint")
	}
}
