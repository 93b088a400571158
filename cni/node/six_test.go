package node

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// TestIPv6Only: where pods have IPv6 and nothing else, they are captured, by
// our own ztunnel and by one that is not ours, proven, and found again.
//
//ambit:feature enrol-ipv6-only
func TestIPv6Only(t *testing.T) {
	b := newBench(t)
	b.cfg.DNS = true
	_, stop := b.start()
	b.ztunnel()
	p, x := b.pod("web"), b.sandboxAt("first", netip.MustParseAddr("fd88::11"))
	b.echo("[fd88::1]:7")
	b.add(p, x)
	if err := b.talk(x, "[2001:db8::7]:80").says("captured"); err != nil {
		t.Error(err)
	}
	if r := b.call(enroll.Check, p, x); r.Outcome != enroll.Done {
		t.Errorf("%+v", r)
	}
	if got := b.note(p, annotationRedirect); got != redirectionEnabled {
		t.Errorf("redirection %q", got)
	}
	b.foreignZtunnel("six")
	b.eventually("served by the other", func() bool { return strings.HasPrefix(b.triesAt(x, "[fd88::1]:7"), "six outbound [fd88::1]:7") })
	b.app(x, 8080)
	if got, want := b.into(x, 8080).first(t), "six inbound [fd88::11]:8080"; got != want {
		t.Errorf("inbound: %q, want %q", got, want)
	}
	if got, want := b.into(x, 15008).first(t), "six hbone fd88::11"; got != want {
		t.Errorf("HBONE: %q, want %q", got, want)
	}
	open := b.talk(x, "[fd88::1]:7")
	open.first(t)
	stop()
	b.update(p, func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "fd88::11"}} })
	kind := "io.containerd.runc.v2"
	r := &runtime{uid: string(p.UID), id: x.id, netns: x.path}
	r.kind.Store(&kind)
	b.runtime(r)
	a, _ := b.start()
	b.eventually("the next agent serves it", func() bool { _, ok := a.served.get(string(p.UID)); return ok })
	if err := open.says("through both agents"); err != nil {
		t.Error(err)
	}
}
