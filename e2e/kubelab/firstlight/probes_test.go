package firstlight

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

// probed is a pod with every probe there is, of every kind, in a container for
// each kind and in a sidecar, and with hooks that the kubelet dials. %[1]s is the
// namespace, %[2]s how long a hook takes. A probe that fails once is not forgiven:
// it shows at once.
const probed = `
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: %[1]s, labels: {app: server}}
spec:
  nodeName: node2
  serviceAccountName: server
  terminationGracePeriodSeconds: 10
  initContainers:
    - name: side
      image: kubelab.local/app:1
      restartPolicy: Always
      args: [serve, -http, ":8181", -tcp, ""]
      ports: [{name: side-web, containerPort: 8181}]
      startupProbe: {httpGet: {path: /health/start, port: side-web}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 240}
      readinessProbe: {httpGet: {path: /health/ready, port: side-web}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
      livenessProbe: {httpGet: {path: /health/live, port: side-web}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
  containers:
    - name: app
      image: kubelab.local/app:1
      args: [serve, -http, ":8080", -tcp, ""]
      ports: [{name: web, containerPort: 8080}]
      startupProbe: {httpGet: {path: /health/start, port: web}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 240}
      readinessProbe: {httpGet: {path: /health/ready, port: web}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
      livenessProbe: {httpGet: {path: /health/live, port: 8080}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
      lifecycle:
        postStart: {httpGet: {path: /hook/post-start, port: 8181}}
        preStop: {httpGet: {path: /hook/pre-stop, port: 8181}}
    - name: tcp
      image: kubelab.local/app:1
      args: [serve, -http, ":8081", -tcp, ":9090"]
      startupProbe: {tcpSocket: {port: 9090}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 240}
      readinessProbe: {tcpSocket: {port: 9090}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
      livenessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
    - name: grpc
      image: kubelab.local/app:1
      args: [serve, -http, ":8082", -tcp, "", -grpc, ":9191"]
      startupProbe: {grpc: {port: 9191, service: start}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 240}
      readinessProbe: {grpc: {port: 9191, service: ready}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
      livenessProbe: {grpc: {port: 9191, service: live}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
    - name: exec
      image: kubelab.local/app:1
      args: [serve, -http, ":8083", -tcp, ""]
      lifecycle: {postStart: {httpGet: {path: /slow/%[2]s, port: 8181}}}
      startupProbe: {exec: {command: [testapp, get, -timeout, 15s, "http://127.0.0.1:8083/health/start"]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 240}
      readinessProbe: {exec: {command: [testapp, get, -timeout, 15s, "http://127.0.0.1:8083/health/ready"]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
      livenessProbe: {exec: {command: [testapp, get, -timeout, 15s, "http://127.0.0.1:8083/health/live"]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
`

// kinds are the containers of the pod: the port each can be made unwell at, what
// its readiness asks for, and what it logs of a probe.
var kinds = map[string]struct {
	port             int
	readiness, trace string
}{
	"side": {8181, "ready", "probe ready"}, "app": {8080, "ready", "probe ready"}, "tcp": {8081, "tcp", "tcp client"},
	"grpc": {8082, "ready", "probe grpc ready"}, "exec": {8083, "ready", "probe ready"},
}

// locked is the namespace of a test with such a pod, where nobody may connect to
// anybody.
func locked(t *testing.T, l *ambitlab.Lab, hook time.Duration) *ambitlab.Space {
	t.Helper()
	s := l.Space(t, ambitlab.Ambient)
	s.Policy("PeerAuthentication", "strict", `{mtls: {mode: STRICT}}`)
	s.Policy("AuthorizationPolicy", "deny-all", `{}`)
	l.Apply(t, fmt.Sprintf(probed, s.Name, hook))
	s.Ready("server")
	s.Captured("server")
	return s
}

// unwell sets what the probes of a container ask for. Exec needs no network.
func unwell(t *testing.T, s *ambitlab.Space, container, what string, bad bool) {
	t.Helper()
	state := "good"
	if bad {
		state = "bad"
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/health/%s/%s", kinds[container].port, what, state)
	if out, err := s.TryKubectl(t, "exec", "-n", s.Name, "server", "-c", container, "--", "testapp", "get", url); err != nil {
		t.Fatalf("%s %s %s: %v %s", container, what, state, err, out)
	}
}

func statuses(p *corev1.Pod) map[string]corev1.ContainerStatus {
	all := map[string]corev1.ContainerStatus{}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		all[c.Name] = c
	}
	return all
}

func readiness(p *corev1.Pod) map[string]bool {
	all := map[string]bool{}
	for name, c := range statuses(p) {
		all[name] = c.Ready
	}
	return all
}

func every(ready bool) map[string]bool {
	all := map[string]bool{}
	for name := range kinds {
		all[name] = ready
	}
	return all
}

