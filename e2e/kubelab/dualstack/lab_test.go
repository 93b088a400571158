package dualstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

func TestMain(m *testing.M) {
	kubelab.Init()
	os.Exit(m.Run())
}

const (
	imageName = "ambit.local/ambit:dev"
	// patience is how long a test waits for what should come soon; the
	// processors may be busy with another cluster.
	patience = 90 * time.Second
)

// lab is one dual-stack cluster with Ambit on it.
type lab struct {
	cluster *kubelab.Cluster
	root    string // of the repository
	cli     string // the ambit program

	mu   sync.Mutex
	wire []byte // guarded by mu: every packet between the machines
}

// Write takes the recording.
func (l *lab) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wire = append(l.wire, b...)
	return len(b), nil
}

func (l *lab) recorded(token string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.wire, []byte(token))
}

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
	l.run(t, "go", "run", "./deploy/image", "-version", "dualstack", "-name", imageName, "-platforms", "linux/"+runtime.GOARCH, "-o", image)
	l.run(t, "go", "build", "-trimpath", "-o", l.cli, "./cmd/ambit")
	name := fmt.Sprintf("dualstack-%d", os.Getpid())
	l.cluster, err = kubelab.Start(t.Context(), kubelab.Options{
		Name: name, Cache: cache, Nodes: 2, DNS: true, IPv6First: true, Images: []string{image}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := l.try("kubectl", "get", "pods", "-A", "-o", "wide")
			t.Log(out)
			for _, app := range []string{"ztunnel", "ambit-cni-node"} {
				out, _ = l.try("kubectl", "logs", "-n", "ambit-system", "-l", "app="+app, "--tail=40", "--prefix")
				t.Log(out)
			}
		}
		if err := l.cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	l.record(t)
	l.run(t, "kubectl", "apply", "--server-side", "-k", "deploy/crds")
	l.run(t, "kubectl", "apply", "-k", "deploy/ambit")
	l.run(t, l.cli, "status", "--wait", "--timeout", "3m")
	return l
}

func (l *lab) record(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		n, err := kubelab.Capture(ctx, l.cluster.ControlPlane().NetNS(), l, func() { close(ready) })
		if err != nil || n.Lost > 0 {
			t.Errorf("recording: %d packets lost, %v", n.Lost, err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-ready:
	case <-done:
		t.FailNow()
	}
}

// try runs a program in the repository; "kubectl" is the cluster's.
func (l *lab) try(name string, args ...string) (string, error) {
	return l.tryInput("", name, args...)
}

func (l *lab) tryInput(input, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if name == "kubectl" {
		name, args = l.cluster.KubeBinary(), append([]string{"kubectl"}, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = l.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if l.cluster != nil {
		cmd.Env = append(cmd.Env, "KUBECONFIG="+l.cluster.Kubeconfig())
	}
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (l *lab) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return l.input(t, "", name, args...)
}

func (l *lab) input(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	out, err := l.tryInput(input, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// until waits for a state of the cluster for which there is no watch.
func until(t *testing.T, what string, done func() (string, bool)) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		last, ok := done()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s; last: %s", patience, what, last)
		}
	}
}

// get makes one request from a pod; the path is a token to look for.
func (l *lab) get(namespace, pod, to, token string) (string, error) {
	return l.try("kubectl", "exec", "-n", namespace, pod, "--", "testapp", "get", "-timeout=5s", "http://"+to+"/"+token)
}

func (l *lab) refused(t *testing.T, what, namespace, pod, to string) {
	t.Helper()
	until(t, what+" to be refused", func() (string, bool) {
		out, err := l.get(namespace, pod, to, token(namespace+"-refused"))
		return out, err != nil && (strings.Contains(out, "reset by peer") || strings.Contains(out, "broken pipe") || strings.Contains(out, "EOF"))
	})
}

// addresses are those of a pod. The cluster's first family is IPv6.
func (l *lab) addresses(t *testing.T, namespace, pod string) (v4, v6 string) {
	t.Helper()
	ips := strings.Fields(l.run(t, "kubectl", "get", "pod", "-n", namespace, pod, "-o", "jsonpath={.status.podIPs[*].ip}"))
	if len(ips) != 2 || strings.Contains(ips[1], ":") || !strings.Contains(ips[0], ":") {
		t.Fatalf("addresses of %s: %v", pod, ips)
	}
	return ips[1], ips[0]
}

// vip is a Service's IPv6 address with its port.
func (l *lab) vip(t *testing.T, name string) string {
	t.Helper()
	for _, ip := range strings.Fields(l.run(t, "kubectl", "get", "service", "-n", "shop", name, "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		if strings.Contains(ip, ":") {
			return net.JoinHostPort(ip, "80")
		}
	}
	t.Fatalf("Service %s has no IPv6 address", name)
	return ""
}

// onNode2 runs a script in all namespaces of the second node.
func (l *lab) onNode2(t *testing.T, script string) string {
	t.Helper()
	out, err := l.cluster.Nodes()[1].Command(t.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("on node2: %v\n%s\n%s", err, script, out)
	}
	return strings.TrimSpace(string(out))
}

// token makes a word that occurs nowhere else.
func token(word string) string { return word + "-" + strings.ToLower(rand.Text()[:16]) }
