package node

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// runtime is a container runtime with one sandbox.
type runtime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	uid, id, netns string
	kind           atomic.Pointer[string] // of the runtime that made it
}

func (r *runtime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: r.id, Metadata: &runtimeapi.PodSandboxMetadata{Uid: r.uid}}}}, nil
}

func (r *runtime) PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	info := fmt.Sprintf(`{"runtimeType":%q,"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":%q}]}}}`, *r.kind.Load(), r.netns)
	return &runtimeapi.PodSandboxStatusResponse{Info: map[string]string{"info": info}}, nil
}

func (b *bench) runtime(r *runtime) {
	b.t.Helper()
	b.cfg.CRISocket = filepath.Join(b.dir, "cri.sock")
	l, err := net.Listen("unix", b.cfg.CRISocket)
	if err != nil {
		b.t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, r)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	b.t.Cleanup(func() { s.Stop(); <-done })
}

// address adds or removes the box's own, as its application could.
func (b *bench) address(x *box, change func(netlink.Link, *netlink.Addr) error) {
	b.t.Helper()
	if err := x.ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return change(l, &netlink.Addr{IPNet: &net.IPNet{IP: x.addr.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}); err != nil {
		b.t.Fatal(err)
	}
}

// A sandbox whose application answers for the pod's addresses itself is refused,
// by what the namespace looks like and by the handler of its runtime class.
//
//ambit:feature cni-foreign-stack
func TestForeignStackIsRefused(t *testing.T) {
	b := newBench(t)
	b.start()
	b.ztunnel()
	class := "strict"
	guest := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "guest", UID: "00000000-0000-0000-0000-0000000000aa"},
		Spec: corev1.PodSpec{NodeName: b.cfg.Node, RuntimeClassName: &class}}
	b.api.put("pods", guest)
	bare := b.sandbox("second")
	b.address(bare, netlink.AddrDel)
	for _, c := range []struct {
		pod    *corev1.Pod
		box    *box
		reason string
	}{
		{guest, b.sandbox("first"), "runtime class strict (runsc) does not use this kernel's network stack"},
		{b.pod("bare"), bare, "none of its addresses is on a device of its namespace, eth0 (veth)"},
	} {
		if r := b.call(enroll.Add, c.pod, c.box); r.Outcome != enroll.Refused || !strings.Contains(r.Reason, c.reason) {
			t.Errorf("%s: %+v, want %q", c.pod.Name, r, c.reason)
		}
		b.eventually("the reason is on the pod", func() bool { return strings.Contains(b.note(c.pod, annotationReason), c.reason) })
		if b.note(c.pod, annotationRedirect) != "" || len(b.pinned()) != 0 {
			t.Errorf("annotations %v, pins %v", b.api.annotations("demo", c.pod.Name), b.pinned())
		}
	}
}

// What is seen only after the pod was captured is said; it is released when the
// runtime says the same, not because its application took its address away.
//
//ambit:feature cni-foreign-stack
func TestForeignStackSeenLater(t *testing.T) {
	b := newBench(t)
	p, x := b.pod("web"), b.sandbox("first")
	r := &runtime{uid: string(p.UID), id: x.id, netns: x.path}
	kind := "io.containerd.runc.v2"
	r.kind.Store(&kind)
	b.runtime(r)
	// An address that goes and comes between two looks of the watch is nothing new
	// to it; what was seen meanwhile is put right by the next check.
	b.cfg.DriftEvery = time.Second
	b.start()
	b.ztunnel()
	b.add(p, x)

	b.address(x, netlink.AddrDel)
	b.eventually("it is said", func() bool { return strings.Contains(b.note(p, annotationReason), "the runtime does not say so") })
	if b.note(p, annotationRedirect) != redirectionEnabled || len(b.pinned()) != 1 || !b.zt.serves(string(p.UID)) {
		t.Errorf("released by its own application: annotations %v, pins %v", b.api.annotations("demo", "web"), b.pinned())
	}
	b.address(x, netlink.AddrAdd)
	b.eventually("it is as before", func() bool { return b.note(p, annotationReason) == "" })

	foreign := "io.containerd.runsc.v1"
	r.kind.Store(&foreign)
	b.address(x, netlink.AddrDel)
	b.eventually("it is released", func() bool {
		return len(b.pinned()) == 0 && !b.zt.serves(string(p.UID)) && b.note(p, annotationRedirect) == "" &&
			strings.Contains(b.note(p, annotationReason), "io.containerd.runsc.v1")
	})
}

// The node has no way to a pod that is a macvlan of its network card: what
// cannot be tried is compared, and said on the pod.
//
//ambit:feature cni-limits
func TestUnreachablePodIsInspected(t *testing.T) {
	b := newBench(t)
	b.start()
	b.ztunnel()
	x := b.sandbox("first")
	if err := x.ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}); err != nil {
		t.Fatal(err)
	}
	raw, err := x.ns.File().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.host.Do(func() error {
		card := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "card"}, PeerName: "switch"}
		if err := netlink.LinkAdd(card); err != nil {
			return err
		}
		var inner error
		err := raw.Control(func(fd uintptr) {
			inner = netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "eth0", ParentIndex: card.Attrs().Index, Namespace: netlink.NsFd(fd)},
				Mode: netlink.MACVLAN_MODE_BRIDGE})
		})
		if err != nil {
			return err
		}
		return inner
	}); err != nil {
		t.Fatal(err)
	}
	if err := x.ns.Do(func() error { return b.device("eth0", x.addr.String(), "10.88.0.1/32") }); err != nil {
		t.Fatal(err)
	}
	p := b.pod("web")
	b.add(p, x)
	if got := b.note(p, annotationLimits); !strings.Contains(got, "inspected, not tried") || !strings.Contains(got, "eth0 (macvlan)") {
		t.Errorf("annotations %v", b.api.annotations("demo", "web"))
	}
	// One that the node has an end of promises everything.
	q, y := b.pod("other"), b.sandbox("second")
	b.add(q, y)
	if got := b.note(q, annotationLimits); got != "" {
		t.Errorf("a veth has limits: %s", got)
	}
}
