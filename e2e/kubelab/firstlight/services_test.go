package firstlight

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

const ways = `
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: %[1]s}
spec: {clusterIP: None, selector: {app: server}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: ported, namespace: %[1]s}
spec: {type: NodePort, selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: %[1]s}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: %[1]s}
spec:
  hostNetwork: true
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{name: app, image: %[2]s, args: [sleep]}]
`

// services: whatever leads to a pod by Kubernetes' own means leads to a meshed
// one, and from a meshed one to all it may need.
func services(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	l.Apply(t, fmt.Sprintf(ways, s.Name, ambitlab.App))
	s.Ready("host")
	server := s.Now("server").Status.PodIP

	t.Run("headless", func(t *testing.T) {
		s.Works("client", "http://headless:8080/")
		word := ambitlab.Token("headless")
		s.Call("client", "http://headless:8080/"+word)
		l.Wire.Secret(t, word)
	})
	t.Run("NodePort", func(t *testing.T) {
		outside := l.Cluster.ControlPlane()
		node := func(name string) string { return l.Node(t, name).IP.String() }
		for _, c := range []struct{ service, node, client string }{
			{"ported", "node1", node("node1")},
			{"ported", "node2", ""}, // the node's end of the pod's link: whatever the CNI gave it
			{"local", "node2", outside.IP.String()},
		} {
			port := l.Kubectl(t, "get", "service", "-n", s.Name, c.service, "-o", "jsonpath={.spec.ports[0].nodePort}")
			url := "http://" + net.JoinHostPort(node(c.node), port) + "/"
			var answer string
			ambitlab.Until(t, c.service+" at "+c.node, func() (string, bool) {
				var err error
				answer, err = from(t.Context(), outside.Dial, url)
				return fmt.Sprint(err), err == nil
			})
			if !strings.Contains(answer, "pod=server") || c.client != "" && !strings.Contains(answer, "client="+c.client+":") {
				t.Errorf("%s at %s: %s, want a call of %s", c.service, c.node, answer, c.client)
			}
		}
		l.Logged(t, "ztunnel", "node2", `direction="inbound"`, "src.addr="+outside.IP.String()+":", "dst.addr="+server+":8080")
	})
	t.Run("hostNetwork", func(t *testing.T) {
		answer := s.Call("host", "http://"+server+":8080/")
		if !strings.Contains(answer, "client="+l.Node(t, "node1").IP.String()+":") {
			t.Errorf("%s, want a call of the node", answer)
		}
	})
	t.Run("API server", func(t *testing.T) {
		// It tells a client without TLS so, in HTTP.
		if _, err := s.Try("client", "http://kubernetes.default:443/"); err == nil || !strings.Contains(err.Error(), "status 400") {
			t.Errorf("not the API server's answer: %v", err)
		}
	})
	t.Run("itself", func(t *testing.T) {
		for _, url := range []string{"http://server." + s.Name + "/", "http://" + server + ":8080/", "http://127.0.0.1:8080/"} {
			s.Call("server", url)
		}
	})
}

// from makes a request with a dialer.
func from(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	r, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}
