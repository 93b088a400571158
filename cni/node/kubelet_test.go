package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// TestTellKubelet is the decision alone.
//
//ambit:feature probe-kubelet-only probe-fallback-process
func TestTellKubelet(t *testing.T) {
	const own = 7
	failed := errors.New("not mounted")
	for _, c := range []struct {
		name  string
		found []candidate
		ids   []uint64
		why   string
		none  bool
	}{
		{"a unit of its own", []candidate{{pid: 1, cgroup: 30}}, []uint64{30}, "", false},
		{"listens twice", []candidate{{pid: 1, cgroup: 30}, {pid: 1, cgroup: 30}}, []uint64{30}, "", false},
		{"its helper has the socket as well", []candidate{{pid: 1, cgroup: 40}, {pid: 2, cgroup: 30}}, []uint64{30, 40}, "", false},
		{"nobody", nil, nil, "no kubelet listens on port 10250 of the node", true},
		{"a pod in the node's network has the port", []candidate{{pid: 1, cgroup: 30, pod: "a/b"}}, nil, "where pod a/b listens", true},
		{"a user has the port", []candidate{{pid: 9, uid: 1000, cgroup: 30}}, nil, "where process 9 of user 1000 listens", true},
		{"a pod beside the kubelet", []candidate{{pid: 1, cgroup: 30, pod: "a/b"}, {pid: 2, cgroup: 31}}, []uint64{31}, "", false},
		{"containers without cgroups", []candidate{{pid: 1, cgroup: own}}, nil, "cgroup of the node agent", false},
		{"no cgroup v2", []candidate{{pid: 1, err: failed}}, nil, "not mounted", false},
		{"one of two", []candidate{{pid: 1, err: failed}, {pid: 2, cgroup: 30}}, nil, "not mounted", false},
	} {
		ids, why, none := tell(DefaultKubeletPort, c.found, own)
		if !slices.Equal(ids, c.ids) || none != c.none || (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%s: %v, %q, %v; want %v, %q, %v", c.name, ids, why, none, c.ids, c.why, c.none)
		}
	}
}

// listenVariable makes a copy of the test program listen until its input ends.
const listenVariable = "AMBIT_TEST_LISTEN"

func TestMain(m *testing.M) {
	if socket := os.Getenv(foreignVariable); socket != "" {
		fmt.Fprintln(os.Stderr, "foreign ztunnel", os.Getenv(foreignName), foreignMain(socket, os.Getenv(foreignName)))
		return
	}
	address := os.Getenv(listenVariable)
	if address == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer l.Close()
	fmt.Println("listening")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// fakeKubelet is a process of the node that has the kubelet's port.
type fakeKubelet struct {
	*exec.Cmd
	stop func()
}

func startKubelet(t *testing.T, host *netns.NS, group *os.File, user uint32) *fakeKubelet {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{listenVariable + "=:" + strconv.Itoa(DefaultKubeletPort)}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd()), Credential: &syscall.Credential{Uid: user}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	k := &fakeKubelet{Cmd: cmd, stop: sync.OnceFunc(func() { in.Close(); _ = cmd.Wait() })}
	t.Cleanup(k.stop)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "listening\n" {
		t.Fatalf("the kubelet's stand-in said %q, %v", line, err)
	}
	return k
}

func cgroupOfTest(t *testing.T, name string) (*os.File, uint64) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes cgroups and network namespaces: needs root")
	}
	root := "/sys/fs/cgroup/unified"
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		root = "/sys/fs/cgroup"
	}
	dir := filepath.Join(root, fmt.Sprintf("ambit-node-test-%d-%s", os.Getpid(), name))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		// It stays busy for a moment after its last process was collected.
		err := unix.Rmdir(dir)
		for end := time.Now().Add(patience); err != nil && time.Now().Before(end); {
			err = unix.Rmdir(dir)
		}
		if err != nil {
			t.Errorf("cgroup %s is left: %v", dir, err)
		}
	})
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return f, st.Ino
}

