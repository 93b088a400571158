package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/netns"
)

// update changes a pod in the API and leaves what others have written on it.
func (b *bench) update(p *corev1.Pod, f func(*corev1.Pod)) {
	p.Annotations = b.api.annotations(p.Namespace, p.Name)
	f(p)
	b.api.put("pods", p)
}

// TestCompletedPodLeaves: a Job's pod that has ended is not in the mesh any more,
// although its object and perhaps its sandbox are still there; its address may
// be another's by then.
//
//ambit:feature enrol-completed enrol-address-again
func TestCompletedPodLeaves(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		t.Run(string(phase), func(t *testing.T) {
			b := newBench(t)
			b.start()
			b.ztunnel()
			job, x := b.pod("job"), b.sandbox("first")
			b.add(job, x)
			b.update(job, func(p *corev1.Pod) {
				p.Status.Phase = phase
				p.Status.PodIPs = []corev1.PodIP{{IP: x.addr.String()}}
			})
			b.eventually("it has left", func() bool {
				return !b.zt.serves(string(job.UID)) && len(b.pinned()) == 0 && b.note(job, annotationRedirect) == ""
			})
			// Its address goes to the next pod before anybody deletes it.
			b.unroute(x)
			next, y := b.pod("next-one"), b.sandboxAt("second", x.addr)
			b.add(next, y)
			if err := b.talk(y, "192.0.2.7:80").says("captured"); err != nil {
				t.Error(err)
			}
			if r := b.call(enroll.Del, job, x); r.Outcome != enroll.Done {
				t.Errorf("%+v", r)
			}
			b.api.remove("demo", "job")
			if err := b.talk(y, "192.0.2.7:80").says("still captured"); err != nil {
				t.Error(err)
			}
			if got := b.pinned(); !slices.Equal(got, []string{"second"}) {
				t.Errorf("pins %v", got)
			}
		})
	}
}

// TestCompletedPodSaysNothing: the runtime removes the sandbox before the API
// server has heard of the pod's end, as it mostly does; and the end comes while
// no agent is there.
//
//ambit:feature enrol-completed
func TestCompletedPodSaysNothing(t *testing.T) {
	b := newBench(t)
	_, stop := b.start()
	b.ztunnel()
	job, x := b.pod("job"), b.sandbox("first")
	other, y := b.pod("another"), b.sandbox("second")
	b.add(job, x)
	b.add(other, y)
	b.call(enroll.Del, job, x)
	if got := b.note(job, annotationRedirect); got != redirectionEnabled {
		t.Errorf("a pod that may get another sandbox says %q", got)
	}
	end := func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }
	b.update(job, end)
	b.eventually("it says nothing", func() bool { return b.note(job, annotationRedirect) == "" })
	stop()
	b.update(other, end)
	b.start()
	b.eventually("the other says nothing and has no pins", func() bool {
		return b.note(other, annotationRedirect) == "" && len(b.pinned()) == 0
	})
}

// TestSameNameAgain: a StatefulSet's pod comes back under its name with another
// uid, namespace and address while the old one is not cleaned up yet.
//
//ambit:feature enrol-same-name
func TestSameNameAgain(t *testing.T) {
	b := newBench(t)
	b.start()
	b.ztunnel()
	old, x := b.pod("db-0"), b.sandbox("first")
	b.add(old, x)
	b.api.remove("demo", "db-0")
	young := b.pod("db-0")
	young.UID = types.UID("11111111-0000-0000-0000-000000000001")
	b.api.put("pods", young)
	y := b.sandbox("second")
	b.add(young, y)
	if err := b.talk(y, "192.0.2.7:80").says("captured"); err != nil {
		t.Error(err)
	}
	b.call(enroll.Del, old, x)
	b.eventually("the old one has gone", func() bool {
		return !b.zt.serves(string(old.UID)) && slices.Equal(b.pinned(), []string{"second"})
	})
	if !b.zt.serves(string(young.UID)) || b.note(young, annotationRedirect) != redirectionEnabled {
		t.Errorf("the new one: served %v, %v", b.zt.serves(string(young.UID)), b.api.annotations("demo", "db-0"))
	}
}

