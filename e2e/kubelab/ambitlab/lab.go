package ambitlab

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

const (
	// System is the namespace of Ambit's own parts.
	System = "ambit-system"
	// Patience is how long a test waits for what should come soon; the
	// processors may be busy with another cluster.
	Patience = 4 * time.Minute
)

// Lab is a cluster. Its fields do not change after it was started.
type Lab struct {
	Cluster *kubelab.Cluster
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	REST    *rest.Config
	Wire    *Wire  // nil without nodes
	Root    string // of the repository
	// Conflist is the CNI configuration of each node as it was before Ambit.
	Conflist map[string]string

	name string
}

// Start makes a cluster and installs Ambit as the README says. The cluster
// ends with the test, which is skipped where there can be none. Name, Cache and
// Logger of the options are filled in; the name is the package's when empty.
func Start(t *testing.T, o kubelab.Options) *Lab {
	t.Helper()
	check(t, &o)
	l := begin(t, o)
	l.Install(t)
	return l
}

// Bare is Start without an installation: Install comes later, or never.
func Bare(t *testing.T, o kubelab.Options) *Lab {
	t.Helper()
	check(t, &o)
	return begin(t, o)
}

// check skips the test where no cluster can be.
func check(t *testing.T, o *kubelab.Options) {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster is not started in -short")
	}
	o.Cache = kubelab.DefaultCache(os.Getenv("KUBELAB_CACHE"), os.Getenv("HOME"))
	if err := kubelab.Check(o.Cache, o.APIOnly); err != nil {
		t.Skip(err)
	}
}

func begin(t *testing.T, o kubelab.Options) *Lab {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	if o.Name == "" {
		o.Name = strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
	}
	o.Name = fmt.Sprintf("%s-%d", o.Name, os.Getpid())
	o.Logger = slog.New(slog.NewTextHandler(logWriter{t}, nil))
	l := &Lab{Root: root, name: o.Name, Conflist: map[string]string{}}
	if !o.APIOnly {
		p, err := built()
		if err != nil {
			t.Fatal(err)
		}
		o.Images = append([]string{p.image}, o.Images...)
	}
	if l.Cluster, err = kubelab.Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			l.dump(t)
		}
	})
	if l.REST, err = clientcmd.BuildConfigFromFlags("", l.Cluster.Kubeconfig()); err != nil {
		t.Fatal(err)
	}
	l.REST.QPS = -1 // a test is not throttled
	if l.Client, err = kubernetes.NewForConfig(l.REST); err != nil {
		t.Fatal(err)
	}
	if l.Dynamic, err = dynamic.NewForConfig(l.REST); err != nil {
		t.Fatal(err)
	}
	if o.APIOnly {
		return l
	}
	l.Wire = l.record(t)
	for _, n := range l.Cluster.Nodes() {
		l.Conflist[n.Name] = l.ReadConflist(t, n.Name)
	}
	return l
}

// Install applies the manifests and waits until ambit status is content.
func (l *Lab) Install(t *testing.T) {
	t.Helper()
	l.InstallFrom(t, "deploy/ambit")
}

// InstallFrom installs one of the overlays.
func (l *Lab) InstallFrom(t *testing.T, folder string) {
	t.Helper()
	l.Kubectl(t, "apply", "--server-side", "--field-manager=ambit-crds", "-k", filepath.Join(l.Root, "deploy/crds"))
	l.Kubectl(t, "apply", "-k", filepath.Join(l.Root, folder))
	if out, code := l.Ambit(t, "status", "--wait", "--timeout", "8m"); code != 0 {
		t.Fatalf("Ambit did not become healthy:\n%s", out)
	}
}

type logWriter struct{ t *testing.T }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// dump keeps what somebody wants to read after a failure, and shows the most
// of it that fits into a test's log: the machine of a CI run is gone afterwards.
func (l *Lab) dump(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := os.MkdirTemp("", l.name+"-")
	if err == nil {
		err = kubelab.Dump(ctx, kubelab.DefaultState(l.name), out)
	}
	if err == nil && l.Wire != nil {
		err = os.WriteFile(filepath.Join(out, "wire.pcap"), l.Wire.bytes(), 0o644)
	}
	t.Logf("logs, events and the recording are in %s (%v)", out, err)
	if l.Wire == nil {
		return
	}
	text, _ := l.kubectl(ctx, "", "get", "pods", "-A", "-o", "wide")
	t.Log(text)
	for _, app := range []string{"ztunnel", "ambit-cni-node", "ambit-controller"} {
		text, _ = l.kubectl(ctx, "", "logs", "-n", System, "-l", "app="+app, "--tail=40", "--prefix")
		t.Log(text)
	}
}