// sayOf counts the lines of a container's log that have the words.
func sayOf(t *testing.T, l *ambitlab.Lab, namespace, container, words string) (n int, last string) {
	t.Helper()
	b, err := l.Client.CoreV1().Pods(namespace).GetLogs("server", &corev1.PodLogOptions{Container: container}).DoRaw(t.Context())
	if err != nil {
		return 0, err.Error() // the kubelet that has it may be starting
	}
	for line := range bytes.Lines(b) {
		if bytes.Contains(line, []byte(words)) {
			n++
			last = strings.TrimSpace(string(line))
		}
	}
	return n, last
}

// plainProcess has a process of the node that is no container's ask the pod.
func plainProcess(t *testing.T, l *ambitlab.Lab, to string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := l.Node(t, "node2").Dial(ctx, "tcp", to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "GET /health/ready HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}

// probesAreFixed tries the ways to change a running pod: what the agent has read
// of its probes once stays true.
func probesAreFixed(t *testing.T, l *ambitlab.Lab, pod *corev1.Pod) {
	t.Helper()
	pods := l.Client.CoreV1().Pods(pod.Namespace)
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8083)}}}
	for what, try := range map[string]func(*corev1.Pod) error{
		"another probe of a container": func(p *corev1.Pod) error {
			p.Spec.Containers[0].ReadinessProbe = probe
			_, err := pods.Update(t.Context(), p, metav1.UpdateOptions{})
			return err
		},
		"another probe with other resources": func(p *corev1.Pod) error {
			p.Spec.Containers[0].ReadinessProbe = probe
			_, err := pods.UpdateResize(t.Context(), p.Name, p, metav1.UpdateOptions{})
			return err
		},
		"an ephemeral container with a probe": func(p *corev1.Pod) error {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: ambitlab.App, ReadinessProbe: probe}}}
			_, err := pods.UpdateEphemeralContainers(t.Context(), p.Name, p, metav1.UpdateOptions{})
			return err
		},
	} {
		p, err := pods.Get(t.Context(), pod.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		err = try(p)
		now, gerr := pods.Get(t.Context(), pod.Name, metav1.GetOptions{})
		if gerr != nil {
			t.Fatal(gerr)
		}
		same := apiequality.Semantic.DeepEqual(now.Spec.Containers[0].ReadinessProbe, pod.Spec.Containers[0].ReadinessProbe) && len(now.Spec.EphemeralContainers) == 0
		if !same || err != nil && !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
			t.Errorf("%s: unchanged %v, %v", what, same, err)
		}
	}
}

// probesOfEveryKind: under STRICT and a policy that allows nothing the kubelet's
// probes reach the application, and what it answers counts; nobody else's
// connection to the same ports does.
func probesOfEveryKind(t *testing.T, l *ambitlab.Lab) {
	// Longer than a connection that is older than capture, and that policy
	// refuses, would be left alone.
	s := locked(t, l, 25*time.Second)
	out := l.SpaceNamed(t, s.Name+"-plain", nil)
	out.Pod("client", "node1", nil)
	out.Pod("client-beside", "node2", nil)
	l.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: client-host, namespace: %s}