// TestPodsFasterThanEvents: the sandbox is made before the watch has told of the
// pod, and it is gone before the watch has told of that.
//
//ambit:feature enrol-fast
func TestPodsFasterThanEvents(t *testing.T) {
	b := newBench(t)
	b.start()
	b.ztunnel()
	b.api.hold(true)
	p, x := b.pod("web"), b.sandbox("first")
	b.add(p, x)
	if err := b.talk(x, "192.0.2.7:80").says("captured"); err != nil {
		t.Error(err)
	}
	b.call(enroll.Del, p, x)
	if got := b.pinned(); len(got) != 0 {
		t.Errorf("pins %v", got)
	}
	b.api.remove("demo", "web")
	b.api.hold(false)
	second, y := b.pod("another"), b.sandbox("second")
	b.add(second, y)
	b.eventually("only the second is served", func() bool {
		return !b.zt.serves(string(p.UID)) && b.zt.serves(string(second.UID)) && slices.Equal(b.pinned(), []string{"second"})
	})
}

// TestRacingAdds: the runtime asks twice for one sandbox at once, and for two
// sandboxes of one pod. Who is told "captured" is; a sandbox that another one
// took the place of is refused.
//
//ambit:feature enrol-racing-adds
func TestRacingAdds(t *testing.T) {
	b := newBench(t)
	b.start()
	b.ztunnel()
	for round := range 5 {
		p := b.pod("web" + strings.Repeat("x", round))
		var boxes []*box
		for i := range 2 {
			boxes = append(boxes, b.sandbox(fmt.Sprintf("round%d-%d", round, i)))
		}
		type answer struct {
			x *box
			r enroll.Response
		}
		answers := make(chan answer, 4)
		for i := range 4 {
			go func() { answers <- answer{boxes[i%2], b.call(enroll.Add, p, boxes[i%2])} }()
		}
		said := map[*box]map[enroll.Outcome]int{boxes[0]: {}, boxes[1]: {}}
		for range 4 {
			a := <-answers
			said[a.x][a.r.Outcome]++
		}
		pins := b.pinned()
		if len(pins) != 1 {
			t.Fatalf("pins %v after %v", pins, said)
		}
		for _, x := range boxes {
			// An ADD that was done may have been superseded by one that came later.
			if x.id == pins[0] && said[x][enroll.Captured] == 0 {
				t.Errorf("%s is captured and its ADDs were answered %v", x.id, said[x])
			}
			if x.id == pins[0] {
				if err := b.talk(x, "192.0.2.7:80").says("captured"); err != nil {
					t.Error(err)
				}
			}
		}
		for _, x := range boxes {
			b.call(enroll.Del, p, x)
		}
		b.api.remove("demo", p.Name)
		b.eventually("nothing is left", func() bool { return len(b.pinned()) == 0 })
	}
}

// TestWrongNamespace: what the runtime names as a pod's network namespace is
// another pod's, the node's own, or none that has the pod's address.
//
//ambit:feature enrol-wrong-namespace
func TestWrongNamespace(t *testing.T) {
	b := newBench(t)
	b.start()
	b.ztunnel()
	p, x := b.pod("web"), b.sandbox("first")
	b.add(p, x)
	empty := b.sandbox("empty")
	for _, c := range []struct {
		name, path, want string
		addr             netip.Addr
	}{
		{"another pod's", x.path, "its network namespace is that of pod demo/web", x.addr},
		{"the node's", b.mounted("node", b.host), "node's network namespace", x.addr},
		{"one without its address", empty.path, "none of its addresses", netip.MustParseAddr("10.88.9.9")},
		{"none", filepath.Join(b.dir, "nothing"), "no such file", x.addr},
	} {
		q := b.pod("other-" + strings.ReplaceAll(c.name, " ", "-"))
		r := b.call(enroll.Add, q, &box{id: "wrong", path: c.path, addr: c.addr})
		if r.Outcome != enroll.Refused || !strings.Contains(r.Reason, c.want) {
			t.Errorf("%s: %+v, want a refusal with %q", c.name, r, c.want)
		}
		b.api.remove("demo", q.Name)
	}
	if err := b.talk(x, "192.0.2.7:80").says("untouched"); err != nil {
		t.Error(err)
	}
	b.eventually("only the pod itself has pins", func() bool { return slices.Equal(b.pinned(), []string{"first"}) })
	// Free again, the namespace can be somebody's.
	b.call(enroll.Del, p, x)
	b.api.remove("demo", "web")
	b.eventually("nothing is left", func() bool { return len(b.pinned()) == 0 })
	b.add(b.pod("successor"), &box{id: "again", path: x.path, ns: x.ns, addr: x.addr})
}

