package redirect

import (
	"net/netip"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
)

// strangersNS is a network namespace that belongs to a user namespace of its
// own, as a pod with hostUsers: false has it: its root is nobody here.
func strangersNS(t testing.TB) *netns.NS {
	t.Helper()
	needRoot(t)
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}},
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net")
	in.Close()
	if e := cmd.Wait(); err == nil {
		err = e
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	within(t, ns, func() error { return up("lo") })
	return ns
}

// TestUserNamespace: everything capture does in a pod's network namespace works
// when that belongs to another user namespace: routes and sysctl, listeners with
// mark and foreign addresses, programs, the proof and the proxy's own sockets.
//
//ambit:feature enrol-user-namespace
func TestUserNamespace(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		n := newTopologyOf(t, strangersNS(t))
		opt := Options{PinRoot: pinRoot(t)}
		cfg := Config{ContainerID: "c0ffee", UID: "uid-1", NS: n.pod, Addrs: []netip.Addr{podAddr4, podAddr6}}
		for _, change := range changes {
			change(&opt, &cfg)
		}
		r, err := New(opt)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Listeners, err = Listen(n.pod, cfg.Addrs); err != nil {
			t.Fatal(err)
		}
		defer cfg.Listeners.Close()
		c := &captured{topology: n, r: r, cfg: cfg}
		c.proxy = startProxy(t, c.pod, c.cfg.Listeners)
		c.set(t)
		if err := c.r.Check(c.cfg); err != nil {
			t.Error(err)
		}
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		for _, f := range bothFamilies {
			dial(t, c.pod, at(f.vip, 80)).expect(t, "outbound", f.pod, at(f.vip, 80))
			in := dial(t, c.peer, at(f.pod, 8080))
			in.expect(t, "inbound", f.peer, at(f.pod, 8080))
			in.expect(t, "app", f.peer, at(f.pod, 8080))
			dial(t, c.peer, at(f.pod, HBONEPort)).expect(t, "hbone", f.peer, at(f.pod, HBONEPort))
		}
	})
}