// again makes a cgroup anew, under the same name.
func again(t *testing.T, dir string) (*os.File, uint64) {
	t.Helper()
	err := unix.Rmdir(dir)
	for end := time.Now().Add(patience); err != nil && time.Now().Before(end); {
		err = unix.Rmdir(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return f, st.Ino
}

// TestKubeletIsFollowed runs processes that have the kubelet's port, in real
// cgroups, through what a node sees: restarts, moves, and somebody else who
// takes the port while the kubelet is away.
//
//ambit:feature probe-kubelet-restart probe-fallback-process
func TestKubeletIsFollowed(t *testing.T) {
	groups := map[string]*os.File{}
	ids := map[string]uint64{}
	for _, n := range []string{"a", "b", "c", "pod"} {
		groups[n], ids[n] = cgroupOfTest(t, n)
	}
	host := newNS(t)
	told := &pods{}
	pod := map[int]bool{}
	changes := 0
	k := &kubelet{
		port: DefaultKubeletPort, listeners: host.Listeners,
		find:   func(inode uint32) []int { return holders("/proc", inode) },
		follow: func(pid int) (*process, error) { return openProcess(pid, HostRoot("/").cgroupOf) },
		podOf: func(pid int) string {
			if pod[pid] {
				return "demo/thief"
			}
			return ""
		},
		folder: HostRoot("/").cgroupPath, idOf: HostRoot("/").cgroupID,
		trust: told.trust, changed: func(context.Context) { changes++ },
		self: func() (uint64, error) { return 1 << 40, nil },
		log:  slog.New(slog.DiscardHandler),
	}
	t.Cleanup(k.forget)
	ctx := t.Context()
	want := func(when string, group ...string) {
		t.Helper()
		k.step(ctx)
		var all []uint64
		for _, g := range group {
			all = append(all, ids[g])
		}
		if got := k.list(); !slices.Equal(got, all) {
			t.Fatalf("%s: probes from %v, want %v (%s)", when, got, all, k.why)
		}
		if last := told.told[len(told.told)-1]; !slices.Equal(last, all) {
			t.Fatalf("%s: pods were told %v, want %v", when, last, all)
		}
	}

	// An agent that starts while the kubelet is away goes by the one before.
	k.begin([]uint64{ids["c"]})
	want("kubelet away, known from before", "c")
	k.begin(nil)
	want("no kubelet ever seen")
	if why := k.open(); !strings.Contains(why, "no kubelet listens on port 10250") {
		t.Errorf("said %q", why)
	}

	first := startKubelet(t, host, groups["a"], 0)
	want("kubelet started", "a")
	if why := k.open(); why != "" {
		t.Errorf("the kubelet is told, and status is still %q", why)
	}
	n := len(told.told)
	for range 3 {
		want("nothing happened", "a")
	}
	if len(told.told) != n {
		t.Errorf("pods were told %d times though nothing changed", len(told.told)-n)
	}

	// It moves itself, as with --kubelet-cgroups.
	if err := os.WriteFile(filepath.Join(groups["b"].Name(), "cgroup.procs"), []byte(strconv.Itoa(first.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	want("kubelet moved", "b")

	// While it is away nobody is let in instead of it.
	first.stop()
	want("kubelet ended", "b")
	thief := startKubelet(t, host, groups["pod"], 0)
	pod[thief.Process.Pid] = true
	want("a pod in the node's network took the port", "b")
	thief.stop()
	thief = startKubelet(t, host, groups["c"], 65534)
	want("another user took the port", "b")
	thief.stop()
	second := startKubelet(t, host, groups["c"], 0)
	want("kubelet is back in a new cgroup", "c")

	// Its unit is started again: the cgroup is there before anybody listens.
	second.stop()
	want("kubelet ended again", "c")
	before := ids["c"]
	groups["c"], ids["c"] = again(t, groups["c"].Name())
	k.step(ctx)
	if got := k.list(); !slices.Equal(got, []uint64{before, ids["c"]}) {
		t.Fatalf("probes from %v while the kubelet starts, want those of the old %d and of the new %d", got, before, ids["c"])
	}
	second = startKubelet(t, host, groups["c"], 0)
	want("kubelet of a unit is back", "c")

	// Pods that could not be told are told again.
	second.stop()
	startKubelet(t, host, groups["a"], 0)
	told.err = errors.New("disk full")
	k.step(ctx)
	if got := k.list(); !slices.Equal(got, []uint64{ids["c"]}) {
		t.Errorf("kept %v although pods do not know it", got)
	}
	told.err = nil
	want("pods can be told again", "a")

	// One that stays in the root cgroup cannot be told from anybody.
	k.self = func() (uint64, error) { return ids["a"], nil }
	k.forget()
	want("containers have no cgroup of their own")
	if !strings.Contains(k.why, "node agent") {
		t.Errorf("why: %s", k.why)
	}
	if changes == 0 {
		t.Error("nothing was kept for the next agent")
	}
}

// TestProcessCgroup: the kernel's answer and that by paths are the same.
//
//ambit:feature probe-kubelet-only
func TestProcessCgroup(t *testing.T) {
	group, id := cgroupOfTest(t, "one")
	k := startKubelet(t, newNS(t), group, 0)
	slow := func(pid int) (uint64, error) { return HostRoot("/").cgroupOf(pid) }
	p, err := openProcess(k.Process.Pid, slow)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for name, ask := range map[string]func() (uint64, error){
		"process": p.cgroup,
		"paths":   func() (uint64, error) { return slow(k.Process.Pid) },
	} {
		if got, err := ask(); err != nil || got != id {
			t.Errorf("by %s: %d, %v; the folder is %d", name, got, err, id)
		}
	}
	if got, err := cgroupByPidfd(p.fd); !errors.Is(err, errors.ErrUnsupported) && (err != nil || got != id) {
		t.Errorf("by descriptor: %d, %v; the folder is %d", got, err, id)
	}
	k.stop()
	if id, err := p.cgroup(); err == nil || p.alive() {
		t.Errorf("a process that has ended is in cgroup %d", id)
	}
	if _, err := openProcess(k.Process.Pid, slow); err == nil {
		t.Error("a process that has ended was opened")
	}
	self, err := openProcess(os.Getpid(), slow)
	if err != nil {
		t.Fatal(err)
	}
	defer self.close()
	if content, err := cgroupFile(os.Getpid()); err == nil && strings.HasSuffix(content, "0::/\n") {
		if id, err := self.cgroup(); err == nil {
			t.Errorf("the root cgroup passes for one of its own: %d", id)
		}
	}
}
