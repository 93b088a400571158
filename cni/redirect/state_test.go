package redirect

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// fingerprint is everything a needless Set would change.
func (c *captured) fingerprint(t *testing.T) string {
	t.Helper()
	var out []string
	dir, err := c.r.dir(c.cfg.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(dir, e.Name()), nil)
		if err != nil {
			out = append(out, e.Name())
			continue
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Name(), string(rune(info.ID)), string(rune(info.Program)))
		l.Close()
	}
	return strings.Join(out, " ")
}

func TestSetAgainChangesNothing(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		if err := c.r.Check(c.cfg); err != nil {
			t.Fatal(err)
		}
		before := c.fingerprint(t)
		c.set(t)
		if after := c.fingerprint(t); after != before {
			t.Fatalf("pins changed:\n%s\n%s", before, after)
		}
		if err := c.r.Check(c.cfg); err != nil {
			t.Fatal(err)
		}
	})
}

// damage is what can happen to a captured pod; Check must see it, Set heal it.
//
//ambit:feature redirect-drift redirect-order
func TestDriftIsSeenAndRepaired(t *testing.T) {
	pinOf := func(c *captured, name string) string {
		return filepath.Join(c.r.opt.PinRoot, c.cfg.ContainerID, name)
	}
	eth0 := func() (netlink.Link, error) { return netlink.LinkByName("eth0") }
	damages := []struct {
		name, object string
		changes      []change
		harm         func(t *testing.T, c *captured)
	}{
		{"rule removed", "IPv4 rule", nil, func(t *testing.T, c *captured) {
			within(t, c.pod, func() error { return netlink.RuleDel(captureRule(unix.AF_INET)) })
		}},
		{"IPv6 route removed", "IPv6 route in table 100", nil, func(t *testing.T, c *captured) {
			within(t, c.pod, func() error { return netlink.RouteDel(captureRoute(unix.AF_INET6)) })
		}},
		{"accept_local off", "sysctl net.ipv4.conf.lo.accept_local", nil, func(t *testing.T, c *captured) {
			sysctl(t, c.pod, "net/ipv4/conf/lo/accept_local", "0")
		}},
		{"address added", "pod address 10.77.0.200", nil, func(t *testing.T, c *captured) {
			within(t, c.pod, func() error {
				l, err := eth0()
				if err != nil {
					return err
				}
				return addAddr(l, netip.MustParseAddr("10.77.0.200"))
			})
		}},
		{"device added", "egress on device eth1", nil, func(t *testing.T, c *captured) {
			within(t, c.pod, func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "eth2"})
			})
		}},
		{"egress link removed", "egress on device eth0", nil, func(t *testing.T, c *captured) {
			within(t, c.pod, func() error {
				l, err := eth0()
				if err != nil {
					return err
				}
				return os.Remove(directions()[0].pin(filepath.Dir(pinOf(c, "x")), l.Attrs().Index))
			})
		}},
		{"lookup link removed", "sk_lookup link", nil, func(t *testing.T, c *captured) {
			if err := os.Remove(pinOf(c, "lookup")); err != nil {
				t.Fatal(err)
			}
		}},
		{"all pins removed", "pins", nil, func(t *testing.T, c *captured) {
			if err := os.RemoveAll(pinOf(c, "")); err != nil {
				t.Fatal(err)
			}
		}},
		{"map unpinned", "pins", nil, func(t *testing.T, c *captured) {
			if err := os.Remove(pinOf(c, "hints")); err != nil {
				t.Fatal(err)
			}
		}},
		{"slot emptied", "listener slot 0", nil, func(t *testing.T, c *captured) {
			m, err := ebpf.LoadPinnedMap(pinOf(c, "listeners"), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Delete(uint32(0)); err != nil {
				t.Fatal(err)
			}
		}},
		{"switched off", "switches", nil, func(t *testing.T, c *captured) {
			if err := c.r.Drain(c.cfg.ContainerID); err != nil {
				t.Fatal(err)
			}
		}},
		{"other version", "programs", nil, func(t *testing.T, c *captured) {
			m, err := ebpf.LoadPinnedMap(pinOf(c, "settings"), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			var sw bpf.CaptureSwitches
			if err := m.Lookup(uint32(0), &sw); err != nil {
				t.Fatal(err)
			}
			sw.Version++
			if err := m.Put(uint32(0), sw); err != nil {
				t.Fatal(err)
			}
		}},
		{"another program in front", "ingress on device eth0", nil, func(t *testing.T, c *captured) {
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Close() })
			within(t, c.pod, func() error {
				l, err := eth0()
				if err != nil {
					return err
				}
				k, err := link.AttachTCX(link.TCXOptions{Interface: l.Attrs().Index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
				if err == nil {
					t.Cleanup(func() { k.Close() })
				}
				return err
			})
		}},
		{"another filter in front", "ingress on device eth0", []change{withClsact}, func(t *testing.T, c *captured) {
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}}) // TC_ACT_OK: ours is not asked
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Close() })
			within(t, c.pod, func() error {
				l, err := eth0()
				if err != nil {
					return err
				}
				var errs []error
				for _, d := range directions() {
					errs = append(errs, netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index,
						Parent: d.parent(), Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1}, Fd: p.FD(), Name: "other", DirectAction: true}))
				}
				return errors.Join(errs...)
			})
		}},
		{"clsact deleted", "ingress on device eth0", []change{withClsact}, func(t *testing.T, c *captured) {
			within(t, c.pod, func() error {
				l, err := eth0()
				if err != nil {
					return err
				}
				return netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index,
					Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact"})
			})
		}},
	}
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			c := newCaptured(t, d.changes...)
			d.harm(t, c)
			err := c.r.Check(c.cfg)
			var p *Problem
			if !errors.As(err, &p) || !strings.Contains(err.Error(), d.object+":") {
				t.Fatalf("check says %v, want a problem with %q", err, d.object)
			}
			c.set(t)
			if err := c.r.Check(c.cfg); err != nil {
				t.Fatalf("after repair: %v", err)
			}
			startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
			dial(t, c.pod, at(peerAddr4, 80)).expect(t, "outbound", podAddr4, at(peerAddr4, 80))
			dial(t, c.pod, at(peerAddr6, 80)).expect(t, "outbound", podAddr6, at(peerAddr6, 80))
			dial(t, c.peer, at(podAddr4, 8080)).expect(t, "inbound", peerAddr4, at(podAddr4, 8080))
		})
	}
}

