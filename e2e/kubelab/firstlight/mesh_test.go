package firstlight

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

// labelRunningPods is the promise in one test: label a namespace, and pods
// that knew nothing of Ambit talk mTLS.
func labelRunningPods(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, nil)
	s.Pair()
	s.Works("client", "http://server/")
	s.Works("client-beside", "http://server/")
	before := ambitlab.Token("before")
	s.Call("client", "http://server/"+before)
	l.Wire.Plain(t, before)
	was := map[string]*corev1.Pod{}
	for _, n := range []string{"client", "client-beside", "server"} {
		was[n] = s.Now(n)
	}

	s.Mode("ambient")
	s.Captured("server", "client", "client-beside")
	s.Meshed("client", "server")
	for n, p := range was {
		if now := s.Now(n); now.UID != p.UID || now.Status.ContainerStatuses[0].RestartCount != 0 ||
			now.Status.ContainerStatuses[0].ContainerID != p.Status.ContainerStatuses[0].ContainerID {
			t.Errorf("pod %s was restarted", n)
		}
	}

	server := s.Now("server").Status.PodIP
	for _, c := range []struct{ what, pod, url string }{
		{"Service, other node", "client", "http://server/"},
		{"Service, same node", "client-beside", "http://server/"},
		{"pod address, other node", "client", "http://" + server + ":8080/"},
		{"pod address, same node", "client-beside", "http://" + server + ":8080/"},
	} {
		word := ambitlab.Token("after")
		out := s.Call(c.pod, c.url+word)
		// The server sees the client's own address, as without a mesh.
		if !strings.Contains(out, "client="+s.Now(c.pod).Status.PodIP+":") || !strings.Contains(out, word) {
			t.Errorf("%s: the server answered %s", c.what, out)
		}
		l.Wire.Secret(t, word)
	}
	// Both clients have one account: their names tell them apart.
	for pod, node := range map[string]string{"client": "node1", "client-beside": "node2"} {
		for node, direction := range map[string]string{node: "outbound", "node2": "inbound"} {
			l.Logged(t, "ztunnel", node, `direction="`+direction+`"`, `src.workload="`+pod+`"`, `src.namespace="`+s.Name+`"`,
				`src.identity="`+s.ID("client")+`"`, `dst.identity="`+s.ID("server")+`"`)
		}
	}
}

// firstByte: a pod that dials before anything else is captured before it runs.
func firstByte(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Service()
	s.Pod("server", "node2", nil)
	s.Pod("client", "node1", nil)
	s.Ready("server", "client")
	s.Meshed("client", "server")
	word, early := ambitlab.Token("first"), ambitlab.Token("init")
	s.Job("client-eager", "node1", []string{"get", "-timeout", "60s", "http://server/" + early}, []string{"get", "-timeout", "60s", "http://server/" + word})
	p := s.Watch("client-eager", "finished", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	if p.Status.Phase != corev1.PodSucceeded {
		t.Errorf("its only request failed: %+v", p.Status.ContainerStatuses)
	}
	l.Wire.Secret(t, word)
	l.Wire.Secret(t, early)
	s.Released("client-eager") // its object is still there
	// The other node may not have heard of the pod yet when it connects, so it
	// knows its identity but not its name.
	l.Logged(t, "ztunnel", "node1", `direction="outbound"`, `src.workload="client-eager"`, `src.identity="`+s.ID("client")+`"`, `dst.identity="`+s.ID("server")+`"`)
}

func ownLabel(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Service()
	s.Pod("server", "node2", nil)
	s.Pod("client", "node1", nil)
	s.Pod("client-out", "node1", map[string]string{ambitlab.LabelMode: "none"})
	s.Ready("server", "client", "client-out")
	s.Captured("server", "client")
	s.Meshed("client", "server")
	s.Works("client-out", "http://server/") // by kube-proxy, which may be slower than ztunnel
	word := ambitlab.Token("optedout")
	s.Call("client-out", "http://server/"+word)
	l.Wire.Plain(t, word)
	if p := s.Now("client-out"); p.Annotations[ambitlab.Redirection] != "" {
		t.Errorf("the pod that opted out has annotations %v", p.Annotations)
	}

	// In a namespace without the label, the pod's own label is enough.
	in := l.SpaceNamed(t, s.Name+"-plain", nil)
	in.Service()
	in.Pod("server", "node2", ambitlab.Ambient)
	in.Pod("client", "node1", ambitlab.Ambient)
	in.Pod("client-out", "node1", nil)
	in.Ready("server", "client", "client-out")
	in.Captured("server", "client")
	in.Meshed("client", "server")
	word = ambitlab.Token("optedin")
	in.Call("client", "http://server/"+word)
	l.Wire.Secret(t, word)
	in.Works("client-out", "http://server/")
	word = ambitlab.Token("notasked")
	in.Call("client-out", "http://server/"+word)
	l.Wire.Plain(t, word)
	if p := in.Now("client-out"); p.Annotations[ambitlab.Redirection] != "" {
		t.Errorf("the pod nobody asked for has annotations %v", p.Annotations)
	}
}

// unlabel: new connections go direct, no request fails on the way there, and an
// open connection of any kind goes on until it ends by itself. Then the pods
// leave.
func unlabel(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, nil)
	s.Pair()
	out := l.SpaceNamed(t, s.Name+"-plain", nil)
	out.Pair()
	s.Works("client", "http://server/")
	out.Works("client", "http://server."+s.Name+"/")
	s.Works("client", "http://server."+out.Name+"/")
	older := s.Hold("client", "server:9090", ambitlab.Token("older"))
	s.Mode("ambient")
	s.Captured("client", "server", "client-beside")
	s.Meshed("client", "server")
	inside := ambitlab.Token("inside")
	open := map[string]*ambitlab.Stream{
		"between nodes":         s.Hold("client", "server:9090", inside),
		"on one node":           s.Hold("client-beside", "server:9090", ambitlab.Token("beside")),
		"from outside the mesh": out.Hold("client", "server."+s.Name+":9090", ambitlab.Token("in")),
		"to outside the mesh":   s.Hold("client", "server."+out.Name+":9090", ambitlab.Token("out")),
		"older than the label":  older,
	}
	s.Pod("client-calls", "node1", nil, "get", "-n", "0", "-every", "50ms", "-timeout", "60s", "-carry-on", "http://server/")
	calls := func(when string) {
		t.Helper()
		answers := func() int {
			log := l.Kubectl(t, "logs", "-n", s.Name, "client-calls")
			for line := range strings.Lines(log) {
				if strings.HasPrefix(line, "failed") {
					t.Fatalf("a request failed %s: %s", when, line)
				}
			}
			return strings.Count(log, "\n200 ")
		}
		before := answers()
		ambitlab.Until(t, "requests to be answered "+when, func() (string, bool) {
			now := answers()
			return fmt.Sprintf("%d answers, %d before", now, before), now >= before+3
		})
	}
	s.Captured("client-calls")
	s.Ready("client-calls")
	calls("in the mesh")

	began := time.Now()
	s.Mode("")
	s.Plainly("client", "server")
	said := l.Logged(t, "ambit-cni-node", "node1", "pod is leaving the mesh", `"pod":"`+s.Name+`/client"`)
	var line struct{ Time time.Time }
	if err := json.Unmarshal([]byte(said), &line); err != nil {
		t.Fatalf("%s: %v", said, err)
	}
	t.Logf("new connections go direct %s after the label was taken off", line.Time.Sub(began).Round(10*time.Millisecond))
	for what, c := range open {
		c.GoesOn("while the namespace leaves the mesh: " + what)
	}
	calls("while the namespace leaves the mesh")
	s.Released("client", "server", "client-beside", "client-calls")
	for what, c := range open {
		if c != older {
			t.Log("end the connection", what)
			c.Close()
		}
	}
	began = time.Now()
	for pod, node := range map[string]string{"client": "node1", "client-calls": "node1", "server": "node2", "client-beside": "node2"} {
		l.Logged(t, "ambit-cni-node", node, "pod has left the mesh", `"pod":"`+s.Name+"/"+pod+`"`)
		line := l.Logged(t, "ambit-cni-node", node, "pod captured", `"pod":"`+s.Name+"/"+pod+`"`)
		_, id, _ := strings.Cut(line, `"container":"`)
		id, _, _ = strings.Cut(id, `"`)
		if id == "" {
			t.Fatalf("no sandbox in %s", line)
		}
		if left := l.OnNode(t, node, "ls /sys/fs/bpf/ambit"); strings.Contains(left, id) {
			t.Errorf("pins of %s are left on %s: %s", pod, node, left)
		}
	}
	t.Logf("nothing of the mesh is left in the pods %s after their last connection had ended", time.Since(began).Round(10*time.Millisecond))
	older.GoesOn("after its pods had left")
	calls("after the pods had left")
	s.Call("client-beside", "http://server/")
	l.Wire.Secret(t, inside)
}

