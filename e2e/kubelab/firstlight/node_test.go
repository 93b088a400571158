package firstlight

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

func conflistRewritten(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	if now := l.ReadConflist(t, "node1"); !strings.Contains(now, `"ambit-cni"`) {
		t.Fatalf("the plugin is not in %s:\n%s", ambitlab.ConflistFile, now)
	}
	// As other tools do it: a new file under the old name.
	path := filepath.Join(l.Node(t, "node1").Root(), ambitlab.ConflistFile)
	if err := os.WriteFile(path+".new", []byte(l.Conflist["node1"]), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	l.OnNode(t, "node1", "rm /opt/cni/bin/ambit-cni")
	ambitlab.Until(t, "entry and plugin to be repaired", func() (string, bool) {
		now := l.ReadConflist(t, "node1") + l.OnNode(t, "node1", "ls /opt/cni/bin")
		return now, strings.Count(now, "ambit-cni") >= 2
	})
	l.Logged(t, "ambit-cni-node", "node1", "repaired after somebody else's change", "10-kubelab.conflist")
	s.Pod("client-later", "node1", nil)
	s.Ready("client-later")
	word := ambitlab.Token("later")
	s.Call("client-later", "http://server/"+word)
	l.Wire.Secret(t, word)
	l.Healthy(t)
}

// agentAway: pods of enrolled namespaces wait for the agent, others do not.
func agentAway(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	plain := l.SpaceNamed(t, s.Name+"-plain", nil)
	plain.Pod("client", "node1", nil) // the agents know the namespace from here on
	plain.Ready("client")
	k := s.Talk("client", "server")
	_, failed := k.Answers()
	l.Agents(t, false)
	out, code := l.Ambit(t, "status", "-n", s.Name)
	if code != 1 || !strings.Contains(out, "node agent") {
		t.Errorf("status without agents: exit code %d\n%s", code, out)
	}
	began := time.Now()
	word := ambitlab.Token("waits")
	s.Pod("client-waits", "node1", nil, "get", "-timeout", "60s", "http://server/"+word)
	plain.Pod("client-later", "node1", nil)
	plain.Ready("client-later")
	t.Logf("the pod outside the mesh was ready after %s", time.Since(began).Round(time.Millisecond))
	k.GoesOn("without agents")
	if p := s.Now("client-waits"); p.Status.Phase != corev1.PodPending {
		t.Errorf("a pod to be captured is %s without an agent", p.Status.Phase)
	}
	l.Agents(t, true)
	p := s.Watch("client-waits", "finished", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	if p.Status.Phase != corev1.PodSucceeded {
		t.Errorf("its only request failed: %+v", p.Status.ContainerStatuses)
	}
	l.Wire.Secret(t, word)
	if _, now := k.Answers(); now != failed {
		t.Errorf("%d requests failed because the agents were away", now-failed)
	}
	k.Unread()
	l.Healthy(t)
}

// reboot: a node comes back, and its pods never spoke plaintext meanwhile.
func reboot(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Pod("server-one", "node1", nil)
	s.Ready("server-one")
	// It talks on its own from the moment it is started, again and again.
	word := ambitlab.Token("boot")
	s.Loop("client-loop", "node2", "http://"+s.Now("server-one").Status.PodIP+":8080/"+word)
	s.Ready("client-loop")
	s.Meshed("client", "server")
	s.Meshed("client-beside", "server")
	k := s.Talk("client", "server")
	starts := s.Now("client-loop").Status.ContainerStatuses[0].RestartCount
	if err := l.Node(t, "node2").Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Watch("client-loop", "started again", func(p *corev1.Pod) bool {
		cs := p.Status.ContainerStatuses
		return len(cs) == 1 && cs[0].RestartCount > starts && cs[0].Ready
	})
	k.GoesOn("after the node was rebooted")
	s.Captured("server", "client-beside", "client-loop")
	s.Works("client-beside", "http://server/")
	l.Logged(t, "ztunnel", "node1", `direction="inbound"`, `src.workload="client-loop"`, `src.identity="`+s.ID("client")+`"`)
	l.Wire.Secret(t, word)
	k.Unread()
	l.Healthy(t)
}

// uninstall: un-label, delete, and the nodes are as before. A namespace whose
// label was forgotten is no exception.
func uninstall(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	forgotten := l.SpaceNamed(t, s.Name+"-forgotten", ambitlab.Ambient)
	forgotten.Pair()
	forgotten.Meshed("client", "server")
	s.Meshed("client", "server")
	open := s.Hold("client", "server:9090", ambitlab.Token("held"))
	s.Mode("")
	s.Released("client", "server", "client-beside")
	s.Plainly("client", "server")
	open.GoesOn("until Ambit is deleted")
	l.Kubectl(t, "delete", "-k", filepath.Join(l.Root, "deploy/ambit"), "--wait=true", "--timeout=5m")
	s.Call("client", "http://server/")
	s.Call("client-beside", "http://server/")
	for _, n := range []string{"node1", "node2"} {
		ambitlab.Until(t, "nothing of Ambit to be left on "+n, func() (string, bool) {
			left := l.OnNode(t, n, "ls -d /opt/cni/bin/ambit* /sys/fs/bpf/ambit/* 2>/dev/null; true")
			if now := l.ReadConflist(t, n); !sameJSON(t, now, l.Conflist[n]) {
				left += " " + now
			}
			return left, left == ""
		})
	}
	for _, s := range []*ambitlab.Space{s, forgotten} {
		s.Call("client", "http://server/")
		s.Call("client-beside", "http://server/")
		s.Pod("client-later", "node1", nil)
		s.Ready("client-later")
		s.Call("client-later", "http://server/")
	}
	l.Kubectl(t, "delete", "-k", filepath.Join(l.Root, "deploy/crds"), "--wait=true", "--timeout=5m")
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}