//ambit:feature redirect-older redirect-update
func TestConnectionsSurviveAttachUpdateDrain(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := prepareCaptured(t, changes...)
		startProxy(t, c.pod, c.cfg.Listeners)
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		open := map[string]*client{}
		ping := func(when string) {
			t.Helper()
			for _, name := range slices.Sorted(maps.Keys(open)) {
				open[name].ping(t, name+" "+when)
			}
		}
		for _, f := range bothFamilies {
			open["old out "+f.name] = dial(t, c.pod, at(f.peer, 8080))
			open["old out "+f.name].expect(t, "peer", f.pod, at(f.peer, 8080))
			open["old in "+f.name] = dial(t, c.peer, at(f.pod, 8080))
			open["old in "+f.name].expect(t, "app", f.peer, at(f.pod, 8080))
		}
		c.set(t)
		ping("attached")
		for _, f := range bothFamilies {
			open["out "+f.name] = dial(t, c.pod, at(f.peer, 8080))
			open["out "+f.name].expect(t, "outbound", f.pod, at(f.peer, 8080))
			open["in "+f.name] = dial(t, c.peer, at(f.pod, 8080))
			open["in "+f.name].expect(t, "inbound", f.peer, at(f.pod, 8080))
			open["in "+f.name].expect(t, "app", f.peer, at(f.pod, 8080))
		}
		ping("captured")
		// Another version of the programs, by another agent.
		next, err := New(c.r.opt)
		if err != nil {
			t.Fatal(err)
		}
		next.version++
		if err := next.Set(c.cfg); err != nil {
			t.Fatal(err)
		}
		ping("updated")
		if err := next.Drain(c.cfg.ContainerID); err != nil {
			t.Fatal(err)
		}
		ping("drained")
		for _, f := range bothFamilies {
			dial(t, c.pod, at(f.peer, 8080)).expect(t, "peer", f.pod, at(f.peer, 8080))
			dial(t, c.peer, at(f.pod, 8080)).expect(t, "app", f.peer, at(f.pod, 8080))
		}
		ping("still drained")
		if err := next.Set(c.cfg); err != nil {
			t.Fatal(err)
		}
		dial(t, c.pod, at(peerAddr4, 8080)).expect(t, "outbound", podAddr4, at(peerAddr4, 8080))
		ping("captured again")
	})
}

//ambit:feature redirect-leaves-nothing
func TestClearLeavesNothing(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := newCaptured(t, changes...)
		for range 2 { // also when there is nothing left
			if err := c.r.Clear(c.cfg.ContainerID, c.pod); err != nil {
				t.Fatal(err)
			}
		}
		if entries, err := os.ReadDir(c.r.opt.PinRoot); err != nil || len(entries) != 0 {
			t.Fatalf("pins %v, error %v", entries, err)
		}
		within(t, c.pod, func() error {
			for _, family := range families() {
				rule, err1 := hasRule(family)
				route, err2 := hasRoute(family)
				if rule || route || err1 != nil || err2 != nil {
					t.Errorf("%s: rule %v route %v (%v, %v)", familyName(family), rule, route, err1, err2)
				}
			}
			for _, d := range directions() {
				list, err := link.QueryPrograms(link.QueryOptions{Target: 2, Attach: d.attach})
				if err == nil && len(list.Programs) != 0 {
					t.Errorf("%s still attached", d.name)
				}
			}
			return nil
		})
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		dial(t, c.pod, at(peerAddr4, 8080)).expect(t, "peer", podAddr4, at(peerAddr4, 8080))
	})
}