// TestExcludedNamespaceIsLeft: pods of a namespace that is excluded are never
// captured, after a restart neither, and one that was before leaves.
//
//ambit:feature enrol-excluded
func TestExcludedNamespaceIsLeft(t *testing.T) {
	b := newBench(t)
	_, stop := b.start()
	b.ztunnel()
	p, x := b.pod("web"), b.sandbox("first")
	b.add(p, x)
	stop()
	b.cfg.Rules.ExcludeNamespaces = []string{"demo"}
	for range 2 {
		_, stop = b.start()
		b.eventually("it has left", func() bool {
			return len(b.pinned()) == 0 && b.note(p, annotationRedirect) == "" && strings.Contains(b.note(p, annotationReason), "excluded")
		})
		q := b.pod("another")
		if r := b.call(enroll.Add, q, b.sandbox(fmt.Sprintf("sandbox%d", b.n))); r.Outcome != enroll.Passed {
			t.Errorf("%+v", r)
		}
		if got := b.note(q, annotationRedirect); got != "" || len(b.pinned()) != 0 {
			t.Errorf("%q, pins %v", got, b.pinned())
		}
		stop()
	}
}

// TestInboundDirect: a pod that asks for it is dialled directly, and what it
// dials is captured; the wish can change while it runs.
//
//ambit:feature enrol-inbound-direct
func TestInboundDirect(t *testing.T) {
	b := newBench(t)
	b.start()
	b.foreignZtunnel("zt") // says what it takes
	p, x := b.annotated("gateway", map[string]string{annotationInboundDirect: "true"}), b.sandbox("first")
	b.echo("10.88.0.1:7")
	b.app(x, 8080)
	b.add(p, x)
	in := b.into(x, 8080)
	if err := in.says("past ztunnel"); err != nil {
		t.Error(err)
	}
	if got := b.talk(x, "10.88.0.1:7").first(t); got != "zt outbound 10.88.0.1:7" {
		t.Errorf("outbound: %q", got)
	}
	if got := b.into(x, 15008).first(t); !strings.HasPrefix(got, "zt hbone ") {
		t.Errorf("HBONE: %q", got)
	}
	if r := b.call(enroll.Check, p, x); r.Outcome != enroll.Done {
		t.Errorf("%+v", r)
	}
	b.update(p, func(p *corev1.Pod) { delete(p.Annotations, annotationInboundDirect) })
	b.eventually("inbound is captured", func() bool { return strings.HasPrefix(b.intoSoon(x, 8080), "zt inbound ") })
	if err := in.says("the open one goes on"); err != nil {
		t.Error(err)
	}
}

// intoSoon gives up early: the application says nothing by itself.
func (b *bench) intoSoon(x *box, port uint16) string {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	c, err := b.host.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(x.addr, port), netns.SocketOptions{})
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	buf := make([]byte, 100)
	n, _ := c.Read(buf)
	return string(buf[:n])
}

// TestDNSWish: a pod's word about its DNS goes before the node's setting.
//
//ambit:feature enrol-dns-capture
func TestDNSWish(t *testing.T) {
	for _, c := range []struct {
		node bool
		note string
		want bool
	}{{true, "", true}, {true, "false", false}, {false, "true", true}, {false, "maybe", false}} {
		t.Run(fmt.Sprintf("%v %q", c.node, c.note), func(t *testing.T) {
			b := newBench(t)
			b.cfg.DNS = c.node
			b.start()
			b.ztunnel()
			notes := map[string]string{}
			if c.note != "" {
				notes[annotationDNS] = c.note
			}
			p, x := b.annotated("web", notes), b.sandbox("first")
			b.add(p, x)
			b.zt.mu.Lock()
			l := b.zt.pods[string(p.UID)].pod.Listeners
			b.zt.mu.Unlock()
			if got := l.DNSTCP != nil && l.DNSUDP != nil; got != c.want {
				t.Errorf("DNS is captured: %v, want %v", got, c.want)
			}
		})
	}
}

// mounted gives a namespace a path.
func (b *bench) mounted(name string, ns *netns.NS) string {
	b.t.Helper()
	path := filepath.Join(b.dir, "netns-"+name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		b.t.Fatal(err)
	}
	raw, err := ns.File().SyscallConn()
	if err != nil {
		b.t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		inner = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), path, "", unix.MS_BIND, "")
	}); err != nil || inner != nil {
		b.t.Fatal(err, inner)
	}
	b.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// unroute takes a sandbox off the network, as the plugins' DEL does.
func (b *bench) unroute(x *box) {
	b.t.Helper()
	if err := x.ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}); err != nil {
		b.t.Fatal(err)
	}
}
