package firstlight

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// talker sends requests with one secret word, each on a new connection, again
// and again: some may fail while the mesh is broken, none may be readable.
type talker struct {
	s    *space
	word string
	stop func()

	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

func (k *talker) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.Write(b)
}

// answers counts the requests that succeeded and the others.
func (k *talker) answers() (ok, failed int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for line := range strings.Lines(k.out.String()) {
		if strings.HasPrefix(line, "200 ") {
			ok++
		} else if strings.HasPrefix(line, "failed") {
			failed++
		}
	}
	return ok, failed
}

func (s *space) talk(pod, to string) *talker {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	k := &talker{s: s, word: token("talk")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.exec(ctx, pod, k, k, "testapp", "get", "-n", "0", "-every", "30ms", "-timeout", "2s", "-carry-on", "http://"+to+"/"+k.word)
	}()
	k.stop = sync.OnceFunc(func() { cancel(); <-done })
	s.t.Cleanup(k.stop)
	k.goesOn("before anything was broken")
	return k
}

// goesOn wants some more requests to succeed.
func (k *talker) goesOn(when string) {
	k.s.t.Helper()
	before, _ := k.answers()
	until(k.s.t, "requests to succeed "+when, func() (string, bool) {
		ok, failed := k.answers()
		return fmt.Sprintf("%d succeeded, %d failed", ok, failed), ok >= before+5
	})
}

// unread ends it and wants none of its requests to have been readable.
func (k *talker) unread() {
	k.s.t.Helper()
	k.stop()
	k.s.wire.secret(k.s.t, k.word)
	ok, failed := k.answers()
	k.s.t.Logf("%d requests succeeded, %d failed, none was readable", ok, failed)
}

func ztunnelKilled(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	for _, node := range []string{"node1", "node2"} {
		k := s.talk("client", "server")
		was := l.component(t, "ztunnel", node).Status.ContainerStatuses[0].RestartCount
		l.kill(t, node, "ambit-ztunnel")
		until(t, "ztunnel to be started again", func() (string, bool) {
			cs := l.component(t, "ztunnel", node).Status.ContainerStatuses
			return "", len(cs) == 1 && cs[0].RestartCount > was && cs[0].Ready
		})
		k.goesOn("after ztunnel on " + node + " was killed")
		s.works("client-beside", "http://server/")
		k.unread()
	}
	l.healthy(t)
}

// bothKilled: the listeners end with the last process that has them, so
// connections fail until there are new ones. None may go around the mesh.
func bothKilled(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	k := s.talk("client", "server")
	l.kill(t, "node1", "ambit-cni-node", "ambit-ztunnel")
	k.goesOn("after agent and ztunnel of node1 were killed together")
	l.kill(t, "node2", "ambit-ztunnel", "ambit-cni-node")
	k.goesOn("after ztunnel and agent of node2 were killed together")
	s.works("client-beside", "http://server/")
	k.unread()
	l.healthy(t)
}

// rolledOut: the daemons are replaced as by an upgrade.
func rolledOut(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	k := s.talk("client", "server")
	open := s.hold("client", "server:9090", token("held"))
	_, failed := k.answers()
	for _, what := range []string{"daemonset/ambit-cni-node", "deployment/ambit-controller", "daemonset/ztunnel"} {
		l.kubectl(t, "", "rollout", "restart", "-n", system, what)
		l.kubectl(t, "", "rollout", "status", "-n", system, what, "--timeout=90s")
		k.goesOn("after the rollout of " + what)
		_, now := k.answers()
		t.Logf("%d requests failed during the rollout of %s", now-failed, what)
		failed = now
		select {
		case <-open.done:
			t.Logf("the open connection ended: %v", open.broken())
		default:
		}
	}
	k.unread()
	l.healthy(t)
}

