package firstlight

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// labelRunningPods is the promise in one test: label a namespace, and pods
// that knew nothing of Ambit talk mTLS.
func labelRunningPods(t *testing.T, l *lab) {
	s := l.space(t, nil)
	s.pair()
	s.works("client", "http://server/")
	s.works("client-beside", "http://server/")
	before := token("before")
	s.call("client", "http://server/"+before)
	l.wire.plain(t, before)
	was := map[string]*corev1.Pod{}
	for _, n := range []string{"client", "client-beside", "server"} {
		was[n] = s.get(n)
	}

	s.mode("ambient")
	s.captured("server", "client", "client-beside")
	s.meshed("client", "server")
	for n, p := range was {
		if now := s.get(n); now.UID != p.UID || now.Status.ContainerStatuses[0].RestartCount != 0 ||
			now.Status.ContainerStatuses[0].ContainerID != p.Status.ContainerStatuses[0].ContainerID {
			t.Errorf("pod %s was restarted", n)
		}
	}

	server := s.get("server").Status.PodIP
	for _, c := range []struct{ what, pod, url string }{
		{"Service, other node", "client", "http://server/"},
		{"Service, same node", "client-beside", "http://server/"},
		{"pod address, other node", "client", "http://" + server + ":8080/"},
		{"pod address, same node", "client-beside", "http://" + server + ":8080/"},
	} {
		word := token("after")
		out := s.call(c.pod, c.url+word)
		// The server sees the client's own address, as without a mesh.
		if !strings.Contains(out, "client="+s.get(c.pod).Status.PodIP+":") || !strings.Contains(out, word) {
			t.Errorf("%s: the server answered %s", c.what, out)
		}
		l.wire.secret(t, word)
	}
	// Both clients have one account: their names tell them apart.
	for pod, node := range map[string]string{"client": "node1", "client-beside": "node2"} {
		for node, direction := range map[string]string{node: "outbound", "node2": "inbound"} {
			l.logged(t, "ztunnel", node, `direction="`+direction+`"`, `src.workload="`+pod+`"`, `src.namespace="`+s.name+`"`,
				`src.identity="`+s.id("client")+`"`, `dst.identity="`+s.id("server")+`"`)
		}
	}
}

// firstByte: a pod that dials before anything else is captured before it runs.
func firstByte(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.service()
	s.pod("server", "node2", nil)
	s.pod("client", "node1", nil)
	s.ready("server", "client")
	s.meshed("client", "server")
	word := token("first")
	s.pod("client-eager", "node1", nil, "get", "-timeout", "10s", "http://server/"+word)
	p := s.watch("client-eager", "finished", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	if p.Status.Phase != corev1.PodSucceeded {
		t.Errorf("its only request failed: %+v", p.Status.ContainerStatuses)
	}
	l.wire.secret(t, word)
	l.logged(t, "ztunnel", "node2", `direction="inbound"`, `src.workload="client-eager"`, `src.identity="`+s.id("client")+`"`)
}

func ownLabel(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.service()
	s.pod("server", "node2", nil)
	s.pod("client", "node1", nil)
	s.pod("client-out", "node1", map[string]string{labelMode: "none"})
	s.ready("server", "client", "client-out")
	s.captured("server", "client")
	s.meshed("client", "server")
	s.works("client-out", "http://server/") // by kube-proxy, which may be slower than ztunnel
	word := token("optedout")
	s.call("client-out", "http://server/"+word)
	l.wire.plain(t, word)
	if p := s.get("client-out"); p.Annotations[redirection] != "" {
		t.Errorf("the pod that opted out has annotations %v", p.Annotations)
	}

	// In a namespace without the label, the pod's own label is enough.
	in := &space{lab: l, t: t, name: s.name + "-plain"}
	in.create(nil)
	in.service()
	in.pod("server", "node2", ambient)
	in.pod("client", "node1", ambient)
	in.pod("client-out", "node1", nil)
	in.ready("server", "client", "client-out")
	in.captured("server", "client")
	in.meshed("client", "server")
	word = token("optedin")
	in.call("client", "http://server/"+word)
	l.wire.secret(t, word)
	in.works("client-out", "http://server/")
	word = token("notasked")
	in.call("client-out", "http://server/"+word)
	l.wire.plain(t, word)
	if p := in.get("client-out"); p.Annotations[redirection] != "" {
		t.Errorf("the pod nobody asked for has annotations %v", p.Annotations)
	}
}

// unlabel: new connections go direct, and no request fails on the way there.
func unlabel(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	inside := token("inside")
	open := s.hold("client", "server:9090", inside)
	s.mode("")
	open.goesOn("while the namespace leaves the mesh")
	s.plainly("client", "server")
	s.released("client", "server", "client-beside")
	s.call("client", "http://server/")
	s.call("client-beside", "http://server/")
	l.wire.secret(t, inside)
	for _, n := range []string{"node1", "node2"} {
		if out := l.onNode(t, n, "ls /sys/fs/bpf/ambit"); strings.Contains(out, string(s.get("client").UID)) {
			t.Errorf("pins are left on %s: %s", n, out)
		}
	}
}

// olderConnections were open before the label: they run on, in plaintext, while
// newer ones of the same pods are encrypted.
func olderConnections(t *testing.T, l *lab) {
	s := l.space(t, nil)
	s.pair()
	s.works("client", "http://server/")
	old := token("old")
	open := s.hold("client", "server:9090", old)
	l.wire.plain(t, old)
	s.mode("ambient")
	s.captured("client", "server")
	s.meshed("client", "server")
	open.goesOn("after its pods were captured")
	word := token("new")
	s.call("client", "http://server/"+word)
	l.wire.secret(t, word)
	open.goesOn("beside newer ones")
}

func mixed(t *testing.T, l *lab) {
	in := l.space(t, ambient)
	in.pair()
	out := &space{lab: l, t: t, name: in.name + "-plain"}
	out.create(nil)
	out.pair()
	in.meshed("client", "server")
	for _, c := range []struct {
		from *space
		to   *space
	}{{in, out}, {out, in}} {
		for _, pod := range []string{"client", "client-beside"} {
			c.from.works(pod, "http://server."+c.to.name+"/")
		}
		word := token("mixed")
		c.from.call("client", "http://server."+c.to.name+"/"+word)
		l.wire.plain(t, word)
	}
}