//ambit:feature redirect-leaves-nothing
func TestCollectAfterTheNamespaceIsGone(t *testing.T) {
	needRoot(t)
	r, err := New(Options{PinRoot: pinRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"dead", "alive"} {
		if err := r.Set(Config{ContainerID: id, UID: id, NS: ns}); err != nil {
			t.Fatal(err)
		}
	}
	ns.Close()
	gone, err := r.Collect(func(id string) bool { return id == "alive" })
	if err != nil || !slices.Equal(gone, []string{"dead"}) {
		t.Fatalf("collected %v, error %v", gone, err)
	}
	if err := r.Clear("alive", nil); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(r.opt.PinRoot)
	if err != nil || len(entries) != 0 {
		t.Fatalf("left %v, error %v", entries, err)
	}
}

func TestContainerIDMustBeAName(t *testing.T) {
	r := &Redirector{opt: Options{PinRoot: t.TempDir()}, calls: map[string]*call{}}
	for _, id := range []string{"", ".", "..", "a/b", "../../etc", "/"} {
		if err := r.Clear(id, nil); err == nil {
			t.Errorf("container ID %q was taken", id)
		}
	}
}

func TestProve(t *testing.T) {
	c := prepareCaptured(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addrs := []netip.Addr{podAddr4, podAddr6}
	short, stop := context.WithTimeout(ctx, unanswered)
	defer stop()
	if err := Prove(short, c.wire, c.pod, addrs); err == nil {
		t.Fatal("an uncaptured pod was proven")
	}
	// Somebody who answers everything is no proof.
	c.set(t)
	if err := Prove(ctx, c.wire, c.pod, addrs); err != nil {
		t.Fatal(err) // nobody accepts: the listeners alone are enough
	}
	if err := c.r.Drain(c.cfg.ContainerID); err != nil {
		t.Fatal(err)
	}
	startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), ProofPort))
	within(t, c.wire, func() error { // the node takes TEST-NET-1 for itself
		l, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return errors.Join(addAddr(l, ProofAddr4), addAddr(l, ProofAddr6))
	})
	startApp(t, c.wire, "wire", at(netip.IPv6Unspecified(), ProofPort))
	err := Prove(ctx, c.wire, c.pod, addrs)
	if err == nil || !strings.Contains(err.Error(), "not inside") || !strings.Contains(err.Error(), "not the proxy's") {
		t.Fatalf("accepted by others: %v", err)
	}
}

//ambit:feature redirect-late-address
func TestWatch(t *testing.T) {
	n := newTopology(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	type seen struct {
		addrs   []netip.Addr
		devices []string
	}
	events := make(chan seen, 16)
	done := make(chan error, 1)
	go func() {
		done <- Watch(ctx, n.pod, func(addrs []netip.Addr, devices []string) { events <- seen{addrs, devices} })
	}()
	wait := func(ok func(seen) bool) {
		t.Helper()
		for {
			select {
			case s := <-events:
				if ok(s) {
					return
				}
			case <-ctx.Done():
				t.Fatal("no such event")
			}
		}
	}
	wait(func(s seen) bool {
		return slices.Contains(s.addrs, podAddr4) && slices.Equal(s.devices, []string{"eth0"})
	})
	second := netip.MustParseAddr("10.77.0.200")
	within(t, n.pod, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return addAddr(l, second)
	})
	wait(func(s seen) bool { return slices.Contains(s.addrs, second) })
	within(t, n.pod, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "eth2"})
	})
	wait(func(s seen) bool { return slices.Contains(s.devices, "eth1") })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	needRoot(t)
	r, err := New(Options{PinRoot: pinRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	spaces := []*netns.NS{newNS(t), newNS(t)}
	var wg sync.WaitGroup
	for i := range 8 {
		cfg := Config{ContainerID: []string{"one", "two"}[i%2], UID: "u", NS: spaces[i%2]}
		wg.Go(func() {
			if err := errors.Join(r.Set(cfg), r.Check(cfg)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, id := range []string{"one", "two"} {
		if err := r.Clear(id, spaces[i]); err != nil {
			t.Error(err)
		}
	}
	if len(r.calls) != 0 {
		t.Errorf("%d containers are still locked", len(r.calls))
	}
}
