package firstlight

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func (s *space) account(name string) error {
	_, err := s.client.CoreV1().ServiceAccounts(s.name).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

func conflistRewritten(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	if now := l.readConflist(t, "node1"); !strings.Contains(now, `"ambit-cni"`) {
		t.Fatalf("the plugin is not in %s:\n%s", conflistFile, now)
	}
	// As other tools do it: a new file under the old name.
	path := filepath.Join(l.node(t, "node1").Root(), conflistFile)
	if err := os.WriteFile(path+".new", []byte(l.conflist["node1"]), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	l.onNode(t, "node1", "rm /opt/cni/bin/ambit-cni")
	until(t, "entry and plugin to be repaired", func() (string, bool) {
		now := l.readConflist(t, "node1") + l.onNode(t, "node1", "ls /opt/cni/bin")
		return now, strings.Count(now, "ambit-cni") >= 2
	})
	l.logged(t, "ambit-cni-node", "node1", "repaired after somebody else's change", "10-kubelab.conflist")
	s.pod("client-later", "node1", nil)
	s.ready("client-later")
	word := token("later")
	s.call("client-later", "http://server/"+word)
	l.wire.secret(t, word)
	l.healthy(t)
}

// agents sends the node agents away, or brings them back.
func (l *lab) agents(t *testing.T, there bool) {
	t.Helper()
	patch := `{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"true"}}}}}`
	if there {
		patch = `{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":null}}}}}`
	}
	if _, err := l.client.AppsV1().DaemonSets(system).Patch(t.Context(), "ambit-cni-node", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if there {
		return
	}
	until(t, "the agents to be gone", func() (string, bool) {
		list, err := l.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "app=ambit-cni-node"})
		return fmt.Sprint(err), err == nil && len(list.Items) == 0
	})
}

// agentAway: pods of enrolled namespaces wait for the agent, others do not.
func agentAway(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	plain := &space{lab: l, t: t, name: s.name + "-plain"}
	plain.create(nil)
	plain.pod("client", "node1", nil) // the agents know the namespace from here on
	plain.ready("client")
	k := s.talk("client", "server")
	_, failed := k.answers()
	l.agents(t, false)
	out, code := l.ambit(t, "status", "-n", s.name)
	if code != 1 || !strings.Contains(out, "node agent") {
		t.Errorf("status without agents: exit code %d\n%s", code, out)
	}
	began := time.Now()
	word := token("waits")
	s.pod("client-waits", "node1", nil, "get", "-timeout", "10s", "http://server/"+word)
	plain.pod("client-later", "node1", nil)
	plain.ready("client-later")
	t.Logf("the pod outside the mesh was ready after %s", time.Since(began).Round(time.Millisecond))
	k.goesOn("without agents")
	if p := s.get("client-waits"); p.Status.Phase != corev1.PodPending {
		t.Errorf("a pod to be captured is %s without an agent", p.Status.Phase)
	}
	l.agents(t, true)
	p := s.watch("client-waits", "finished", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	if p.Status.Phase != corev1.PodSucceeded {
		t.Errorf("its only request failed: %+v", p.Status.ContainerStatuses)
	}
	l.wire.secret(t, word)
	if _, now := k.answers(); now != failed {
		t.Errorf("%d requests failed because the agents were away", now-failed)
	}
	k.unread()
	l.healthy(t)
}

// reboot: a node comes back, and its pods never spoke plaintext meanwhile.
func reboot(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.pod("server-one", "node1", nil)
	s.ready("server-one")
	// It talks on its own from the moment it is started, again and again.
	word := token("boot")
	s.loop("client-loop", "node2", "http://"+s.get("server-one").Status.PodIP+":8080/"+word)
	s.ready("client-loop")
	s.meshed("client", "server")
	s.meshed("client-beside", "server")
	k := s.talk("client", "server")
	starts := s.get("client-loop").Status.ContainerStatuses[0].RestartCount
	if err := l.node(t, "node2").Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.watch("client-loop", "started again", func(p *corev1.Pod) bool {
		cs := p.Status.ContainerStatuses
		return len(cs) == 1 && cs[0].RestartCount > starts && cs[0].Ready
	})
	k.goesOn("after the node was rebooted")
	s.captured("server", "client-beside", "client-loop")
	s.works("client-beside", "http://server/")
	l.logged(t, "ztunnel", "node1", `direction="inbound"`, `src.workload="client-loop"`, `src.identity="`+s.id("client")+`"`)
	l.wire.secret(t, word)
	k.unread()
	l.healthy(t)
}

// uninstall: un-label, delete, and the nodes are as before. A namespace whose
// label was forgotten is no exception.
func uninstall(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	forgotten := &space{lab: l, t: t, name: s.name + "-forgotten"}
	forgotten.create(ambient)
	forgotten.pair()
	forgotten.meshed("client", "server")
	s.meshed("client", "server")
	open := s.hold("client", "server:9090", token("held"))
	s.mode("")
	s.released("client", "server", "client-beside")
	s.plainly("client", "server")
	open.goesOn("until Ambit is deleted")
	l.kubectl(t, "", "delete", "-k", filepath.Join(l.root, "deploy/ambit"), "--wait=true", "--timeout=80s")
	s.call("client", "http://server/")
	s.call("client-beside", "http://server/")
	for _, n := range []string{"node1", "node2"} {
		until(t, "nothing of Ambit to be left on "+n, func() (string, bool) {
			left := l.onNode(t, n, "ls -d /opt/cni/bin/ambit* /sys/fs/bpf/ambit/* 2>/dev/null; true")
			if now := l.readConflist(t, n); !sameJSON(t, now, l.conflist[n]) {
				left += " " + now
			}
			return left, left == ""
		})
	}
	for _, s := range []*space{s, forgotten} {
		s.call("client", "http://server/")
		s.call("client-beside", "http://server/")
		s.pod("client-later", "node1", nil)
		s.ready("client-later")
		s.call("client-later", "http://server/")
	}
	l.kubectl(t, "", "delete", "-k", filepath.Join(l.root, "deploy/crds"), "--wait=true", "--timeout=80s")
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}
