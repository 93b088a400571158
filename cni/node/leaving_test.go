package node

import (
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// TestLeavingIsBounded: a connection that does not end keeps its pod in the mesh
// for so long and no longer. Then it is cut, and that is said; what went past
// the mesh is not touched.
//
//ambit:feature unenrol-bounded
func TestLeavingIsBounded(t *testing.T) {
	b := newBench(t)
	said := b.record()
	b.cfg.DrainWait = time.Second
	_, _ = b.start()
	b.ztunnel()
	p, x := b.pod("web"), b.sandbox("first")
	b.echo("10.88.0.1:7")
	older := b.talk(x, "10.88.0.1:7")
	b.add(p, x)
	captured := b.talk(x, "192.0.2.7:80")
	for what, c := range map[string]interface{ says(string) error }{"older": older, "captured": captured} {
		if err := c.says("one"); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	began := time.Now()
	b.api.namespace("demo", "")
	b.eventually("the pod has left", func() bool { return !b.zt.serves(string(p.UID)) && len(b.pinned()) == 0 })
	t.Logf("gone %s after the label, %s of it for the open connection", time.Since(began).Round(time.Millisecond), b.cfg.DrainWait)
	if took := time.Since(began); took < b.cfg.DrainWait {
		t.Errorf("left after %s with a connection open", took)
	}
	if err := captured.says("two"); err == nil {
		t.Error("a captured connection goes on without a ztunnel")
	}
	if err := older.says("two"); err != nil {
		t.Errorf("an older connection: %v", err)
	}
	if n := said.count("are cut"); n != 1 || said.count(" connections=1 ") != 1 {
		t.Errorf("%d lines say that a connection was cut", n)
	}
}

// TestDriftIsCountedAnew: while capture was off, by whoever took it off,
// connections went past the mesh. They are older ones to everybody: counted, and
// the pod is handed over again, which has ztunnel look for them.
//
//ambit:feature policy-older-drift
func TestDriftIsCountedAnew(t *testing.T) {
	b := newBench(t)
	b.cfg.DriftEvery = time.Hour
	a, _ := b.start()
	b.ztunnel()
	p, x := b.pod("web"), b.sandbox("first")
	b.echo("10.88.0.1:7")
	b.add(p, x)
	b.eventually("captured", func() bool { return b.note(p, annotationRedirect) == redirectionEnabled })
	if err := b.red.Drain(x.id); err != nil {
		t.Fatal(err)
	}
	direct := b.talk(x, "10.88.0.1:7")
	if err := direct.says("past the mesh"); err != nil {
		t.Fatal(err)
	}
	adds := b.zt.added()
	// An address more: the pod is looked at.
	if err := x.ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("10.88.9.9"), Mask: net.CIDRMask(32, 32)}})
	}); err != nil {
		t.Fatal(err)
	}
	b.eventually("the connection is counted", func() bool { return a.older.total() == 1 && b.note(p, annotationOlder) == "1" })
	b.eventually("ztunnel is told", func() bool { return b.zt.added() > adds })
	if err := b.talk(x, "192.0.2.7:80").says("captured again"); err != nil {
		t.Error(err)
	}
}

// TestMovedWhileBusy: an address or device that comes while a job is at work may
// have come after the job looked. The pod is looked at again soon, not only when
// it is next checked for drift.
func TestMovedWhileBusy(t *testing.T) {
	l := &loop{a: &Agent{cfg: Config{DriftEvery: time.Hour}}, intended: map[string]enroll.IntendedPod{}}
	e := &entry{uid: "p", busy: true}
	l.pods = map[string]*entry{"p": e}
	enrolled := &result{uid: "p", step: stepEnrol, held: &held{containerID: "c"}}

	l.handle(t.Context(), event{moved: "p"})
	l.finish(enrolled)
	if in := time.Until(e.look); in > moveSettle {
		t.Errorf("looked at in %s", in)
	}
	e.busy = true
	l.finish(enrolled)
	if in := time.Until(e.look); in < time.Minute {
		t.Errorf("with nothing new looked at in %s", in)
	}
}
