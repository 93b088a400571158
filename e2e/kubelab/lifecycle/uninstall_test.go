package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

const (
	imageName = "ambit.local/ambit:dev"
	conflist  = "/etc/cni/net.d/10-kubelab.conflist"
)

// shop is an enrolled namespace where a client calls a server on another node
// without end.
const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server}}
spec:
  nodeName: node2
  containers:
    - {name: app, image: "kubelab.local/app:1", args: [serve], readinessProbe: {periodSeconds: 1, httpGet: {path: /ready, port: 8080}}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
    - {name: app, image: "kubelab.local/app:1", args: [get, -n, "0", -every, 50ms, -timeout, 5s, -carry-on, "http://server.shop/"]}
`

// mesh is a cluster with Ambit on it.
type mesh struct {
	*cluster
	cli      string
	conflist map[string]string // of each node before Ambit
}

func startMesh(t *testing.T) *mesh {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster is not started in -short")
	}
	dir := t.TempDir()
	image, cli := filepath.Join(dir, "ambit.tar"), filepath.Join(dir, "ambit")
	program(t, "go", "run", "./deploy/image", "-version", "lifecycle", "-name", imageName, "-platforms", "linux/"+runtime.GOARCH, "-o", image)
	program(t, "go", "build", "-trimpath", "-o", cli, "./cmd/ambit")
	c := begin(t, kubelab.Options{Name: fmt.Sprintf("lifecycle-%d", os.Getpid()), Nodes: 2, DNS: true, ShortTimers: true, Images: []string{image}})
	m := &mesh{cluster: c, cli: cli, conflist: map[string]string{}}
	for _, n := range c.Nodes() {
		m.conflist[n.Name] = m.onNode(t, n.Name, "cat "+conflist)
	}
	m.kubectl(t, "apply", "--server-side", "-k", filepath.Join(c.root, "deploy/crds"))
	m.install(t)
	return m
}

func (m *mesh) install(t *testing.T) {
	t.Helper()
	m.kubectl(t, "apply", "-k", filepath.Join(m.root, "deploy/ambit"))
	if out, code := m.ambit(t, "status", "--wait", "--timeout", "2m"); code != 0 {
		t.Fatalf("Ambit did not become healthy:\n%s", out)
	}
}

// program runs something in the repository to success.
func program(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = "../../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// ambit runs the CLI and returns what it printed and its exit code.
func (m *mesh) ambit(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), m.cli, append([]string{"--kubeconfig", m.Kubeconfig()}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (m *mesh) onNode(t *testing.T, node, script string) string {
	t.Helper()
	n, err := m.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.Command(t.Context(), "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("on %s: %s: %v\n%s", node, script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (m *mesh) apply(t *testing.T, text string) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	m.kubectl(t, "apply", "-f", f)
}

// captured waits until every pod of the shop is, or none.
func (m *mesh) captured(t *testing.T, want bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("the pods of shop to be captured: %t", want), func() error {
		var list struct {
			Items []struct {
				Metadata struct {
					Name        string
					Annotations map[string]string
				}
			}
		}
		if err := json.Unmarshal([]byte(m.kubectl(t, "get", "pods", "-n", "shop", "-o", "json")), &list); err != nil {
			return err
		}
		for _, p := range list.Items {
			if got := p.Metadata.Annotations["ambient.istio.io/redirection"]; (got == "enabled") != want {
				return fmt.Errorf("%s: %q", p.Metadata.Name, got)
			}
		}
		return nil
	})
}

// traffic reads the client's log: the calls go on, and none has failed.
func (m *mesh) traffic(t *testing.T, when string) {
	t.Helper()
	answered := func() int {
		log := m.kubectl(t, "logs", "-n", "shop", "client")
		for line := range strings.Lines(log) {
			if strings.HasPrefix(line, "failed:") {
				t.Errorf("%s: a call failed: %s", when, line)
			}
		}
		return strings.Count(log, "\n200 ")
	}
	before := answered()
	eventually(t, "calls to be answered "+when, func() error {
		if now := answered(); now < before+5 {
			return fmt.Errorf("%d answers, %d before", now, before)
		}
		return nil
	})
}

// TestUninstall takes Ambit away under traffic, looks for what it left, and
// installs it again.
func TestUninstall(t *testing.T) {
	m := startMesh(t)
	m.apply(t, shop)
	m.captured(t, true)
	m.kubectl(t, "wait", "-n", "shop", "--for=condition=Ready", "pod/server", "pod/client", "--timeout=60s")
	// What failed before the server was there does not count.
	m.kubectl(t, "replace", "--force", "--grace-period=0", "-f", only(t, "client"))
	m.kubectl(t, "wait", "-n", "shop", "--for=condition=Ready", "pod/client", "--timeout=60s")
	m.captured(t, true)
	m.traffic(t, "in the mesh")
	t.Run("what is internal is closed to others", m.closed)

	out, code := m.ambit(t, "uninstall")
	if code != 1 || !strings.Contains(out, "Nothing was changed") || !strings.Contains(out, "shop/client, shop/server") ||
		!strings.Contains(out, "daemonsets ambit-system/ambit-cni-node") {
		t.Errorf("without --yes: exit code %d\n%s", code, out)
	}
	m.captured(t, true)

	began := time.Now()
	out, code = m.ambit(t, "uninstall", "--yes", "--timeout", "2m")
	t.Logf("after %s:\n%s", time.Since(began).Round(100*time.Millisecond), out)
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	m.traffic(t, "after the uninstall")
	m.captured(t, false)
	for _, n := range m.Nodes() {
		if left := m.onNode(t, n.Name, "ls -d /opt/cni/bin/ambit* /sys/fs/bpf/ambit/* /var/lib/ambit/* 2>/dev/null; true"); left != "" {
			t.Errorf("left on %s: %s", n.Name, left)
		}
		if now := m.onNode(t, n.Name, "cat "+conflist); !sameJSON(now, m.conflist[n.Name]) {
			t.Errorf("%s on %s is not as it was before:\n%s", conflist, n.Name, now)
		}
	}
	left := m.kubectl(t, "get", "namespaces,clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings",
		"-l", "app.kubernetes.io/part-of=ambit", "-o", "name", "--ignore-not-found")
	left += m.kubectl(t, "get", "configmaps", "-A", "--field-selector", "metadata.name=ambit-ca-root-cert", "-o", "name")
	for _, l := range strings.Fields(left) {
		if l != "namespace/istio-system" {
			t.Errorf("left in the cluster: %s", l)
		}
	}
	for _, kept := range [][]string{{"namespace", "istio-system"}, {"crd", "authorizationpolicies.security.istio.io"}, {"crd", "gateways.gateway.networking.k8s.io"}} {
		m.kubectl(t, append([]string{"get", "-o", "name"}, kept...)...)
	}
	if l := m.kubectl(t, "get", "namespace", "shop", "-o", "jsonpath={.metadata.labels.istio\\.io/dataplane-mode}"); l != "ambient" {
		t.Errorf("the user's label is %q", l)
	}
	m.apply(t, strings.ReplaceAll(text(t, "client"), "name: client", "name: later"))
	m.kubectl(t, "wait", "-n", "shop", "--for=condition=Ready", "pod/later", "--timeout=30s")

	if out, code := m.ambit(t, "uninstall", "--yes"); code != 1 || !strings.Contains(out, "nothing of Ambit") {
		t.Errorf("again: exit code %d\n%s", code, out)
	}
	m.install(t)
	m.captured(t, true)
	m.traffic(t, "after Ambit was installed again")
}

// sameJSON leaves layout aside: what was one line may come back as several.
func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// closed: what tells about the mesh tells its own node, or nobody.
func (m *mesh) closed(t *testing.T) {
	for _, c := range []struct{ app, url, says string }{
		{"ztunnel", "http://%s:15000/config_dump", "refused"},
		{"ambit-controller", "http://%s:15014/debug/clients", "403"},
	} {
		ip := strings.Fields(m.kubectl(t, "get", "pods", "-n", system, "-l", "app="+c.app, "-o", "jsonpath={.items[*].status.podIP}"))[0]
		url := fmt.Sprintf(c.url, ip)
		if out := m.onNode(t, "node1", "wget -T 3 -O - "+url+" 2>&1; true"); !strings.Contains(out, c.says) {
			t.Errorf("GET %s: want %q, got %.300s", url, c.says, out)
		}
	}
	// The sockets of every captured pod are handed out here. We are root, and
	// in no pod.
	n, err := m.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/%d/root/run/ztunnel/ztunnel.sock", n.PID())
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Read(make([]byte, 64)); !errors.Is(err, io.EOF) {
		t.Errorf("%s: read %d bytes, %v; want to be turned away", path, got, err)
	}
	eventually(t, "the agent to tell of it", func() error {
		if !strings.Contains(m.kubectl(t, "logs", "-n", system, "-l", "app=ambit-cni-node", "--tail=50"), "ztunnel turned away") {
			return errors.New("no such line in its log")
		}
		return nil
	})
}

// text is one pod of the shop.
func text(t *testing.T, pod string) string {
	t.Helper()
	for doc := range strings.SplitSeq(shop, "\n---\n") {
		if strings.Contains(doc, "kind: Pod") && strings.Contains(doc, "name: "+pod+",") {
			return doc
		}
	}
	t.Fatalf("no pod %s", pod)
	return ""
}

func only(t *testing.T, pod string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), pod+".yaml")
	if err := os.WriteFile(f, []byte(text(t, pod)), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}
