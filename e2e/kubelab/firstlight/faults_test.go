package firstlight

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

func ztunnelKilled(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	for _, node := range []string{"node1", "node2"} {
		k := s.Talk("client", "server")
		was := l.Component(t, "ztunnel", node).Status.ContainerStatuses[0].RestartCount
		l.Kill(t, node, "ambit-ztunnel")
		ambitlab.Until(t, "ztunnel to be started again", func() (string, bool) {
			cs := l.Component(t, "ztunnel", node).Status.ContainerStatuses
			return "", len(cs) == 1 && cs[0].RestartCount > was && cs[0].Ready
		})
		k.GoesOn("after ztunnel on " + node + " was killed")
		s.Works("client-beside", "http://server/")
		k.Unread()
	}
	l.Healthy(t)
}

// bothKilled: the listeners end with the last process that has them, so
// connections fail until there are new ones. None may go around the mesh.
func bothKilled(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	k := s.Talk("client", "server")
	l.Kill(t, "node1", "ambit-cni-node", "ambit-ztunnel")
	k.GoesOn("after agent and ztunnel of node1 were killed together")
	l.Kill(t, "node2", "ambit-ztunnel", "ambit-cni-node")
	k.GoesOn("after ztunnel and agent of node2 were killed together")
	s.Works("client-beside", "http://server/")
	k.Unread()
	l.Healthy(t)
}

// rolledOut: the daemons are replaced as by an upgrade.
func rolledOut(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	k := s.Talk("client", "server")
	open := s.Hold("client", "server:9090", ambitlab.Token("held"))
	_, failed := k.Answers()
	for _, what := range []string{"daemonset/ambit-cni-node", "deployment/ambit-controller", "daemonset/ztunnel"} {
		l.Kubectl(t, "rollout", "restart", "-n", ambitlab.System, what)
		l.Kubectl(t, "rollout", "status", "-n", ambitlab.System, what, "--timeout=5m")
		k.GoesOn("after the rollout of " + what)
		_, now := k.Answers()
		t.Logf("%d requests failed during the rollout of %s", now-failed, what)
		failed = now
		select {
		case <-open.Done():
			t.Logf("the open connection ended: %v", open.Broken())
		default:
		}
	}
	k.Unread()
	l.Healthy(t)
}

func agentKilled(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	for _, node := range []string{"node1", "node2"} {
		k := s.Talk("client", "server")
		open := s.Hold("client", "server:9090", ambitlab.Token("held"))
		was := l.Component(t, "ambit-cni-node", node).Status.ContainerStatuses[0].RestartCount
		_, failed := k.Answers()
		l.Kill(t, node, "ambit-cni-node")
		k.GoesOn("right after the agent on " + node + " was killed")
		ambitlab.Until(t, "the agent to be started again", func() (string, bool) {
			cs := l.Component(t, "ambit-cni-node", node).Status.ContainerStatuses
			return "", len(cs) == 1 && cs[0].RestartCount > was && cs[0].Ready
		})
		k.GoesOn("after the agent on " + node + " came back")
		open.GoesOn("after the agent on " + node + " came back")
		if _, now := k.Answers(); now != failed {
			t.Errorf("%d requests failed because the agent on %s was killed", now-failed, node)
		}
		k.Unread()
		name := "client-after-" + node
		s.Pod(name, node, nil)
		s.Ready(name)
		s.Captured(name)
		s.Works(name, "http://server/")
	}
	l.Healthy(t)
}

func controllerAway(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	open := s.Hold("client", "server:9090", ambitlab.Token("held"))
	k := s.Talk("client", "server")
	_, failed := k.Answers()
	l.Scale(t, 0)
	open.GoesOn("without a controller")
	k.GoesOn("without a controller")
	out, code := l.Ambit(t, "status", "-n", s.Name)
	if code != 1 || !strings.Contains(out, "Ambit is NOT healthy.") || !strings.Contains(out, "controller") {
		t.Errorf("status without a controller: exit code %d\n%s", code, out)
	}
	// Without the controller nobody hears of a policy; with it, it counts.
	s.Policy("AuthorizationPolicy", "no-client", `{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/`+s.Name+`/sa/client]}}]}]}`)
	k.GoesOn("without a controller that would tell of a policy")
	if _, now := k.Answers(); now != failed {
		t.Errorf("%d requests failed because the controller was away", now-failed)
	}
	l.Scale(t, 2)
	s.Fails("client", "http://server/")
	k.Unread()
	l.Healthy(t)
}

