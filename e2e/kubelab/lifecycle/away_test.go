package lifecycle

import (
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

// without: a node that lost its agent, by a node selector say, stops the
// uninstall. Forced, it names the command that releases the node afterwards, and
// that command does it.
func without(t *testing.T, l *ambitlab.Lab) {
	l.Kubectl(t, "patch", "daemonset", "-n", ambitlab.System, "ambit-cni-node", "--type=merge", "-p",
		`{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"node1"}}}}}`)
	ambitlab.Until(t, "the agent of node2 to be gone, and that of node1 to be ready", func() (string, bool) {
		out := l.Kubectl(t, "get", "pods", "-n", ambitlab.System, "-l", "app=ambit-cni-node", "-o",
			`jsonpath={range .items[*]}{.spec.nodeName}={.status.conditions[?(@.type=="Ready")].status} {end}`)
		return out, strings.TrimSpace(out) == "node1=True"
	})
	out, code := l.Ambit(t, "uninstall", "--yes")
	if code != 1 || !strings.Contains(out, "refused: no node agent is ready on node2") {
		t.Fatalf("with pods captured where no agent is: exit code %d\n%s", code, out)
	}
	captured(t, l, true)
	out, code = l.Ambit(t, "uninstall", "--yes", "--force", "--timeout", "2m")
	t.Log(out)
	if code != 1 {
		t.Errorf("forced, and a node is left: exit code %d", code)
	}
	left := func() string {
		left := l.OnNode(t, "node2", "ls -d /opt/cni/bin/ambit* /sys/fs/bpf/ambit/* /var/lib/ambit/intent* 2>/dev/null; true")
		if now := l.OnNode(t, "node2", "cat "+ambitlab.ConflistFile); !sameJSON(now, l.Conflist["node2"]) {
			left += " " + now
		}
		return left
	}
	if left() == "" {
		t.Error("nothing is left on the node without an agent: this shows nothing")
	}
	_, command, ok := strings.Cut(out, "  kubectl debug ")
	if command, _, _ = strings.Cut(command, "\n"); !ok || !strings.Contains(command, "node/node2") {
		t.Fatal("the command for the node is not said")
	}
	l.Kubectl(t, append([]string{"debug"}, strings.Fields(command)...)...)
	ambitlab.Until(t, "nothing of Ambit to be left on node2", func() (string, bool) {
		left := left()
		return left, left == ""
	})
	l.Apply(t, strings.ReplaceAll(text(t, "server"), "name: server,", "name: server-later,"))
	l.Kubectl(t, "wait", "-n", "shop", "--for=condition=Ready", "pod/server-later", "--timeout=4m")
	// What failed while the server was cut off does not count.
	l.Kubectl(t, "replace", "--force", "--grace-period=0", "-f", only(t, "client"))
	l.Kubectl(t, "wait", "-n", "shop", "--for=condition=Ready", "pod/client", "--timeout=4m")
	traffic(t, l, "after the node was released")
	l.Install(t)
	captured(t, l, true)
	traffic(t, l, "after Ambit was installed a third time")
}
