package lifecycle

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

func TestMain(m *testing.M) {
	kubelab.Init()
	klog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

const (
	system = "ambit-system"
	// patience is how long a test waits for what should come soon.
	patience = 90 * time.Second
)

// cluster is a running one and where the repository is.
type cluster struct {
	*kubelab.Cluster
	root string
}

// begin starts a cluster that ends with the test.
func begin(t *testing.T, o kubelab.Options) *cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster is not started in -short")
	}
	o.Cache = kubelab.DefaultCache(os.Getenv("KUBELAB_CACHE"), os.Getenv("HOME"))
	if err := kubelab.Check(o.Cache, o.APIOnly); err != nil {
		t.Skip(err)
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	o.Logger = slog.New(slog.NewTextHandler(logWriter{t}, nil))
	c, err := kubelab.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		out, err := os.MkdirTemp("", "lifecycle-")
		if err == nil {
			err = kubelab.Dump(ctx, kubelab.DefaultState(o.Name), out)
		}
		t.Logf("logs and events are in %s (%v)", out, err)
	})
	return &cluster{c, root}
}

type logWriter struct{ t *testing.T }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// kubectl runs it to success.
func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.KubeBinary(), append([]string{"kubectl", "--cache-dir", t.TempDir()}, args...)...)
	cmd.Env = []string{"KUBECONFIG=" + c.Kubeconfig(), "HOME=/nonexistent"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