// secretMissing: what works goes on, a new replica signs with the same key, the
// reason is in the log, and a new key does not come into being behind the
// operator's back while the old one is used.
func secretMissing(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	k := s.Talk("client", "server")
	_, failed := k.Answers()
	was, err := l.Client.CoreV1().Secrets(ambitlab.System).Get(t.Context(), "ambit-ca-secret", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Client.CoreV1().Secrets(ambitlab.System).Delete(t.Context(), "ambit-ca-secret", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Log(l.Logged(t, "ambit-controller", "", "ambit-ca-secret", "gone"))
	k.GoesOn("without the CA Secret")
	// A replica that starts now has the key from what is in force.
	controllers, err := l.Client.CoreV1().Pods(ambitlab.System).List(t.Context(), metav1.ListOptions{LabelSelector: "app=ambit-controller"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Client.CoreV1().Pods(ambitlab.System).Delete(t.Context(), controllers.Items[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.GoesOn("with a replica that starts without the CA Secret")
	// A new identity needs a new certificate.
	s.Account("fresh")
	s.Pod("fresh", "node1", nil)
	s.Ready("fresh")
	s.Captured("fresh")
	s.Works("fresh", "http://server/")
	if _, now := k.Answers(); now != failed {
		t.Errorf("%d requests failed because the CA Secret was deleted", now-failed)
	}
	k.Unread()
	was.ResourceVersion, was.UID = "", ""
	if _, err := l.Client.CoreV1().Secrets(ambitlab.System).Create(t.Context(), was, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.Logged(t, "ambit-controller", "", "can be used again")
	l.Healthy(t)
}

// rootChanged: the CA's root is replaced on a cluster whose ztunnels are the
// shipped DaemonSet's. Connections go on, pods of before and after the change
// speak with one another, and a replica that starts in between agrees.
func rootChanged(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	k := s.Talk("client", "server")
	_, failed := k.Answers()
	if out, code := l.Ambit(t, "ca", "rotate", "--wait"); code != 0 || !strings.Contains(out, "retiring") {
		t.Fatalf("ambit ca rotate: code %d\n%s", code, out)
	}
	k.GoesOn("with the new root")
	s.Account("fresh") // its certificate is of the new root, the others' of the old
	s.Pod("fresh", "node1", nil)
	s.Ready("fresh")
	s.Captured("fresh")
	s.Works("fresh", "http://server/")
	controllers, err := l.Client.CoreV1().Pods(ambitlab.System).List(t.Context(), metav1.ListOptions{LabelSelector: "app=ambit-controller"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Client.CoreV1().Pods(ambitlab.System).Delete(t.Context(), controllers.Items[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.GoesOn("with a replica that starts after the change")
	l.Healthy(t)
	if out, code := l.Ambit(t, "ca", "status"); code != 0 || !strings.Contains(out, "retiring") || !strings.Contains(out, "old root") {
		t.Errorf("ambit ca status: code %d\n%s", code, out)
	}
	if _, now := k.Answers(); now != failed {
		t.Errorf("%d requests failed because the root was changed", now-failed)
	}
	k.Unread()
}

// intentDamaged: what the agent remembers is not to be believed after a crash.
// A new one begins from the API server and the pins. It cannot take the pods'
// listeners back from ztunnel, so what is open may be cut; the pods are served
// again without anybody's help, and nothing is readable meanwhile.
func intentDamaged(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	for node, pod := range map[string]string{"node1": "client", "node2": "server"} {
		k := s.Talk("client", "server")
		open := s.Hold("client", "server:9090", ambitlab.Token("held"))
		_, failed := k.Answers()
		was := l.Component(t, "ambit-cni-node", node).Status.ContainerStatuses[0].RestartCount
		// Stopped first: it would write the file anew, or be started again too soon.
		l.OnNode(t, node, `for p in /proc/[0-9]*; do
				case "$(tr '\0' ' ' <$p/cmdline)" in /usr/local/bin/ambit-cni-node\ *) agents="$agents ${p#/proc/}";; esac
			done
			kill -STOP $agents && printf damaged >/var/lib/ambit/intent && kill -9 $agents`)
		ambitlab.Until(t, "the agent to be started again", func() (string, bool) {
			cs := l.Component(t, "ambit-cni-node", node).Status.ContainerStatuses
			return "", len(cs) == 1 && cs[0].RestartCount > was && cs[0].Ready
		})
		l.Logged(t, "ambit-cni-node", node, "intent file is damaged")
		k.GoesOn("after the intent file of " + node + " was damaged")
		s.Captured(pod)
		l.Healthy(t)
		s.Works("client-beside", "http://server/")
		_, now := k.Answers()
		t.Logf("%d requests failed", now-failed)
		select {
		case <-open.Done():
			t.Logf("the open connection ended: %v", open.Broken())
		default:
			open.GoesOn("after the agent on " + node + " began anew")
		}
		k.Unread()
	}
}
