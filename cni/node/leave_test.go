package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// ask puts annotationUninstall on Ambit's own namespace, or takes it away.
func (b *bench) ask(value string) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: b.cfg.Rules.OwnNamespace}}
	if value != "" {
		ns.Annotations = map[string]string{annotationUninstall: value}
	}
	b.api.put("namespaces", ns)
}

// TestAskedToLeave: every pod leaves as it would without its label, no new one
// is captured, and the plugin may go by the intent file. Asked back, the agent
// ends, so that its successor begins with everything.
//
//ambit:feature unenrol-uninstall
func TestAskedToLeave(t *testing.T) {
	b := newBench(t)
	b.cfg.Registerer = prometheus.NewRegistry()
	a := New(b.cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	var end error
	wait := func(what string, done <-chan struct{}) {
		t.Helper()
		select {
		case <-done:
		case end = <-ended:
			ended <- end
			t.Fatalf("before %s the agent ended: %v", what, end)
		case <-time.After(patience):
			t.Fatalf("never came: %s", what)
		}
	}
	t.Cleanup(func() { cancel(); <-ended })
	wait("start", a.Started())
	b.ztunnel()
	own := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.cfg.Rules.OwnNamespace, Name: "agent", UID: "own", Labels: map[string]string{labelApp: appAgent}},
		Spec:       corev1.PodSpec{NodeName: b.cfg.Node},
	}
	b.api.put("pods", own)
	p, x := b.pod("web"), b.sandbox("first")
	b.echo("10.88.0.1:7")
	b.add(p, x)
	captured := b.talk(x, "192.0.2.7:80")
	if err := captured.says("one"); err != nil {
		t.Fatal(err)
	}

	b.ask("now")
	b.eventually("not advertised", func() bool { return b.note(p, annotationRedirect) == "" })
	select {
	case <-a.Left():
		t.Error("left with a connection open")
	default:
	}
	if err := captured.says("two"); err != nil {
		t.Error(err)
	}
	later, y := b.pod("later"), b.sandbox("second")
	if r := b.call(enroll.Add, later, y); r.Outcome != enroll.Passed {
		t.Errorf("a new pod: %+v", r)
	}
	captured.Close()
	wait("left", a.Left())
	if pins := b.pinned(); len(pins) != 0 {
		t.Errorf("pins of %v", pins)
	}
	if err := b.talk(x, "10.88.0.1:7").says("direct"); err != nil {
		t.Error(err)
	}
	in, err := enroll.ReadIntent(b.cfg.Intent)
	if err != nil || len(in.Pods) != 0 || in.Namespaces["demo"] != enroll.Outside {
		t.Errorf("intent %+v, %v: a plugin that is left would make pods wait", in, err)
	}
	if b.note(own, annotationReleased) != "" {
		t.Error("released is said before the plugin is gone")
	}
	a.SayReleased(ctx)
	if got := b.note(own, annotationReleased); got != "now" {
		t.Errorf("released: %q", got)
	}

	b.ask("")
	select {
	case end = <-ended:
		ended <- end
		if !errors.Is(end, errTakenBack) {
			t.Errorf("asked back, the agent ended with %v", end)
		}
	case <-time.After(patience):
		t.Error("asked back, the agent goes on with nothing installed")
	}
	_, stop := b.start()
	defer stop()
	b.add(p, x)
	b.eventually("captured again", func() bool { return b.note(p, annotationRedirect) == redirectionEnabled })
}
