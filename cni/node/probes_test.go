package node

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// probed puts a pod with a probe into the API.
func (b *bench) probed(name string, port int32) *corev1.Pod {
	p := b.pod(name)
	p.Spec.Containers = []corev1.Container{{Name: "app", ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
		TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}}}}
	b.api.put("pods", p)
	return p
}

// TestProbesByAddressAreSaid: where probes cannot be stamped, as with clsact, the
// pod says what that means. One that the node does not even reach is refused,
// with the reason, because none of its probes would arrive.
//
//ambit:feature probe-fallback-said
func TestProbesByAddressAreSaid(t *testing.T) {
	b := newBench(t)
	var err error
	b.cfg.Redirector, err = redirect.New(redirect.Options{PinRoot: filepath.Join(b.dir, "bpf", "ambit"), Clsact: true})
	if err != nil {
		t.Fatal(err)
	}
	b.start()
	b.ztunnel()
	p, x := b.probed("web", 8080), b.sandbox("first")
	b.add(p, x)
	if got := b.note(p, annotationLimits); !strings.Contains(got, "every process of the node can dial ports 8080") {
		t.Errorf("annotations %v", b.api.annotations("demo", "web"))
	}
	q, y := b.pod("other"), b.sandbox("second")
	b.add(q, y)
	if got := b.note(q, annotationLimits); got != "" {
		t.Errorf("a pod without probes: %s", got)
	}

	r, z := b.probed("distant", 8080), b.sandbox("third")
	if err := b.host.Do(func() error {
		return netlink.RouteDel(&netlink.Route{Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: z.addr.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}); err != nil {
		t.Fatal(err)
	}
	if got := b.call(enroll.Add, r, z); got.Outcome != enroll.Refused || !strings.Contains(got.Reason, "probes cannot be told") {
		t.Errorf("a pod whose probes cannot be told: %+v", got)
	}
	if got := b.note(r, annotationReason); !strings.Contains(got, "probes cannot be told") {
		t.Errorf("annotations %v", b.api.annotations("demo", "distant"))
	}
}

// TestCapturedFromTheStart: what passes the proxy of a pod that was captured
// before it began are probes and hooks, however long they take; ztunnel is not to
// take them for connections that are older. Of a pod that ran before nobody knows.
//
//ambit:feature probe-hooks enrol-init
func TestCapturedFromTheStart(t *testing.T) {
	b := newBench(t)
	old, y := b.pod("older"), b.sandbox("second")
	r := &runtime{uid: string(old.UID), id: y.id, netns: y.path}
	kind := "io.containerd.runc.v2"
	r.kind.Store(&kind)
	b.runtime(r)
	old.Status.PodIPs = []corev1.PodIP{{IP: y.addr.String()}}
	b.api.put("pods", old)
	b.start()
	b.ztunnel()
	p, x := b.probed("web", 8080), b.sandbox("first")
	b.add(p, x)
	if from, served := b.zt.fromStart(string(p.UID)); !from {
		t.Errorf("ztunnel was not told that the pod is captured from its start (served: %v)", served)
	}
	b.eventually("the pod that runs is served", func() bool { return b.zt.serves(string(old.UID)) })
	if from, _ := b.zt.fromStart(string(old.UID)); from {
		t.Error("a pod that ran before is said to be captured from its start")
	}
}

func (z *ztunnel) fromStart(uid string) (from, served bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	s := z.pods[uid]
	return s != nil && s.pod.FromStart, s != nil
}

// TestProbesByStampNeedNoWord: with a veth there is nothing to say.
//
//ambit:feature probe-fallback-said
func TestProbesByStampNeedNoWord(t *testing.T) {
	b := newBench(t)
	b.start()
	b.ztunnel()
	p, x := b.probed("web", 8080), b.sandbox("first")
	b.add(p, x)
	if got := b.note(p, annotationLimits); got != "" {
		t.Errorf("a pod with a veth has limits: %s", got)
	}
	if by, err := b.red.Probing(x.id, []uint16{8080}); by != redirect.ProbesByStamp || err != nil {
		t.Errorf("probes are told by %q, %v", by, err)
	}
}
