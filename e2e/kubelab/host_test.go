package kubelab

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestHierarchyMountPoint(t *testing.T) {
	const hybrid = `30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
33 30 0:29 /outer /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
`
	own := parseCgroups("5:name=systemd:/\n4:memory:/outer/me\n3:cpuset:/\n2:cpu,cpuacct:/a:b\n1:pids:/\n0::/\nnonsense\n")
	want := map[string]struct {
		path, point, root string
		ok                bool
	}{
		"name=systemd": {"/", "/sys/fs/cgroup/systemd", "/", true},
		"memory":       {"/outer/me", "/sys/fs/cgroup/memory", "/outer", true},
		"cpuset":       {"/", "/sys/fs/cgroup/cpuset", "/", true},
		"cpu,cpuacct":  {"/a:b", "/sys/fs/cgroup/cpu,cpuacct", "/", true},
		"pids":         {"/", "", "", false},
		"":             {"/", "/sys/fs/cgroup/unified", "/", true},
	}
	if len(own) != len(want) {
		t.Fatalf("%d hierarchies", len(own))
	}
	for _, h := range own {
		w := want[h.Controller]
		point, root, ok := h.mountPoint(hybrid)
		if h.Path != w.path || point != w.point || root != w.root || ok != w.ok {
			t.Errorf("%q: path %q, at %q root %q %t; want %+v", h.Controller, h.Path, point, root, ok, w)
		}
	}
}

func TestOptionsValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		o    Options
		want []string
	}{
		"defaults": {Options{}, nil},
		"all wrong": {Options{Name: "A_b", Nodes: 99, ProxyMode: "ipvs", State: "relative"},
			[]string{"name", "99 nodes", "ipvs", "absolute"}},
		"deep state": {Options{State: "/" + strings.Repeat("x", 120)}, []string{"control socket"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.o.withDefaults().validate()
			if (err == nil) != (len(tc.want) == 0) {
				t.Fatal(err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v does not name %q", err, w)
				}
			}
		})
	}
}

// TestProcessIdentity: a recorded process is alive until it ends, and a reused
// PID with another start time is another process.
func TestProcessIdentity(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := processOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Alive() {
		t.Error("a running process is not alive")
	}
	if (Process{PID: p.PID, Start: p.Start + 1}).Alive() {
		t.Error("another process under the same number is taken for the old one")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.end(dialTimeout); err != nil { // a zombie: nobody has collected it
		t.Error(err)
	}
	_ = cmd.Wait()
	if p.Alive() || (Process{}).Alive() {
		t.Error("an ended process is alive")
	}
}

// TestCleanRefusesMounts: a folder with something mounted in it is not emptied.
func TestRemoveTreeRefusesMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	in := exec.Command("unshare", "--mount", "--propagation=private", "sh", "-c",
		"mkdir "+dir+"/m && mount -t tmpfs x "+dir+"/m && touch "+dir+"/m/keep && KUBELAB_TEST_TREE="+dir+" "+os.Args[0]+" -test.run=TestRemoveTreeInside -test.v && test -e "+dir+"/m/keep")
	if out, err := in.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestRemoveTreeInside is the inner half of the test above.
func TestRemoveTreeInside(t *testing.T) {
	dir := os.Getenv("KUBELAB_TEST_TREE")
	if dir == "" {
		t.Skip("run by TestRemoveTreeRefusesMounts")
	}
	if err := removeTree(dir); err == nil || !strings.Contains(err.Error(), "still mounted") {
		t.Errorf("error %v", err)
	}
}

func TestCheckNamesMissingBinary(t *testing.T) {
	err := Check(t.TempDir(), true)
	if err == nil {
		t.Fatal("an empty cache will do")
	}
	if os.Geteuid() == 0 && !strings.Contains(err.Error(), "kubelab build") {
		t.Error(err)
	}
}
