package redirect

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// dialVariable makes a copy of the test program dial once and say what it read.
const dialVariable = "AMBIT_TEST_DIAL"

func dialAsAsked() int {
	c, err := net.DialTimeout("tcp", os.Getenv(dialVariable), patience)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		var line string
		if line, err = bufio.NewReader(c).ReadString('\n'); err == nil {
			fmt.Print(line)
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// group makes a cgroup of the test's own.
func group(t *testing.T, name string) (*os.File, uint64) {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(cgroupRoot(t), fmt.Sprintf("ambit-test-%d-%s", os.Getpid(), name))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		// It stays busy until its last process has been collected.
		eventually(t, "cgroup "+name+" is empty", func() bool { return unix.Rmdir(dir) == nil })
	})
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, cgroupID(t, dir)
}

// dialFromGroup has a process of the cgroup dial, and returns who answered.
func dialFromGroup(t *testing.T, ns *netns.NS, group *os.File, to netip.AddrPort) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), dialVariable+"="+to.String())
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	within(t, ns, cmd.Start) // the thread's namespace is the child's
	if err := cmd.Wait(); err != nil {
		t.Fatalf("dial %s from cgroup %s: %v: %s", to, filepath.Base(group.Name()), err, errs.String())
	}
	who, _, _ := strings.Cut(out.String(), " ")
	return who
}

// TestProbesOfTheKubeletAlone has real processes in real cgroups of the node: the
// kubelet's reaches the probe port, a neighbour with the same address does not.
//
//ambit:feature probe-kubelet-only probe-port-only
func TestProbesOfTheKubeletAlone(t *testing.T) {
	kubelet, kubeletID := group(t, "kubelet")
	other, otherID := group(t, "other")
	c := prepareCaptured(t, func(_ *Options, cfg *Config) {
		cfg.ProbePorts = []uint16{8080}
		cfg.ProbeCgroups = []uint64{kubeletID}
	})
	c.cfg.Host = c.wire
	startProxy(t, c.pod, c.cfg.Listeners)
	startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
	startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 9090))
	c.set(t)
	want := func(when, ofKubelet, ofOther string) {
		t.Helper()
		for _, a := range []netip.Addr{podAddr4, podAddr6} {
			if got := dialFromGroup(t, c.wire, kubelet, at(a, 8080)); got != ofKubelet {
				t.Errorf("%s: the kubelet at %s was answered by %s, want %s", when, a, got, ofKubelet)
			}
			if got := dialFromGroup(t, c.wire, other, at(a, 8080)); got != ofOther {
				t.Errorf("%s: another process of the node at %s was answered by %s, want %s", when, a, got, ofOther)
			}
		}
		if got := dialFromGroup(t, c.wire, kubelet, at(podAddr4, 9090)); got != "inbound" {
			t.Errorf("%s: the kubelet at a port without a probe was answered by %s", when, got)
		}
		if err := c.r.Check(c.cfg); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	want("at first", "app", "inbound")

	// The kubelet is in a new cgroup after a restart.
	if err := c.r.TrustProbers([]uint64{otherID}); err != nil {
		t.Fatal(err)
	}
	if err := c.r.Check(c.cfg); err == nil || !strings.Contains(err.Error(), "probing cgroups") {
		t.Errorf("Check of a pod that knows another kubelet: %v", err)
	}
	c.cfg.ProbeCgroups = []uint64{otherID}
	want("after the kubelet's cgroup changed", "inbound", "app")

	// It cannot be told any more, and again.
	if err := c.r.TrustProbers(nil); err != nil {
		t.Fatal(err)
	}
	c.cfg.ProbeCgroups = nil
	want("while the kubelet is not told", "app", "app")
	c.set(t)
	want("and after a repair", "app", "app")
	if err := c.r.TrustProbers([]uint64{kubeletID}); err != nil {
		t.Fatal(err)
	}
	c.cfg.ProbeCgroups = []uint64{kubeletID}
	want("when it is told again", "app", "inbound")
}

