package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/e2e/kubelab"
	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

func TestMain(m *testing.M) { os.Exit(ambitlab.Main(m)) }

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
    - {name: app, image: "kubelab.local/app:1", args: [serve], readinessProbe: {periodSeconds: 1, timeoutSeconds: 10, httpGet: {path: /ready, port: 8080}}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
    - {name: app, image: "kubelab.local/app:1", args: [get, -n, "0", -every, 50ms, -timeout, 60s, -carry-on, "http://server.shop/"]}
`

// captured waits until every pod of the shop is, or none.
func captured(t *testing.T, l *ambitlab.Lab, want bool) {
	t.Helper()
	ambitlab.Until(t, fmt.Sprintf("the pods of shop to be captured: %t", want), func() (string, bool) {
		list, err := l.Client.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error(), false
		}
		for _, p := range list.Items {
			if got := p.Annotations[ambitlab.Redirection]; (got == "enabled") != want {
				return fmt.Sprintf("%s: %q", p.Name, got), false
			}
		}
		return "", true
	})
}

// traffic reads the client's log: the calls go on, and none has failed.
func traffic(t *testing.T, l *ambitlab.Lab, when string) {
	t.Helper()
	answered := func() int {
		log := l.Kubectl(t, "logs", "-n", "shop", "client")
		for line := range strings.Lines(log) {
			if strings.HasPrefix(line, "failed:") {
				t.Errorf("%s: a call failed: %s", when, line)
			}
		}
		return strings.Count(log, "\n200 ")
	}
	before := answered()
	ambitlab.Until(t, "calls to be answered "+when, func() (string, bool) {
		now := answered()
		return fmt.Sprintf("%d answers, %d before", now, before), now >= before+5
	})
}

// TestUninstall takes Ambit away under traffic, looks for what it left, and
// installs it again. The first installation is that of the overlay for nodes
// without a bpffs, the second the one for k3s.
//
//ambit:feature precheck-real install-overlays unenrol-uninstall unenrol-reinstall unenrol-node-without-agent
func TestUninstall(t *testing.T) {
	l := ambitlab.Bare(t, kubelab.Options{Nodes: 2, DNS: true, ShortTimers: true})
	before := precheck(t, l)
	before.quiet(t, "before the installation")
	before.find(t, "info", "nodes", "2 with Linux")
	before.find(t, "info", "API server", "Kubernetes v1.")
	before.find(t, "warning", "peerauthentications", "not there yet")
	// As a node of kind is, which is a container.
	l.OnNode(t, "node2", "umount /sys/fs/bpf && test $(stat -fc %T /sys/fs/bpf) = sysfs")
	l.InstallFrom(t, "deploy/overlays/kind")
	if fs := l.OnNode(t, "node2", "test -d /sys/fs/bpf/ambit && stat -fc %T /sys/fs/bpf"); fs != "bpf_fs" {
		t.Errorf("on node2 /sys/fs/bpf is %q", fs)
	}
	after := precheck(t, l)
	after.quiet(t, "after the installation")
	after.find(t, "info", "namespace ambit-system", "Ambit is installed")
	l.Apply(t, shop)
	captured(t, l, true)
	l.Kubectl(t, "wait", "-n", "shop", "--for=condition=Ready", "pod/server", "pod/client", "--timeout=4m")
	// What failed before the server was there does not count.
	l.Kubectl(t, "replace", "--force", "--grace-period=0", "-f", only(t, "client"))
	l.Kubectl(t, "wait", "-n", "shop", "--for=condition=Ready", "pod/client", "--timeout=4m")
	captured(t, l, true)
	traffic(t, l, "in the mesh")
	t.Run("what is internal is closed to others", func(t *testing.T) { closed(t, l) })

	out, code := l.Ambit(t, "uninstall")
	if code != 1 || !strings.Contains(out, "Nothing was changed") || !strings.Contains(out, "shop/client, shop/server") ||
		!strings.Contains(out, "daemonsets ambit-system/ambit-cni-node") {
		t.Errorf("without --yes: exit code %d\n%s", code, out)
	}
	captured(t, l, true)

	began := time.Now()
	out, code = l.Ambit(t, "uninstall", "--yes", "--timeout", "6m")
	t.Logf("after %s:\n%s", time.Since(began).Round(100*time.Millisecond), out)
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	traffic(t, l, "after the uninstall")
	captured(t, l, false)
	for _, n := range l.Cluster.Nodes() {
		if left := l.OnNode(t, n.Name, "ls -d /opt/cni/bin/ambit* /sys/fs/bpf/ambit/* /var/lib/ambit/* 2>/dev/null; true"); left != "" {
			t.Errorf("left on %s: %s", n.Name, left)
		}
		if now := l.OnNode(t, n.Name, "cat "+ambitlab.ConflistFile); !sameJSON(now, l.Conflist[n.Name]) {
			t.Errorf("%s on %s is not as it was before:\n%s", ambitlab.ConflistFile, n.Name, now)
		}
	}
	left := l.Kubectl(t, "get", "namespaces,clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings",
		"-l", "app.kubernetes.io/part-of=ambit", "-o", "name", "--ignore-not-found")
	left += " " + l.Kubectl(t, "get", "configmaps", "-A", "--field-selector", "metadata.name=ambit-ca-root-cert", "-o", "name")
	for _, object := range strings.Fields(left) {
		if object != "namespace/istio-system" {
			t.Errorf("left in the cluster: %s", object)
		}
	}
	for _, kept := range [][]string{{"namespace", "istio-system"}, {"crd", "authorizationpolicies.security.istio.io"}, {"crd", "gateways.gateway.networking.k8s.io"}} {
		l.Kubectl(t, append([]string{"get", "-o", "name"}, kept...)...)
	}
	if mode := l.Kubectl(t, "get", "namespace", "shop", "-o", "jsonpath={.metadata.labels.istio\\.io/dataplane-mode}"); mode != "ambient" {
		t.Errorf("the user's label is %q", mode)
	}
	l.Apply(t, strings.ReplaceAll(text(t, "client"), "name: client", "name: later"))
	l.Kubectl(t, "wait", "-n", "shop", "--for=condition=Ready", "pod/later", "--timeout=4m")

	if out, code := l.Ambit(t, "uninstall", "--yes"); code != 1 || !strings.Contains(out, "nothing of Ambit") {
		t.Errorf("again: exit code %d\n%s", code, out)
	}
	// As on a node of k3s, whose folders are elsewhere: the agent must find the
	// same ones by their other names.
	for _, n := range l.Cluster.Nodes() {
		l.OnNode(t, n.Name, "d=/var/lib/rancher/k3s && mkdir -p $d/data $d/agent/etc/cni && ln -s /opt/cni/bin $d/data/cni && ln -s /etc/cni/net.d $d/agent/etc/cni/net.d")
	}
	l.InstallFrom(t, "deploy/overlays/k3s")
	captured(t, l, true)
	traffic(t, l, "after Ambit was installed again")
	t.Run("a node without an agent", func(t *testing.T) { without(t, l) })
}

// sameJSON leaves layout aside: what was one line may come back as several.
func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// closed: what tells about the mesh tells its own node, or nobody.
func closed(t *testing.T, l *ambitlab.Lab) {
	for _, c := range []struct{ app, url, says string }{
		{"ztunnel", "http://%s:15000/config_dump", "refused"},
		{"ambit-controller", "http://%s:15014/debug/clients", "403"},
	} {
		ip := strings.Fields(l.Kubectl(t, "get", "pods", "-n", ambitlab.System, "-l", "app="+c.app, "-o", "jsonpath={.items[*].status.podIP}"))[0]
		url := fmt.Sprintf(c.url, ip)
		if out := l.OnNode(t, "node1", "wget -T 60 -O - "+url+" 2>&1; true"); !strings.Contains(out, c.says) {
			t.Errorf("GET %s: want %q, got %.300s", url, c.says, out)
		}
	}
	// The sockets of every captured pod are handed out here. We are root, and
	// in no pod.
	n := l.Node(t, "node1")
	path := fmt.Sprintf("/proc/%d/root/run/ztunnel/ztunnel.sock", n.PID())
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Read(make([]byte, 64)); !errors.Is(err, io.EOF) {
		t.Errorf("%s: read %d bytes, %v; want to be turned away", path, got, err)
	}
	l.Logged(t, "ambit-cni-node", "node1", "ztunnel turned away")
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
