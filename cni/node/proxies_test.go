package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

func TestCgroupDir(t *testing.T) {
	const hybrid = "241 209 0:38 / /sys/fs/cgroup/unified rw,relatime shared:70 - cgroup2 cgroup rw\n"
	const unified = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	const part = "30 23 0:26 /node /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	const v1 = "31 23 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
	const outer = "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n" // as seen from a container of that node
	for _, c := range []struct{ name, cgroup, mounts, want, err string }{
		{"hybrid", "8:pids:/x\n0::/kubepods/podA/c1\n", v1 + hybrid, "/sys/fs/cgroup/unified/kubepods/podA/c1", ""},
		{"unified", "0::/kubepods.slice/c.scope\n", unified, "/sys/fs/cgroup/kubepods.slice/c.scope", ""},
		{"part of the tree", "0::/node/kubepods/c\n", part, "/sys/fs/cgroup/kubepods/c", ""},
		{"a name that only begins alike", "0::/nodes/c\n", part, "", "not mounted"},
		{"v1 alone", "8:pids:/x\n", v1, "", "not in use"},
		{"root", "0::/\n", unified, "", "root cgroup"},
		{"private namespace", "0::/../../kubepods/c\n", unified, "", "private cgroup namespace"},
		{"of a container beside it", "0::/../../kubepods/c\n", outer, "/sys/fs/cgroup/kubepods/c", ""},
		{"above what is mounted", "0::/../../../c\n", outer, "", "private cgroup namespace"},
		{"not mounted", "0::/kubepods/c\n", v1, "", "not mounted"},
		{"empty", "", "", "", "not in use"},
	} {
		got, err := cgroupDir(c.cgroup, c.mounts)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v; want %q, %q", c.name, got, err, c.want, c.err)
		}
	}
}

func FuzzCgroupDir(f *testing.F) {
	f.Add("0::/kubepods/c\n", "241 209 0:38 / /sys/fs/cgroup/unified rw shared:70 - cgroup2 cgroup rw\n")
	f.Fuzz(func(t *testing.T, cgroup, mounts string) { _, _ = cgroupDir(cgroup, mounts) })
}

// pods records what they were told.
type pods struct {
	told [][]uint64
	err  error
}

func (p *pods) trust(ids []uint64) error {
	p.told = append(p.told, slices.Clone(ids))
	return p.err
}

func testProxies(p *pods, find func(int) (uint64, error)) *proxies {
	return &proxies{trust: p.trust, find: find, log: slog.New(slog.DiscardHandler)}
}

// TestProxiesByCgroup walks through what a node sees in its life. The socket
// of this process is asked for in the kernel.
func TestProxiesByCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace")
	}
	own := listenerCgroup(t)
	other := map[int]uint64{os.Getpid(): own, 10: own + 10, 11: own + 11, 12: own}
	find := func(pid int) (uint64, error) {
		if id, ok := other[pid]; ok {
			return id, nil
		}
		return 0, errors.New("no such process")
	}
	told := &pods{}
	p := testProxies(told, find)
	p.begin([]uint64{7})
	if got := p.list(); !slices.Equal(got, []uint64{7, own}) {
		t.Fatalf("at the start %v", got)
	}
	for range 2 { // it reconnects
		if err := p.admit(10); err != nil {
			t.Fatal(err)
		}
	}
	p.learn(5)
	want := []uint64{7, own, own + 10, 5}
	if got := p.list(); !slices.Equal(got, want) || len(told.told) != 2 || !slices.Equal(told.told[1], want) {
		t.Fatalf("%v, told %v; want %v", got, told.told, want)
	}
	for i := range uint64(2 * mostProxies) {
		p.learn(own + 100 + i)
	}
	if n := len(p.list()); n != mostProxies {
		t.Errorf("%d ids are kept, want %d", n, mostProxies)
	}
	// One that cannot be told ends it for all, for good.
	if err := p.admit(1 << 30); err == nil || !p.checking() {
		t.Errorf("a process that has ended was admitted (%v) or ended the check", err)
	}
	_, _ = p.admit(1), p.admit(11)
	if p.checking() || told.told[len(told.told)-1] != nil {
		t.Errorf("after an unknown ztunnel: %v, told %v", p.list(), told.told[len(told.told)-1])
	}

	for name, c := range map[string]struct {
		p  *proxies
		on bool
	}{
		"shared with ztunnel":      {testProxies(&pods{}, find), false},
		"pods cannot be told":      {testProxies(&pods{err: errors.New("full")}, find), false},
		"a folder that is another": {testProxies(&pods{}, func(int) (uint64, error) { return own + 1, nil }), false},
		"no cgroup v2":             {testProxies(&pods{}, func(int) (uint64, error) { return 0, errors.New("none") }), false},
	} {
		c.p.begin(nil)
		if name == "pods cannot be told" {
			_ = c.p.admit(11)
		} else {
			_ = c.p.admit(12)
		}
		if c.p.checking() != c.on {
			t.Errorf("%s: checking is %v", name, c.p.checking())
		}
	}
}

func listenerCgroup(t *testing.T) uint64 {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	l, err := redirect.Listen(ns, addrs{netip.AddrFrom4([4]byte{127, 0, 0, 1})})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	names, err := name(l)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := makers(ns, names)
	if err != nil || len(ids) != 1 {
		t.Skipf("the kernel does not tell a socket's cgroup: %v, %v", ids, err)
	}
	if ids, err := makers(ns, []enroll.IntendedSocket{{Cookie: 1}}); err != nil || len(ids) != 0 {
		t.Errorf("of nobody's listeners: %v, %v", ids, err)
	}
	return ids[0]
}
