package node

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is true of the whole node is on the agent's own pod, and goes when it is
// not true any more. The socket balancer itself is tried in cni/redirect.
//
//ambit:feature cni-findings probe-fallback-process
func TestFindingsAreOnTheAgentsPod(t *testing.T) {
	b := newBench(t)
	b.cfg.Pod, b.cfg.Clsact, b.cfg.Service = "agent-1", true, netip.MustParseAddrPort("10.96.0.1:443")
	own := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "agent-1", UID: "00000000-0000-0000-0000-0000000000ab"},
		Spec: corev1.PodSpec{NodeName: b.cfg.Node, HostNetwork: true}}
	b.api.put("pods", own)
	codes := func() []string {
		var found []Finding
		if text := b.note(own, annotationFindings); text != "" {
			if err := json.Unmarshal([]byte(text), &found); err != nil {
				t.Fatal(err)
			}
		}
		var codes []string
		for _, f := range found {
			if f.Text == "" {
				t.Errorf("%s says nothing", f.Code)
			}
			codes = append(codes, f.Code)
		}
		return codes
	}
	a, stop := b.start()
	b.eventually("clsact and the missing runtime are said", func() bool {
		return slices.Contains(codes(), findingClsact) && slices.Contains(codes(), findingNoRuntime)
	})
	if slices.Contains(codes(), findingSocketLB) {
		t.Error("services are said to be balanced in sockets here")
	}
	if got := slices.Contains(codes(), findingMark); got == a.proxies.checking() {
		t.Errorf("mark alone %v, cgroups checked %v", got, a.proxies.checking())
	}
	if !slices.Contains(codes(), findingProbes) {
		t.Error("no kubelet was found, and nothing is said")
	}
	stop()

	b.cfg.Clsact = false
	kind := "io.containerd.runc.v2"
	r := &runtime{}
	r.kind.Store(&kind)
	b.runtime(r)
	b.start()
	b.eventually("they are not said any more", func() bool {
		return !slices.Contains(codes(), findingClsact) && !slices.Contains(codes(), findingNoRuntime)
	})
}

func TestServiceAddr(t *testing.T) {
	for _, c := range []struct{ host, port, want string }{
		{"10.96.0.1", "443", "10.96.0.1:443"},
		{"fd96::1", "443", "[fd96::1]:443"},
		{"", "", "invalid AddrPort"},
		{"10.96.0.1", "http", "invalid AddrPort"},
		{"kubernetes", "443", "invalid AddrPort"},
	} {
		if got := ServiceAddr(c.host, c.port).String(); got != c.want {
			t.Errorf("%q, %q: %s, want %s", c.host, c.port, got, c.want)
		}
	}
}
