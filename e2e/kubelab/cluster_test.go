package kubelab

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Init()
	os.Exit(m.Run())
}

func cache() string { return DefaultCache(os.Getenv("KUBELAB_CACHE"), os.Getenv("HOME")) }

// needLab skips where no cluster can be started, and says why.
func needLab(t *testing.T, apiOnly bool) {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster is not started in -short")
	}
	if err := Check(cache(), apiOnly); err != nil {
		t.Skip(err)
	}
}

type logWriter struct{ t *testing.T }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// start makes a cluster of a name of its own, which ends with the test.
func start(t *testing.T, o Options) *Cluster {
	t.Helper()
	needLab(t, o.APIOnly)
	o.Name = fmt.Sprintf("t%d-%s", os.Getpid(), strings.ToLower(strings.TrimPrefix(t.Name(), "Test")))
	o.Name = o.Name[:min(len(o.Name), 30)]
	o.Cache = cache()
	o.Logger = slog.New(slog.NewTextHandler(logWriter{t}, nil))
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// kubectl runs it to success; input, when there is some, is its standard input.
func kubectl(t *testing.T, c *Cluster, input string, args ...string) string {
	t.Helper()
	out, err := tryKubectl(t, c, input, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryKubectl(t *testing.T, c *Cluster, input string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.KubeBinary(), append([]string{"kubectl", "--cache-dir", t.TempDir()}, args...)...)
	cmd.Env = []string{"KUBECONFIG=" + c.Kubeconfig(), "HOME=/nonexistent"}
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// eventually waits for a state of the cluster for which there is no watch.
func eventually(t *testing.T, what string, done func() (string, bool)) {
	t.Helper()
	var last string
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	if poll(ctx, 100*time.Millisecond, func() (ok bool, err error) { last, ok = done(); return ok, nil }) != nil {
		t.Fatalf("waited four minutes for %s; last: %s", what, last)
	}
}

// footprint is what a cluster could leave on the host.
type footprint struct{ mounts, links, sysctls, cgroups []string }

func footprintOf(t *testing.T, mark string) footprint {
	t.Helper()
	var f footprint
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, mark) {
			f.mounts = append(f.mounts, line)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		f.links = append(f.links, l.Name)
	}
	for _, s := range sharedSysctls {
		v, err := readSysctl(s.name)
		if err != nil {
			t.Fatal(err)
		}
		f.sysctls = append(f.sysctls, s.name+"="+v)
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, mark) {
			f.cgroups = append(f.cgroups, path)
		}
		return nil
	})
	return f
}

// processesOf are all processes of the clusters' PID namespaces.
func processesOf(t *testing.T, nodes []*Node) []Process {
	t.Helper()
	spaces := map[string]bool{}
	for _, n := range nodes {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.PID()))
		if err != nil {
			t.Fatal(err)
		}
		spaces[ns] = true
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var out []Process
	for _, d := range dirs {
		var pid int
		if _, err := fmt.Sscan(filepath.Base(d), &pid); err != nil {
			continue
		}
		ns, err := os.Readlink(d + "/ns/pid")
		if err != nil || !spaces[ns] {
			continue
		}
		if p, err := processOf(pid); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func descriptors(t *testing.T) []string {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range d {
		// The one that lists has gone again.
		if target, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil {
			out = append(out, target)
		}
	}
	return out
}

// TestLeavesNothing starts and stops a cluster with a pod twice: the second run
// would meet what the first one left.
func TestLeavesNothing(t *testing.T) {
	needLab(t, false)
	mark := fmt.Sprintf("t%d-leavesnothing", os.Getpid())
	before, goroutines, fds := footprintOf(t, mark), runtime.NumGoroutine(), descriptors(t)
	shared := otherClusters(t)
	for range 2 {
		c := start(t, Options{Nodes: 1})
		kubectl(t, c, podManifest("left", "node1", "kubelab.local/app:1"), "create", "--validate=false", "-f", "-")
		kubectl(t, c, "", "wait", "--for=condition=Ready", "pod/left", "--timeout=4m")
		procs := processesOf(t, append(c.Nodes(), c.ControlPlane()))
		if len(procs) < 8 {
			t.Errorf("a running cluster has %d processes", len(procs))
		}
		if running := footprintOf(t, mark); len(running.mounts) > 0 || !slices.Equal(running.links, before.links) {
			t.Errorf("a running cluster shows on the host: mounts %v, links %v", running.mounts, running.links)
		}
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		for _, p := range procs {
			if p.Alive() {
				t.Errorf("process %d is still there", p.PID)
			}
		}
		if _, err := os.Stat(c.dir); err == nil {
			t.Errorf("%s is still there", c.dir)
		}
		after := footprintOf(t, mark)
		if shared || otherClusters(t) {
			// Sysctls are put back by the last cluster of the machine.
			after.sysctls = before.sysctls
		}
		if fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("left behind:\n%v\nbefore:\n%v", after, before)
		}
	}
	eventually(t, "goroutines and descriptors", func() (string, bool) {
		runtime.GC() // the forwarder's splice pipes are pooled until a collection
		g, d := runtime.NumGoroutine(), descriptors(t)
		return fmt.Sprintf("%d goroutines, before %d; descriptors %v, before %v", g, goroutines, d, fds), g <= goroutines && len(d) <= len(fds)
	})
}