func agentKilled(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	for _, node := range []string{"node1", "node2"} {
		k := s.talk("client", "server")
		open := s.hold("client", "server:9090", token("held"))
		was := l.component(t, "ambit-cni-node", node).Status.ContainerStatuses[0].RestartCount
		_, failed := k.answers()
		l.kill(t, node, "ambit-cni-node")
		k.goesOn("right after the agent on " + node + " was killed")
		until(t, "the agent to be started again", func() (string, bool) {
			cs := l.component(t, "ambit-cni-node", node).Status.ContainerStatuses
			return "", len(cs) == 1 && cs[0].RestartCount > was && cs[0].Ready
		})
		k.goesOn("after the agent on " + node + " came back")
		open.goesOn("after the agent on " + node + " came back")
		if _, now := k.answers(); now != failed {
			t.Errorf("%d requests failed because the agent on %s was killed", now-failed, node)
		}
		k.unread()
		name := "client-after-" + node
		s.pod(name, node, nil)
		s.ready(name)
		s.captured(name)
		s.works(name, "http://server/")
	}
	l.healthy(t)
}

func (l *lab) scale(t *testing.T, replicas int) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
	if _, err := l.client.AppsV1().Deployments(system).Patch(t.Context(), "ambit-controller", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, fmt.Sprintf("%d controllers", replicas), func() (string, bool) {
		list, err := l.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "app=ambit-controller"})
		if err != nil {
			return err.Error(), false
		}
		n := 0
		for i := range list.Items {
			if replicas == 0 || ready(&list.Items[i]) && list.Items[i].DeletionTimestamp == nil {
				n++
			}
		}
		return fmt.Sprint(n), n == replicas
	})
}

func controllerAway(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	open := s.hold("client", "server:9090", token("held"))
	k := s.talk("client", "server")
	_, failed := k.answers()
	l.scale(t, 0)
	open.goesOn("without a controller")
	k.goesOn("without a controller")
	out, code := l.ambit(t, "status", "-n", s.name)
	if code != 1 || !strings.Contains(out, "Ambit is NOT healthy.") || !strings.Contains(out, "controller") {
		t.Errorf("status without a controller: exit code %d\n%s", code, out)
	}
	// Without the controller nobody hears of a policy; with it, it counts.
	s.policy("AuthorizationPolicy", "no-client", `{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/`+s.name+`/sa/client]}}]}]}`)
	k.goesOn("without a controller that would tell of a policy")
	if _, now := k.answers(); now != failed {
		t.Errorf("%d requests failed because the controller was away", now-failed)
	}
	l.scale(t, 2)
	s.fails("client", "http://server/")
	k.unread()
	l.healthy(t)
}

// secretMissing: what works goes on, the reason is in the log, and a new key
// does not come into being behind the operator's back while the old one is used.
func secretMissing(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	k := s.talk("client", "server")
	_, failed := k.answers()
	was, err := l.client.CoreV1().Secrets(system).Get(t.Context(), "ambit-ca-secret", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.client.CoreV1().Secrets(system).Delete(t.Context(), "ambit-ca-secret", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Log(l.logged(t, "ambit-controller", "", "ambit-ca-secret", "gone"))
	k.goesOn("without the CA Secret")
	// A replica that starts now must not begin with a key of its own.
	controllers, err := l.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "app=ambit-controller"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.client.CoreV1().Pods(system).Delete(t.Context(), controllers.Items[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Log(l.logged(t, "ambit-controller", "", "ambit-ca-secret", "restore the Secret"))
	k.goesOn("with a replica that has no key")
	// A new identity needs a new certificate.
	if err := s.account("fresh"); err != nil {
		t.Fatal(err)
	}
	s.pod("fresh", "node1", nil)
	s.ready("fresh")
	s.captured("fresh")
	s.works("fresh", "http://server/")
	if _, now := k.answers(); now != failed {
		t.Errorf("%d requests failed because the CA Secret was deleted", now-failed)
	}
	k.unread()
	was.ResourceVersion, was.UID = "", ""
	if _, err := l.client.CoreV1().Secrets(system).Create(t.Context(), was, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.logged(t, "ambit-controller", "", "back as it was")
	l.healthy(t)
}
