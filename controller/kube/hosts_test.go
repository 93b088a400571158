package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestPodNode: what a token says of its pod must all be so.
func TestPodNode(t *testing.T) {
	tr := newBench(t)
	c := &Controller{cfg: *tr.cfg, caches: tr.caches}
	p := pod("ambit-system", "z", nil, 1)
	p.UID = "u1"
	for _, phase := range []corev1.PodPhase{corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed} {
		p := p.DeepCopy()
		p.Status.Phase = phase
		tr.put(kindPod, p)
		runs := phase == corev1.PodPending || phase == corev1.PodRunning
		if node, ok := c.PodNode("ambit-system", "z", "u1", "sa"); ok != runs || ok && node != "node1" {
			t.Errorf("%s: %q, %t", phase, node, ok)
		}
	}
	tr.put(kindPod, p)
	for _, x := range [][4]string{{"other", "z", "u1", "sa"}, {"ambit-system", "y", "u1", "sa"}, {"ambit-system", "z", "u2", "sa"}, {"ambit-system", "z", "u1", "default"}} {
		if _, ok := c.PodNode(x[0], x[1], x[2], x[3]); ok {
			t.Errorf("%v is known", x)
		}
	}
}