func otherClusters(t *testing.T) bool {
	t.Helper()
	_, err := os.Stat(sysctlFile)
	return err == nil
}

func podManifest(name, node, image string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  serviceAccountName: default
  containers:
  - name: app
    image: %[3]s
    env: [{name: NODE, value: %[2]s}]
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: 8080}]}
`, name, node, image)
}

func TestAPIOnly(t *testing.T) {
	c := start(t, Options{APIOnly: true})
	var v struct {
		ServerVersion struct{ GitVersion string } `json:"serverVersion"`
	}
	if err := json.Unmarshal([]byte(kubectl(t, c, "", "version", "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	if v.ServerVersion.GitVersion != Version {
		t.Errorf("server is %q, want %q: clients compare versions", v.ServerVersion.GitVersion, Version)
	}
	kubectl(t, c, "", "create", "serviceaccount", "a")
	if token := kubectl(t, c, "", "create", "token", "a", "--audience=istio-ca"); strings.Count(token, ".") != 2 {
		t.Errorf("token %q", token)
	}
	if len(c.Nodes()) != 0 || c.ControlPlane().PID() == 0 {
		t.Error("API mode has a control plane and no nodes")
	}
}

// TestNodes shares one cluster between the cases: they differ in what they do to
// it, the last ones the most.
func TestNodes(t *testing.T) {
	c := start(t, Options{DNS: true, ShortTimers: true})
	kubectl(t, c, podManifest("one", "node1", "kubelab.local/app:1")+"---"+podManifest("two", "node2", "kubelab.local/app:1"), "create", "--validate=false", "-f", "-")
	kubectl(t, c, "", "wait", "--for=condition=Ready", "pod/one", "pod/two", "--timeout=4m")
	ask := func(from, to string) (string, bool) {
		out, err := tryKubectl(t, c, "", "exec", from, "--", "testapp", "get", "-timeout=10s", "http://"+to+"/")
		return out, err == nil
	}

	t.Run("reach each other by name across nodes", func(t *testing.T) {
		for from, to := range map[string]string{"one": "two", "two": "one"} {
			// Some 100 ms pass between Ready and the last proxy's rules.
			eventually(t, from+" reaching "+to, func() (string, bool) { return ask(from, to+".default.svc.cluster.local") })
			out, _ := ask(from, to)
			if !strings.Contains(out, "pod="+to) {
				t.Errorf("%s asked %s: %s", from, to, out)
			}
			ip := kubectl(t, c, "", "get", "pod", from, "-o", "jsonpath={.status.podIP}")
			if !strings.Contains(out, "client="+ip+":") {
				t.Errorf("the client's address %s is not kept: %s", ip, out)
			}
		}
	})
	t.Run("dial from a node", func(t *testing.T) {
		n, err := c.Node("node1")
		if err != nil {
			t.Fatal(err)
		}
		ip := kubectl(t, c, "", "get", "pod", "two", "-o", "jsonpath={.status.podIP}")
		conn, err := n.Dial(t.Context(), "tcp", ip+":9090")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if host, _, _ := net.SplitHostPort(conn.LocalAddr().String()); host != n.IP.String() {
			t.Errorf("dialled from %s, want %s", host, n.IP)
		}
	})
	t.Run("command in all namespaces", func(t *testing.T) {
		n, err := c.Node("node2")
		if err != nil {
			t.Fatal(err)
		}
		out, err := n.Command(t.Context(), "sh", "-c", "hostname; cat /proc/1/comm; ls /sys/fs/cgroup/unified >/dev/null && stat -fc %T /sys/fs/bpf").CombinedOutput()
		if err != nil || string(out) != "node2\ninit\nbpf_fs\n" {
			t.Errorf("%v: %q", err, out)
		}
	})
	t.Run("privileged daemon sees later pods", func(t *testing.T) { testDaemon(t, c) })
	t.Run("image of many architectures", func(t *testing.T) {
		path := manyArchitectures(t, "kubelab.local/many:1")
		for _, n := range c.Nodes() {
			if err := n.LoadImage(t.Context(), path); err != nil {
				t.Fatal(err)
			}
		}
		kubectl(t, c, podManifest("many", "node2", "kubelab.local/many:1"), "create", "--validate=false", "-f", "-")
		kubectl(t, c, "", "wait", "--for=condition=Ready", "pod/many", "--timeout=4m")
		kubectl(t, c, "", "delete", "pod/many", "service/many")
	})
	t.Run("capture", func(t *testing.T) { testCapture(t, c, ask) })
	t.Run("cut and heal", func(t *testing.T) {
		n, err := c.Node("node1")
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Cut(); err != nil {
			t.Fatal(err)
		}
		kubectl(t, c, "", "wait", "--for=condition=Ready=Unknown", "node/node1", "--timeout=4m")
		if err := n.Heal(); err != nil {
			t.Fatal(err)
		}
		kubectl(t, c, "", "wait", "--for=condition=Ready", "node/node1", "--timeout=4m")
	})
	t.Run("reboot", func(t *testing.T) {
		n, err := c.Node("node2")
		if err != nil {
			t.Fatal(err)
		}
		pid := n.PID()
		if err := n.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n.PID() == pid {
			t.Error("PID 1 is the same")
		}
		eventually(t, "the pod on the rebooted node", func() (string, bool) {
			// Its status is stale until the kubelet has looked: ask the pod itself.
			out, ok := ask("one", "two")
			restarts, _ := tryKubectl(t, c, "", "get", "pod", "two", "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
			return out + " restarts " + restarts, ok && restarts != "0"
		})
	})
}

const daemonManifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      hostNetwork: true
      hostPID: true
      terminationGracePeriodSeconds: 1
      containers:
      - name: agent
        image: kubelab.local/app:1
        args: [sleep]
        securityContext: {privileged: true}
        volumeMounts:
        - {name: netns, mountPath: /var/run/netns, mountPropagation: HostToContainer}
        - {name: bpf, mountPath: /sys/fs/bpf, mountPropagation: Bidirectional}
        - {name: cni, mountPath: /opt/cni/bin}
        - {name: conf, mountPath: /etc/cni/net.d}
        - {name: run, mountPath: /var/run/ambit}
      volumes:
      - {name: netns, hostPath: {path: /var/run/netns}}
      - {name: bpf, hostPath: {path: /sys/fs/bpf}}
      - {name: cni, hostPath: {path: /opt/cni/bin}}
      - {name: conf, hostPath: {path: /etc/cni/net.d}}
      - {name: run, hostPath: {path: /var/run/ambit, type: DirectoryOrCreate}}
`

