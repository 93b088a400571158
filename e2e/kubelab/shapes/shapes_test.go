package shapes

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/e2e/kubelab"
	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

func TestMain(m *testing.M) { os.Exit(ambitlab.Main(m)) }

// by the number of the node
var nodes = []kubelab.Shape{kubelab.ShapeBridge, kubelab.ShapeGateway, kubelab.ShapeMacvlan}

// TestShapes shares one cluster, whose nodes have nothing in common but the wire
// between them.
//
//ambit:feature cni-mixed cni-sandbox-again cni-fifty cni-foreign-stack
func TestShapes(t *testing.T) {
	l := ambitlab.Start(t, kubelab.Options{Nodes: len(nodes), DNS: true, Shapes: nodes})
	for _, c := range []struct {
		name string
		test func(*testing.T, *ambitlab.Lab)
	}{
		{"bridge, gateway and macvlan in one mesh", mixed},
		{"another sandbox", anotherSandbox},
		{"a runtime with a stack of its own", ownStack},
		{"fifty pods at once", fifty},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, l) })
	}
}

func name(role string, node int) string { return fmt.Sprintf("%s-%d", role, node) }
func node(n int) string                 { return fmt.Sprintf("node%d", n) }

// mixed: running pods are captured on every node, everybody reaches everybody
// in mTLS, and under STRICT the kubelet's probes are the only plaintext let in.
func mixed(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, nil)
	outside := l.SpaceNamed(t, s.Name[:20]+"-outside", nil)
	s.Service()
	var all []string
	for n := range nodes {
		for _, role := range []string{"server", "client"} {
			s.Pod(name(role, n+1), node(n+1), nil)
			all = append(all, name(role, n+1))
		}
		outside.Pod(name("client", n+1), node(n+1), nil)
	}
	s.Ready(all...)
	for n := range nodes {
		outside.Ready(name("client", n+1))
	}
	at := func(n int) string { return "http://" + s.Now(name("server", n)).Status.PodIP + ":8080/" }

	s.Mode("ambient")
	s.Captured(all...)
	for n := range nodes {
		p := s.Now(name("server", n+1))
		t.Logf("%s (%s): %s, annotations %v", p.Name, nodes[n], p.Status.PodIP, p.Annotations)
		limits := p.Annotations["ambitmesh.io/capture-limits"]
		if p.Annotations["ambitmesh.io/redirection-reason"] != "" || strings.Contains(limits, "inspected") {
			t.Errorf("%s is not proven although its node can reach it: %v", p.Name, p.Annotations)
		}
		// A macvlan has no end on the node where probes could be stamped.
		if byAddress := strings.Contains(limits, "probes are told by the node's address"); byAddress != (nodes[n] == kubelab.ShapeMacvlan) {
			t.Errorf("%s (%s): limits %q", p.Name, nodes[n], limits)
		}
	}
	for n := range nodes {
		s.Works(name("client", n+1), "http://server/")
	}
	for from := range nodes {
		for to := range nodes {
			s.Meshed(name("client", from+1), s.Now(name("server", to+1)).Status.PodIP+":8080")
		}
	}
	word := ambitlab.Token("between")
	for from := range nodes {
		s.Call(name("client", from+1), "http://server/"+word)
		for to := range nodes {
			s.Call(name("client", from+1), at(to+1)+word)
			outside.Call(name("client", from+1), at(to+1)) // not meshed
		}
	}
	l.Wire.Secret(t, word)
	for from := range nodes {
		l.Logged(t, "ztunnel", node(from+1), "connection complete", `direction="outbound"`, `src.workload="`+name("client", from+1)+`"`, `dst.identity="`+s.ID("server")+`"`)
	}

	s.Policy("PeerAuthentication", "default", "{mtls: {mode: STRICT}}")
	for from := range nodes {
		for to := range nodes {
			ambitlab.Until(t, fmt.Sprintf("an un-meshed client on %s to be refused on %s", node(from+1), node(to+1)), func() (string, bool) {
				_, err := outside.Try(name("client", from+1), at(to+1))
				return "it is answered", err != nil
			})
		}
	}
	// Ready from now on is by probes under STRICT.
	for n := range nodes {
		s.Pod(name("server", n+1)+"-strict", node(n+1), nil)
	}
	for n := range nodes {
		s.Ready(name("server", n+1) + "-strict")
		s.Captured(name("server", n+1) + "-strict")
		s.Works(name("client", n+1), "http://server/")
	}
	l.Healthy(t)
	out, code := l.Ambit(t, "status", "-n", s.Name)
	if code != 0 {
		t.Errorf("status: exit code %d", code)
	}
	if !strings.Contains(out, "limits of "+s.Name+"/server-3") {
		t.Errorf("status does not say what is limited:\n%s", out)
	}
}