// olderConnections were open before the label: they run on, in plaintext, while
// newer ones of the same pods are encrypted, until a policy refuses plaintext.
func olderConnections(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, nil)
	s.Pair()
	s.Works("client", "http://server/")
	old := ambitlab.Token("old")
	open := s.Hold("client", "server:9090", old)
	l.Wire.Plain(t, old)
	s.Mode("ambient")
	s.Captured("client", "server")
	s.Meshed("client", "server")
	open.GoesOn("after its pods were captured")
	word := ambitlab.Token("new")
	s.Call("client", "http://server/"+word)
	l.Wire.Secret(t, word)
	open.GoesOn("beside newer ones")
	older := func(pod string) string { return s.Now(pod).Annotations["ambitmesh.io/older-connections"] }
	for _, pod := range []string{"client", "server"} {
		if n := older(pod); n == "" {
			t.Errorf("pod %s does not say that it has an older connection", pod)
		}
	}
	s.Policy("PeerAuthentication", "strict", `{mtls: {mode: STRICT}}`)
	ambitlab.Until(t, "the older connection to be ended", func() (string, bool) {
		select {
		case <-open.Done():
			return "", true
		default:
			return "it runs on", false
		}
	})
	l.Logged(t, "ztunnel", "node2", "connection destroyed", `dst.namespace="`+s.Name+`"`, "src.addr="+s.Now("client").Status.PodIP+":", `reason="older_denied"`)
	ambitlab.Until(t, "no pod to have an older connection", func() (string, bool) {
		client, server := older("client"), older("server")
		return fmt.Sprintf("client %q, server %q", client, server), client == "" && server == ""
	})
	s.Works("client", "http://server/")
	if p := s.Now("server"); !ambitlab.IsReady(p) || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the server is not ready under STRICT, or was restarted")
	}
}

func mixed(t *testing.T, l *ambitlab.Lab) {
	in := l.Space(t, ambitlab.Ambient)
	in.Pair()
	out := l.SpaceNamed(t, in.Name+"-plain", nil)
	out.Pair()
	in.Meshed("client", "server")
	for _, c := range []struct {
		from *ambitlab.Space
		to   *ambitlab.Space
	}{{in, out}, {out, in}} {
		for _, pod := range []string{"client", "client-beside"} {
			c.from.Works(pod, "http://server."+c.to.Name+"/")
		}
		word := ambitlab.Token("mixed")
		c.from.Call("client", "http://server."+c.to.Name+"/"+word)
		l.Wire.Plain(t, word)
	}
}