// TestStampOutlivesTheAgent: a new agent finds the stamp and keeps it, so that
// no probe under way meets a pod that expects another. It need not change: who
// has learnt it cannot use it, as "forged" in TestProbesPassByStamp shows.
//
//ambit:feature probe-restart
func TestStampOutlivesTheAgent(t *testing.T) {
	c := prepareCaptured(t, func(_ *Options, cfg *Config) { cfg.ProbePorts = []uint16{8080} })
	c.cfg.Host = c.wire
	startProxy(t, c.pod, c.cfg.Listeners)
	startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
	c.set(t)
	stamp := func() [6]uint8 {
		t.Helper()
		sw, err := readSwitches(filepath.Join(c.r.opt.PinRoot, c.cfg.ContainerID))
		if err != nil {
			t.Fatal(err)
		}
		return sw.Stamp
	}
	first := stamp()
	if first == ([6]uint8{}) || first[0]&3 != 2 {
		t.Fatalf("the stamp %x is not a locally administered unicast address", first)
	}
	open := dial(t, c.wire, at(podAddr4, 8080))
	open.expect(t, "app", wireAddr4, at(podAddr4, 8080))
	for range 3 {
		r, err := New(c.r.opt)
		if err != nil {
			t.Fatal(err)
		}
		c.r = r
		c.set(t)
		if now := stamp(); now != first {
			t.Errorf("the stamp was %x and is %x", first, now)
		}
		open.ping(t, "a probe under way")
		dial(t, c.wire, at(podAddr4, 8080)).expect(t, "app", wireAddr4, at(podAddr4, 8080))
	}
}

// TestStampsDiffer: what one pod sees of its probes says nothing of another's.
//
//ambit:feature probe-forged
func TestStampsDiffer(t *testing.T) {
	var stamps [][6]uint8
	for range 2 {
		c := prepareCaptured(t, func(_ *Options, cfg *Config) { cfg.ProbePorts = []uint16{8080} })
		c.cfg.Host = c.wire
		c.set(t)
		sw, err := readSwitches(filepath.Join(c.r.opt.PinRoot, c.cfg.ContainerID))
		if err != nil {
			t.Fatal(err)
		}
		stamps = append(stamps, sw.Stamp)
	}
	if stamps[0] == stamps[1] {
		t.Errorf("two pods have the stamp %x", stamps[0])
	}
}

// onMacvlan makes a pod and a neighbour with a macvlan each, on a card of the
// node, and gives the node a macvlan beside them: without one it cannot reach
// them at all (the kernel keeps a macvlan and the device below it apart).
func onMacvlan(t *testing.T) *topology {
	t.Helper()
	needRoot(t)
	n := &topology{pod: newNS(t), peer: newNS(t), wire: newNS(t)}
	within(t, n.wire, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "card"}, PeerName: "cable"}); err != nil {
			return err
		}
		return errors.Join(up("card"), up("cable"))
	})
	for _, end := range []struct {
		ns    *netns.NS
		name  string
		addrs []netip.Addr
	}{
		{n.wire, "host", []netip.Addr{wireAddr4, wireAddr6}},
		{n.pod, "eth0", []netip.Addr{podAddr4, podAddr6}},
		{n.peer, "eth0", []netip.Addr{peerAddr4, peerAddr6}},
	} {
		within(t, n.wire, func() error {
			card, err := netlink.LinkByName("card")
			if err != nil {
				return err
			}
			l := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: end.name, ParentIndex: card.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			if end.ns == n.wire {
				return nil
			}
			return withFd(end.ns.File(), func(fd int) error { return netlink.LinkSetNsFd(l, fd) })
		})
		within(t, end.ns, func() error { return up(end.name, end.addrs...) })
	}
	return n
}

