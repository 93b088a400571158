package redirect

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// ownCgroup is the id that sockets of this process carry.
func ownCgroup(t testing.TB) uint64 {
	t.Helper()
	needRoot(t)
	ns := newNS(t)
	f, err := ns.ListenTCP(at(netip.IPv4Unspecified(), 0), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := ns.Listeners()
	if err != nil || len(all) != 1 || all[0].Cgroup == 0 {
		t.Skipf("the kernel does not tell a socket's cgroup: %+v, %v", all, err)
	}
	return all[0].Cgroup
}

// TestTrustProxies: a new proxy is known to the pods before it has any, and a
// node that cannot tell its proxies any more goes back to the mark.
//
//ambit:feature redirect-mark
func TestTrustProxies(t *testing.T) {
	mine := ownCgroup(t)
	foreign := mine + 1<<40
	c := newCaptured(t, func(_ *Options, cfg *Config) { cfg.ProxyCgroups = []uint64{foreign} })
	startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
	marked := func(who string) {
		t.Helper()
		m, err := dialFor(t, c.pod, netip.AddrPort{}, at(peerAddr4, 8080), netns.SocketOptions{Mark: netns.Mark}, patience)
		if err != nil {
			t.Fatal(err)
		}
		m.expect(t, who, podAddr4, at(peerAddr4, 8080))
	}
	marked("outbound")
	if err := c.r.TrustProxies([]uint64{foreign, mine}); err != nil {
		t.Fatal(err)
	}
	marked("peer")
	c.set(t) // of an agent that has not heard of it
	marked("peer")

	// Generation after generation: the set never stands in the way.
	for i := range uint64(300) {
		if err := c.r.TrustProxies([]uint64{mine, foreign + i}); err != nil {
			t.Fatal(err)
		}
	}
	marked("peer")

	if err := c.r.TrustProxies(nil); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(c.r.opt.PinRoot, c.cfg.ContainerID, bpf.CaptureMapCgroups), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Delete(mine); err != nil {
		t.Fatal(err)
	}
	marked("peer")
	// A drifted set is noticed and repaired.
	c.cfg.ProxyCgroups = []uint64{mine}
	if err := c.r.Check(c.cfg); err == nil {
		t.Error("Check finds nothing wrong with a pod that trusts another set")
	}
	c.set(t)
	if err := c.r.Check(c.cfg); err != nil {
		t.Error(err)
	}
	marked("peer")
}