// testDaemon is what a CNI agent needs of a node.
func testDaemon(t *testing.T, c *Cluster) {
	kubectl(t, c, daemonManifest, "create", "--validate=false", "-f", "-")
	kubectl(t, c, "", "rollout", "status", "daemonset/agent", "--timeout=4m")
	agent := kubectl(t, c, "", "get", "pod", "-l", "app=agent", "--field-selector=spec.nodeName=node1", "-o", "jsonpath={.items[0].metadata.name}")
	count := func() string {
		return kubectl(t, c, "", "exec", agent, "--", "sh", "-c", "ls /var/run/netns | wc -l")
	}
	before := count()
	kubectl(t, c, podManifest("later", "node1", "kubelab.local/app:1"), "create", "--validate=false", "-f", "-")
	kubectl(t, c, "", "wait", "--for=condition=Ready", "pod/later", "--timeout=4m")
	if after := count(); after == before {
		t.Errorf("the namespace of a later pod does not show: %s before and after", before)
	}
	// A file cannot be made in a bpffs, a folder can.
	kubectl(t, c, "", "exec", agent, "--", "sh", "-c", "mkdir /sys/fs/bpf/ambit && rmdir /sys/fs/bpf/ambit && touch /opt/cni/bin/x && rm /opt/cni/bin/x && touch /etc/cni/net.d/x && rm /etc/cni/net.d/x && touch /var/run/ambit/x && test -d /proc/1/root/opt/k8s")
	// Disks of the host are not in reach of a privileged pod.
	if out := kubectl(t, c, "", "exec", agent, "--", "sh", "-c", "ls -l /dev | grep ^b | wc -l"); out != "0" {
		t.Errorf("a privileged pod sees %s block devices", out)
	}
	kubectl(t, c, "", "delete", "daemonset/agent", "pod/later", "service/later")
}