spec:
  nodeName: node2
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: app, image: "kubelab.local/app:1", args: [sleep]}]
`, out.Name))
	s.Pod("client", "node2", nil)
	out.Ready("client", "client-beside", "client-host")
	s.Ready("client")
	s.Captured("client")

	p := s.Now("server")
	if got := readiness(p); !maps.Equal(got, every(true)) {
		t.Fatalf("ready: %v", got)
	}
	for name, c := range statuses(p) {
		if c.RestartCount != 0 {
			t.Errorf("container %s was restarted %d times", name, c.RestartCount)
		}
	}
	for _, line := range l.Logs(t, "ztunnel", "node2") {
		if strings.Contains(line, `dst.namespace="`+s.Name+`"`) && strings.Contains(line, "connection destroyed") {
			t.Errorf("ztunnel ended a connection of the kubelet: %s", line)
		}
	}
	for _, port := range []string{"8080", "9191", "9090", "8181"} {
		to := "http://" + p.Status.PodIP + ":" + port + "/health/ready"
		l.Refused(t, "a pod of another node at probe port "+port, out.Name, "client", to)
		l.Refused(t, "a pod of the same node at probe port "+port, out.Name, "client-beside", to)
		l.Refused(t, "a pod in the node's network at probe port "+port, out.Name, "client-host", to)
		l.Refused(t, "a meshed pod at probe port "+port, s.Name, "client", to)
		if line, err := plainProcess(t, l, p.Status.PodIP+":"+port); err == nil {
			t.Errorf("a process of the node was answered at probe port %s: %s", port, line)
		}
	}
	if text, _ := l.Ambit(t, "status"); strings.Contains(text, "every process of the node") {
		t.Errorf("ambit status says that the kubelet cannot be told:\n%s", text)
	}

	probesAreFixed(t, l, p)

	for name, k := range kinds {
		unwell(t, s, name, k.readiness, true)
	}
	s.Watch("server", "unready in all its containers", func(p *corev1.Pod) bool { return maps.Equal(readiness(p), every(false)) })
	for name, k := range kinds {
		unwell(t, s, name, k.readiness, false)
	}
	s.Watch("server", "ready again in all its containers", func(p *corev1.Pod) bool { return maps.Equal(readiness(p), every(true)) })

	if n, line := sayOf(t, l, s.Name, "side", "hook post-start"); n != 1 {
		t.Errorf("%d postStart hooks arrived: %s", n, line)
	}
	for _, name := range []string{"app", "grpc", "exec"} {
		unwell(t, s, name, "live", true)
		p = s.Watch("server", "restarted in container "+name, func(p *corev1.Pod) bool {
			c := statuses(p)[name]
			return c.RestartCount > 0 && c.Ready
		})
	}
	for _, name := range []string{"side", "tcp"} {
		if n := statuses(p)[name].RestartCount; n != 0 {
			t.Errorf("container %s, which was alive, was restarted %d times", name, n)
		}
	}
	for _, hook := range []string{"pre-stop", "post-start"} {
		if n, line := sayOf(t, l, s.Name, "side", "hook "+hook); n == 0 || n > 2 {
			t.Errorf("%d %s hooks arrived around one restart: %s", n, hook, line)
		}
	}

	// It is policy that refused: without it everybody is answered.
	l.Kubectl(t, "delete", "-n", s.Name, "authorizationpolicy/deny-all", "peerauthentication/strict")
	to := "http://" + p.Status.PodIP + ":8080/health/ready"
	out.Works("client-host", to)
	out.Works("client", to)
	ambitlab.Until(t, "a process of the node to be answered", func() (string, bool) {
		line, err := plainProcess(t, l, p.Status.PodIP+":8080")
		return fmt.Sprint(line, err), err == nil && strings.Contains(line, "200")
	})
}

// probesThroughRestarts: node agent, ztunnel and kubelet are restarted while
// probes run that may not fail once, and the new kubelet's pass as the old one's
// did: it is in another cgroup.
func probesThroughRestarts(t *testing.T, l *ambitlab.Lab) {
	s := locked(t, l, 0)
	address := s.Now("server").Status.PodIP + ":8080"
	// Before its start an application fails probes; from now on none may.
	failures := func() (n int32) {
		list, err := l.Client.CoreV1().Events(s.Name).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=Unhealthy"})
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			n += max(list.Items[i].Count, 1)
		}
		return n
	}
	before := failures()
	goesOn := func(when string) {
		t.Helper()
		seen := map[string]int{}
		for name, k := range kinds {
			seen[name], _ = sayOf(t, l, s.Name, name, k.trace)
		}
		ambitlab.Until(t, "probes of every kind to go on "+when, func() (string, bool) {
			for name, k := range kinds {
				if n, line := sayOf(t, l, s.Name, name, k.trace); n < seen[name]+3 {
					return fmt.Sprintf("%s: %d, %d before; %s", name, n, seen[name], line), false
				}
			}
			return "", true
		})
		p := s.Now("server")
		for name, c := range statuses(p) {
			if c.RestartCount != 0 {
				t.Errorf("%s: container %s was restarted %d times", when, name, c.RestartCount)
			}
		}
		if now := failures(); now != before {
			t.Errorf("%s: %d probes failed", when, now-before)
			before = now
		}
		if line, err := plainProcess(t, l, address); err == nil {
			t.Errorf("%s a process of the node was answered at a probe port: %s", when, line)
		}
	}
	goesOn("at first")
	for _, program := range []string{"ambit-cni-node", "ambit-ztunnel"} {
		l.Kill(t, "node2", program)
		goesOn("while " + program + " is away")
		l.Healthy(t)
		goesOn("after " + program + " was killed")
	}
	told := func() (ids []string) {
		for _, line := range l.Logs(t, "ambit-cni-node", "node2") {
			if _, after, ok := strings.Cut(line, `"probes are taken from the kubelet's cgroup only","cgroups":`); ok {
				ids = append(ids, after)
			}
		}
		return ids
	}
	first := told()
	if len(first) == 0 {
		t.Fatal("the node agent has not found the kubelet")
	}
	if err := l.Node(t, "node2").RestartKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	ambitlab.Until(t, "the new kubelet to be told", func() (string, bool) {
		now := told()
		return fmt.Sprint(now), len(now) > len(first) && now[len(now)-1] != first[len(first)-1]
	})
	goesOn("after the kubelet was restarted")
	ambitlab.Until(t, "the pod to be ready", func() (string, bool) {
		p := s.Now("server")
		return fmt.Sprint(readiness(p)), ambitlab.IsReady(p)
	})
	// What the new kubelet is told still counts.
	unwell(t, s, "grpc", "ready", true)
	s.Watch("server", "unready", func(p *corev1.Pod) bool { return !ambitlab.IsReady(p) })
	l.Healthy(t)
}
