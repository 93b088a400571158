package ambitlab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

// Kubectl runs it to success and returns what it printed.
func (l *Lab) Kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return l.must(t, "", args...)
}

// Apply applies objects in YAML.
func (l *Lab) Apply(t *testing.T, objects string) {
	t.Helper()
	l.must(t, objects, "apply", "-f", "-")
}

// TryKubectl runs it and returns what it printed, also when it failed.
func (l *Lab) TryKubectl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return l.kubectl(t.Context(), "", args...)
}

// TryApply applies objects in YAML that may be refused.
func (l *Lab) TryApply(t *testing.T, objects string) (string, error) {
	t.Helper()
	return l.kubectl(t.Context(), objects, "apply", "-f", "-")
}

func (l *Lab) must(t *testing.T, input string, args ...string) string {
	t.Helper()
	out, err := l.kubectl(t.Context(), input, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (l *Lab) kubectl(ctx context.Context, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*Patience)
	defer cancel()
	// What it knows of the API is not kept: CRDs come and go here.
	cache, err := os.MkdirTemp(os.Getenv(folder), "kubectl-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(cache)
	cmd := exec.CommandContext(ctx, l.Cluster.KubeBinary(), append([]string{"kubectl", "--cache-dir", cache}, args...)...)
	cmd.Env = []string{"KUBECONFIG=" + l.Cluster.Kubeconfig(), "HOME=/nonexistent"}
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Ambit runs the CLI and returns what it printed and its exit code.
func (l *Lab) Ambit(t *testing.T, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*Patience)
	defer cancel()
	p, err := built()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, p.cli, append([]string{"--kubeconfig", l.Cluster.Kubeconfig()}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Healthy waits until ambit status says so.
func (l *Lab) Healthy(t *testing.T) {
	t.Helper()
	if out, code := l.Ambit(t, "status", "--wait", "--timeout", Patience.String()); code != 0 {
		t.Fatalf("Ambit did not become healthy again:\n%s", out)
	}
}

// Node is the node of that name: node1, node2 and so on.
func (l *Lab) Node(t *testing.T, name string) *kubelab.Node {
	t.Helper()
	n, err := l.Cluster.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// OnNode runs a shell command on a node to success.
func (l *Lab) OnNode(t *testing.T, node, script string) string {
	t.Helper()
	cmd := l.Node(t, node).Command(t.Context(), "sh", "-c", script)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("on %s: %s: %v\n%s%s", node, script, err, out, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// ConflistFile is where kubelab's nodes have their CNI configuration.
const ConflistFile = "/etc/cni/net.d/10-kubelab.conflist"

// ReadConflist reads a node's CNI configuration.
func (l *Lab) ReadConflist(t *testing.T, node string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(l.Node(t, node).Root(), ConflistFile))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Kill ends every process of these programs on a node at once, as a crash would.
func (l *Lab) Kill(t *testing.T, node string, programs ...string) {
	t.Helper()
	var pids []string
	for _, program := range programs {
		found := l.OnNode(t, node, `for p in /proc/[0-9]*; do
			case "$(tr '\0' ' ' <$p/cmdline)" in /usr/local/bin/`+program+`\ *) echo ${p#/proc/};; esac
		done`)
		if found == "" {
			t.Fatalf("no %s runs on %s", program, node)
		}
		pids = append(pids, strings.Fields(found)...)
	}
	l.OnNode(t, node, "kill -9 "+strings.Join(pids, " "))
}

// Until waits for a state that nothing can be watched for.
func Until(t *testing.T, what string, done func() (last string, ok bool)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
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
			t.Fatalf("waited %s for %s; last: %s", Patience, what, last)
		case <-tick.C:
		}
	}
}