func testCapture(t *testing.T, c *Cluster, ask func(from, to string) (string, bool)) {
	path := filepath.Join(t.TempDir(), "out.pcap")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready, done := make(chan struct{}), make(chan error, 1)
	var n Captured
	go func() {
		var err error
		n, err = Capture(ctx, c.ControlPlane().NetNS(), f, func() { close(ready) })
		done <- err
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	if out, ok := ask("one", "two"); !ok {
		t.Error(out)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := uint64(countPackets(t, b)); got != n.Packets {
		t.Errorf("%d packets in the file, %d counted", got, n.Packets)
	}
	// The request crosses the link once: it must be seen once, not at both ports.
	if got := strings.Count(string(b), "GET / HTTP/1.1\r\nHost: two\r\n"); got != 1 {
		t.Errorf("the request is %d times in the capture", got)
	}
	if n.Lost != 0 {
		t.Errorf("%d packets lost", n.Lost)
	}
}

// TestSupervisorKilled drives the program: its supervisor is killed without a
// chance to clean up, and "down" does.
func TestSupervisorKilled(t *testing.T) {
	needLab(t, false)
	dir := t.TempDir()
	bin := filepath.Join(dir, "kubelab")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/kubelab")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	name := fmt.Sprintf("t%d-killed", os.Getpid())
	before := footprintOf(t, name)
	shared := otherClusters(t)
	run := func(cmd string, args ...string) (string, error) {
		c := exec.CommandContext(t.Context(), bin, append([]string{cmd, "--name", name, "--cache", filepath.Dir(cache())}, args...)...)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() {
		if _, err := os.Stat(DefaultState(name)); err == nil {
			_ = exec.Command(bin, "down", "--name", name).Run()
		}
	})
	if out, err := run("up", "--nodes=1", "--dns=false"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	if out, err := run("up", "--nodes=1"); err == nil || !strings.Contains(out, "exists already") {
		t.Errorf("a second up of the same name: %v\n%s", err, out)
	}
	s, err := ReadState(DefaultState(name))
	if err != nil {
		t.Fatal(err)
	}
	sup, err := os.FindProcess(s.Supervisor.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := sup.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the nodes to die with their supervisor", func() (string, bool) {
		for n, h := range s.Nodes {
			if h.Alive() {
				return n + " lives", false
			}
		}
		return "", true
	})
	if out, err := run("status"); err == nil {
		t.Errorf("status of a crashed cluster says it is well: %s", out)
	}
	if out, err := run("down"); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	after := footprintOf(t, name)
	if shared || otherClusters(t) {
		after.sysctls = before.sysctls
	}
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("left behind:\n%v\nbefore:\n%v", after, before)
	}
	if out, err := run("down"); err != nil {
		t.Errorf("down twice: %v\n%s", err, out)
	}
}