// TestProbesOverMacvlan: no device of the node leads to the pod, so probes pass
// by the very address from which the node dials it, on the probe port alone.
//
//ambit:feature probe-fallback-address
func TestProbesOverMacvlan(t *testing.T) {
	for _, beside := range []string{"", "a veth for something else"} {
		t.Run("beside "+beside, func(t *testing.T) {
			n := onMacvlan(t)
			if beside != "" {
				within(t, n.wire, func() error {
					v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vother"}, PeerName: "vother-pod"}
					if err := netlink.LinkAdd(v); err != nil {
						return err
					}
					end, err := netlink.LinkByName("vother-pod")
					if err != nil {
						return err
					}
					return errors.Join(withFd(n.pod.File(), func(fd int) error { return netlink.LinkSetNsFd(end, fd) }), netlink.LinkSetUp(v))
				})
				within(t, n.pod, func() error { return up("vother-pod") })
			}
			r, err := New(Options{PinRoot: pinRoot(t)})
			if err != nil {
				t.Fatal(err)
			}
			cfg := Config{ContainerID: "c0ffee", UID: "uid-1", NS: n.pod, Addrs: []netip.Addr{podAddr4, podAddr6},
				Host: n.wire, ProbePorts: []uint16{8080}}
			if cfg.Listeners, err = Listen(n.pod, cfg.Addrs); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cfg.Listeners.Close() })
			c := &captured{topology: n, r: r, cfg: cfg}
			startProxy(t, c.pod, c.cfg.Listeners)
			startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
			startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 9090))

			// Nothing to tell probes by: refused, and nothing is captured.
			if err := r.Set(c.cfg); !errors.Is(err, ErrProbes) {
				t.Fatalf("a pod whose probes cannot be told was captured: %v", err)
			}
			dial(t, c.peer, at(podAddr4, 8080)).expect(t, "app", peerAddr4, at(podAddr4, 8080))

			if c.cfg.ProbeSources, err = Sources(n.wire, c.cfg.Addrs); err != nil {
				t.Fatal(err)
			}
			if want := []netip.Prefix{netip.PrefixFrom(wireAddr4, 32), netip.PrefixFrom(wireAddr6, 128)}; !slices.Equal(c.cfg.ProbeSources, want) {
				t.Fatalf("the node dials the pod from %v, want %v", c.cfg.ProbeSources, want)
			}
			c.set(t)
			if by, err := r.Probing(c.cfg.ContainerID, c.cfg.ProbePorts); by != ProbesBySource || err != nil {
				t.Errorf("probes are told by %q, %v", by, err)
			}
			for _, f := range []struct{ pod, node, peer netip.Addr }{{podAddr4, wireAddr4, peerAddr4}, {podAddr6, wireAddr6, peerAddr6}} {
				dial(t, c.wire, at(f.pod, 8080)).expect(t, "app", f.node, at(f.pod, 8080))
				dial(t, c.wire, at(f.pod, 9090)).expect(t, "inbound", f.node, at(f.pod, 9090))
				dial(t, c.peer, at(f.pod, 8080)).expect(t, "inbound", f.peer, at(f.pod, 8080))
			}
			if err := r.Check(c.cfg); err != nil {
				t.Error(err)
			}
			c.cfg.ProbeSources = c.cfg.ProbeSources[:1]
			if err := r.Check(c.cfg); err == nil || !strings.Contains(err.Error(), "probe sources") {
				t.Errorf("Check of a pod that takes probes from another address: %v", err)
			}
		})
	}
}

// TestProbing says it for a veth, and without probes. A node that does not
// reach the pod has no source.
func TestProbing(t *testing.T) {
	c := prepareCaptured(t, func(_ *Options, cfg *Config) { cfg.ProbePorts = []uint16{8080} })
	c.cfg.Host = c.wire
	c.set(t)
	if by, err := c.r.Probing(c.cfg.ContainerID, c.cfg.ProbePorts); by != ProbesByStamp || err != nil {
		t.Errorf("probes over a veth are told by %q, %v", by, err)
	}
	if by, err := c.r.Probing("nobody", nil); by != NoProbes || err != nil {
		t.Errorf("without probes: %q, %v", by, err)
	}
	if _, err := c.r.Probing("nobody", c.cfg.ProbePorts); err == nil {
		t.Error("of a pod that is not captured there was an answer")
	}
	if from, err := Sources(newNS(t), c.cfg.Addrs); len(from) != 0 || err != nil {
		t.Errorf("a node without a route dials from %v, %v", from, err)
	}
	c.cfg.ProbePorts = nil
	for p := range uint16(65) {
		c.cfg.ProbePorts = append(c.cfg.ProbePorts, 1000+p)
	}
	if err := c.r.Set(c.cfg); err == nil || !strings.Contains(err.Error(), "65 ports") {
		t.Errorf("more probe ports than there is room for: %v", err)
	}
}
