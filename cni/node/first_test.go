package node

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestRunningPodWaitsForTheFirstZtunnel: the agent of a new installation is often
// there before ztunnel is. A pod that runs already keeps its direct connections
// until somebody serves it; from then on capture stays, ztunnel or not.
//
//ambit:feature cni-first-ztunnel
func TestRunningPodWaitsForTheFirstZtunnel(t *testing.T) {
	b := newBench(t)
	p, x := b.pod("web"), b.sandbox("first")
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: x.addr.String(), PodIPs: []corev1.PodIP{{IP: x.addr.String()}}}
	b.api.put("pods", p)
	r := &runtime{uid: string(p.UID), id: x.id, netns: x.path}
	kind := "io.containerd.runc.v2"
	r.kind.Store(&kind)
	b.runtime(r)
	b.echo("10.88.0.1:9000")
	b.start()

	b.eventually("it is said", func() bool { return strings.Contains(b.note(p, annotationReason), "no ztunnel is connected") })
	if got := b.note(p, annotationRedirect); got != "" || len(b.pinned()) != 0 {
		t.Errorf("captured with nobody to serve it: %q, pins %v", got, b.pinned())
	}
	if err := b.talk(x, "10.88.0.1:9000").says("direct"); err != nil {
		t.Error(err)
	}

	stop := b.ztunnel()
	b.eventually("it is captured", func() bool { return b.note(p, annotationRedirect) == redirectionEnabled })
	stop()
	b.ztunnel()
	b.eventually("it is served again", func() bool { return b.zt.serves(string(p.UID)) })
	if len(b.pinned()) != 1 {
		t.Errorf("pins %v", b.pinned())
	}
}