// plugin runs ours on a node as the container runtime does.
func plugin(t *testing.T, l *ambitlab.Lab, on, command, container string, pod *corev1.Pod) {
	t.Helper()
	var list struct {
		Name    string
		Version string `json:"cniVersion"`
		Plugins []map[string]any
	}
	if err := json.Unmarshal([]byte(l.ReadConflist(t, on)), &list); err != nil {
		t.Fatal(err)
	}
	entry := list.Plugins[len(list.Plugins)-1]
	if entry["type"] != "ambit-cni" {
		t.Fatalf("the last plugin on %s is %v", on, entry["type"])
	}
	entry["cniVersion"], entry["name"] = list.Version, list.Name
	conf, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	l.OnNode(t, on, fmt.Sprintf(`CNI_COMMAND=%s CNI_CONTAINERID=%s CNI_NETNS= CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
		CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s;K8S_POD_INFRA_CONTAINER_ID=%s' \
		/opt/cni/bin/ambit-cni <<'END'
%s
END`, command, container, pod.Namespace, pod.Name, pod.UID, container, conf))
}

// sandboxes of a pod that the node's runtime has, dead ones too.
func sandboxes(t *testing.T, l *ambitlab.Lab, pod *corev1.Pod) []string {
	t.Helper()
	return strings.Fields(l.OnNode(t, pod.Spec.NodeName,
		`ctr -n k8s.io containers ls -q 'labels."io.kubernetes.pod.uid"==`+string(pod.UID)+`,labels."io.cri-containerd.kind"==sandbox'`))
}

func pins(t *testing.T, l *ambitlab.Lab, on string) []string {
	t.Helper()
	return strings.Fields(l.OnNode(t, on, "ls /sys/fs/bpf/ambit"))
}

// anotherSandbox: the sandbox of a running pod dies, the kubelet makes another,
// and the runtime tells the plugin of the first one's end once more, late.
func anotherSandbox(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Service()
	s.Pod("client", "node1", nil)
	for n := range nodes {
		s.Pod(name("server", n+1), node(n+1), nil)
	}
	s.Ready("client")
	for n := range nodes {
		pod := name("server", n+1)
		s.Ready(pod)
		s.Captured(pod)
		before := s.Now(pod)
		s.Meshed("client", before.Status.PodIP+":8080")
		old := sandboxes(t, l, before)
		if len(old) != 1 || !slices.Contains(pins(t, l, node(n+1)), old[0]) {
			t.Fatalf("sandboxes of %s: %q, pins %q", pod, old, pins(t, l, node(n+1)))
		}
		l.OnNode(t, node(n+1), "ctr -n k8s.io tasks kill -s SIGKILL "+old[0])
		var fresh string
		after := s.Watch(pod, "in another sandbox", func(p *corev1.Pod) bool {
			cs := p.Status.ContainerStatuses
			return p.Status.PodIP != "" && p.Status.PodIP != before.Status.PodIP && ambitlab.IsReady(p) &&
				len(cs) == 1 && cs[0].ContainerID != before.Status.ContainerStatuses[0].ContainerID
		})
		for _, id := range sandboxes(t, l, after) {
			if id != old[0] {
				fresh = id
			}
		}
		plugin(t, l, node(n+1), "DEL", old[0], after)
		s.Captured(pod)
		s.Meshed("client", after.Status.PodIP+":8080")
		if have := pins(t, l, node(n+1)); slices.Contains(have, old[0]) || !slices.Contains(have, fresh) {
			t.Errorf("%s went from sandbox %s to %s, pins are %q", pod, old[0], fresh, have)
		}
		// In plaintext as well, from the node: through ztunnel, not to nobody.
		s.Works("client", "http://"+after.Status.PodIP+":8080/")
	}
	l.Healthy(t)
}
