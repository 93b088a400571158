package firstlight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

func TestMain(m *testing.M) {
	kubelab.Init()
	klog.SetLogger(logr.Discard()) // client-go tells of every stream that a test ends
	os.Exit(m.Run())
}

const (
	system    = "ambit-system"
	imageName = "ambit.local/ambit:dev"
	version   = "firstlight"
	// patience is how long a test waits for what should come soon; two
	// processors may be busy with another cluster.
	patience = 90 * time.Second
)

// lab is one cluster with Ambit on it. Its fields do not change after start.
type lab struct {
	cluster *kubelab.Cluster
	client  kubernetes.Interface
	dynamic dynamic.Interface
	rest    *rest.Config
	wire    *wire
	root    string // of the repository
	cli     string // the ambit program
	// conflist is the CNI configuration of each node as it was before Ambit.
	conflist map[string]string
}

// start makes the cluster and installs Ambit as the README says. The cluster
// ends with the test.
func start(t *testing.T) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster is not started in -short")
	}
	cache := kubelab.DefaultCache(os.Getenv("KUBELAB_CACHE"), os.Getenv("HOME"))
	if err := kubelab.Check(cache, false); err != nil {
		t.Skip(err)
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := &lab{root: root, cli: filepath.Join(dir, "ambit")}
	image := filepath.Join(dir, "ambit.tar")
	l.program(t, "go", "run", "./deploy/image", "-version", version, "-name", imageName, "-platforms", "linux/"+runtime.GOARCH, "-o", image)
	l.program(t, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", l.cli, "./cmd/ambit")

	name := fmt.Sprintf("firstlight-%d", os.Getpid())
	l.cluster, err = kubelab.Start(t.Context(), kubelab.Options{
		Name: name, Cache: cache, Nodes: 2, DNS: true, ShortTimers: true, Images: []string{image},
		Logger: slog.New(slog.NewTextHandler(logWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			l.dump(t, kubelab.DefaultState(name))
		}
	})
	if l.rest, err = clientcmd.BuildConfigFromFlags("", l.cluster.Kubeconfig()); err != nil {
		t.Fatal(err)
	}
	l.rest.QPS, l.rest.Burst = 100, 200
	if l.client, err = kubernetes.NewForConfig(l.rest); err != nil {
		t.Fatal(err)
	}
	if l.dynamic, err = dynamic.NewForConfig(l.rest); err != nil {
		t.Fatal(err)
	}
	l.wire = l.record(t)
	l.conflist = map[string]string{}
	for _, n := range l.cluster.Nodes() {
		l.conflist[n.Name] = l.readConflist(t, n.Name)
	}
	l.kubectl(t, "", "apply", "--server-side", "-k", filepath.Join(root, "deploy/crds"))
	l.kubectl(t, "", "apply", "-k", filepath.Join(root, "deploy/ambit"))
	out, code := l.ambit(t, "status", "--wait", "--timeout", "2m")
	if code != 0 {
		t.Fatalf("Ambit did not become healthy:\n%s", out)
	}
	return l
}

type logWriter struct{ t *testing.T }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// dump keeps what somebody wants to read after a failure.
func (l *lab) dump(t *testing.T, state string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := os.MkdirTemp("", "firstlight-")
	if err == nil {
		err = kubelab.Dump(ctx, state, out)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(out, "wire.pcap"), l.wire.bytes(), 0o644)
	}
	t.Logf("logs, events and the recording are in %s (%v)", out, err)
}

// program runs something in the repository to success.
func (l *lab) program(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = l.root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// kubectl runs it to success; input, when there is some, is its standard input.
func (l *lab) kubectl(t *testing.T, input string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.cluster.KubeBinary(), append([]string{"kubectl", "--cache-dir", t.TempDir()}, args...)...)
	cmd.Env = []string{"KUBECONFIG=" + l.cluster.Kubeconfig(), "HOME=/nonexistent"}
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// ambit runs the CLI and returns what it printed and its exit code.
func (l *lab) ambit(t *testing.T, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.cli, append([]string{"--kubeconfig", l.cluster.Kubeconfig()}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// healthy waits until ambit status says so.
func (l *lab) healthy(t *testing.T) {
	t.Helper()
	if out, code := l.ambit(t, "status", "--wait", "--timeout", patience.String()); code != 0 {
		t.Fatalf("Ambit did not become healthy again:\n%s", out)
	}
}

func (l *lab) node(t *testing.T, name string) *kubelab.Node {
	t.Helper()
	n, err := l.cluster.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// onNode runs a shell command on a node to success.
func (l *lab) onNode(t *testing.T, node, script string) string {
	t.Helper()
	cmd := l.node(t, node).Command(t.Context(), "sh", "-c", script)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("on %s: %s: %v\n%s%s", node, script, err, out, errs.String())
	}
	return strings.TrimSpace(string(out))
}

const conflistFile = "/etc/cni/net.d/10-kubelab.conflist"

func (l *lab) readConflist(t *testing.T, node string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(l.node(t, node).Root(), conflistFile))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// kill ends every process of these programs on a node at once, as a crash would.
func (l *lab) kill(t *testing.T, node string, programs ...string) {
	t.Helper()
	var pids []string
	for _, program := range programs {
		found := l.onNode(t, node, `for p in /proc/[0-9]*; do
			case "$(tr '\0' ' ' <$p/cmdline)" in /usr/local/bin/`+program+`\ *) echo ${p#/proc/};; esac
		done`)
		if found == "" {
			t.Fatalf("no %s runs on %s", program, node)
		}
		pids = append(pids, strings.Fields(found)...)
	}
	l.onNode(t, node, "kill -9 "+strings.Join(pids, " "))
}

// component is the running pod of one of Ambit's daemons on a node.
func (l *lab) component(t *testing.T, app, node string) *corev1.Pod {
	t.Helper()
	list, err := l.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{
		LabelSelector: "app=" + app, FieldSelector: "spec.nodeName=" + node + ",status.phase=Running"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			return &list.Items[i]
		}
	}
	t.Fatalf("no %s on %s", app, node)
	return nil
}

// logs returns the log lines of a component on all nodes, or on one.
func (l *lab) logs(t *testing.T, app, node string) []string {
	t.Helper()
	o := metav1.ListOptions{LabelSelector: "app=" + app}
	if node != "" {
		o.FieldSelector = "spec.nodeName=" + node
	}
	pods, err := l.client.CoreV1().Pods(system).List(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, p := range pods.Items {
		r, err := l.client.CoreV1().Pods(system).GetLogs(p.Name, &corev1.PodLogOptions{}).Stream(t.Context())
		if err != nil {
			continue // not started yet, or gone
		}
		var b bytes.Buffer
		_, err = io.Copy(&b, r)
		r.Close()
		if err != nil {
			continue
		}
		lines = append(lines, strings.Split(b.String(), "\n")...)
	}
	return lines
}

// logged waits for a line of a component's log that has all the words.
func (l *lab) logged(t *testing.T, app, node string, words ...string) string {
	t.Helper()
	var found string
	until(t, fmt.Sprintf("a line of %s %s with %q", app, node, words), func() (string, bool) {
		found = l.find(t, app, node, words...)
		return "", found != ""
	})
	return found
}

func (l *lab) find(t *testing.T, app, node string, words ...string) string {
	t.Helper()
	found := ""
lines:
	for _, line := range l.logs(t, app, node) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		found = line
	}
	return found
}

// until waits for a state that nothing can be watched for.
func until(t *testing.T, what string, done func() (last string, ok bool)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		last, ok := done()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited %s for %s; last: %s", patience, what, last)
		case <-tick.C:
		}
	}
}
