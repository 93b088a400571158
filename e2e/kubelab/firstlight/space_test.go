package firstlight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

const (
	labelMode   = "istio.io/dataplane-mode"
	redirection = "ambient.istio.io/redirection"
	appImage    = "kubelab.local/app:1"
)

// space is the namespace of one test.
type space struct {
	*lab
	t    *testing.T
	name string
}

// space makes the test's namespace with the accounts client and server.
func (l *lab) space(t *testing.T, labels map[string]string) *space {
	t.Helper()
	words := strings.FieldsFunc(strings.ToLower(t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
	name := "t-" + strings.Join(words, "-")
	s := &space{lab: l, t: t, name: strings.Trim(name[:min(len(name), 50)], "-")}
	s.create(labels)
	t.Cleanup(func() {
		if !t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = l.client.CoreV1().Namespaces().Delete(ctx, s.name, metav1.DeleteOptions{})
		}
	})
	return s
}

func (s *space) create(labels map[string]string) {
	s.t.Helper()
	_, err := s.client.CoreV1().Namespaces().Create(s.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name, Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range []string{"client", "server"} {
		_, err := s.client.CoreV1().ServiceAccounts(s.name).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: a}}, metav1.CreateOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

var ambient = map[string]string{labelMode: "ambient"}

// mode labels the namespace; "" takes the label away.
func (s *space) mode(value string) {
	s.t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, labelMode, value)
	if value == "" {
		patch = fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, labelMode)
	}
	if _, err := s.client.CoreV1().Namespaces().Patch(s.t.Context(), s.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// pod makes a pod whose account is the part of its name before a dash. Without
// arguments it serves when that account is "server", and sleeps otherwise.
func (s *space) pod(name, node string, labels map[string]string, args ...string) {
	s.t.Helper()
	restart := corev1.RestartPolicyAlways
	if len(args) > 0 {
		restart = corev1.RestartPolicyNever
	}
	s.run(name, node, labels, restart, args...)
}

// loop makes a pod that requests the URL without end.
func (s *space) loop(name, node, url string) {
	s.t.Helper()
	s.run(name, node, nil, corev1.RestartPolicyAlways, "get", "-n", "0", "-every", "50ms", "-timeout", "2s", "-carry-on", url)
}

func (s *space) run(name, node string, labels map[string]string, restart corev1.RestartPolicy, args ...string) {
	s.t.Helper()
	account, _, _ := strings.Cut(name, "-")
	all := map[string]string{"app": account}
	for k, v := range labels {
		all[k] = v
	}
	grace := int64(1)
	c := corev1.Container{Name: "app", Image: appImage, Args: args, Env: []corev1.EnvVar{{Name: "NODE", Value: node}}}
	switch {
	case len(args) > 0:
	case account == "server":
		c.Args = []string{"serve"}
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8080)}}}
	default:
		c.Args = []string{"sleep"}
	}
	_, err := s.client.CoreV1().Pods(s.name).Create(s.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: all},
		Spec: corev1.PodSpec{ServiceAccountName: account, NodeName: node, TerminationGracePeriodSeconds: &grace,
			RestartPolicy: restart, Containers: []corev1.Container{c}},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// service makes the Service "server": http on 80, echo on 9090.
func (s *space) service() {
	s.t.Helper()
	_, err := s.client.CoreV1().Services(s.name).Create(s.t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "server"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "server"}, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}, {Name: "tcp", Port: 9090}}},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// pair makes the usual cast: a client and a server on different nodes, a second
// client beside the server, and the Service.
func (s *space) pair() {
	s.t.Helper()
	s.service()
	s.pod("server", "node2", nil)
	s.pod("client", "node1", nil)
	s.pod("client-beside", "node2", nil)
	s.ready("server", "client", "client-beside")
}

func (s *space) get(name string) *corev1.Pod {
	s.t.Helper()
	p, err := s.client.CoreV1().Pods(s.name).Get(s.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// watch follows a pod until it is as wanted.
func (s *space) watch(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	p := s.get(name)
	for !ok(p) {
		w, err := s.client.CoreV1().Pods(s.name).Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), ResourceVersion: p.ResourceVersion})
		if err != nil {
			s.t.Fatalf("pod %s/%s is not %s: %v", s.name, name, what, err)
		}
		for e := range w.ResultChan() {
			if next, is := e.Object.(*corev1.Pod); is {
				if p = next; ok(p) {
					break
				}
			}
		}
		w.Stop()
		if ctx.Err() != nil {
			s.t.Fatalf("pod %s/%s was not %s within %s: %s, annotations %v", s.name, name, what, patience, p.Status.Phase, p.Annotations)
		}
	}
	return p
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (s *space) ready(names ...string) {
	s.t.Helper()
	for _, n := range names {
		s.watch(n, "ready", ready)
	}
}

// captured waits until the node agent has proven capture of the pods.
func (s *space) captured(names ...string) {
	s.t.Helper()
	for _, n := range names {
		s.watch(n, "captured", func(p *corev1.Pod) bool { return p.Annotations[redirection] == "enabled" })
	}
}

// released waits until the agent has let go of the pods.
func (s *space) released(names ...string) {
	s.t.Helper()
	for _, n := range names {
		s.watch(n, "released", func(p *corev1.Pod) bool { _, there := p.Annotations[redirection]; return !there })
	}
}

func (s *space) id(account string) string {
	return "spiffe://cluster.local/ns/" + s.name + "/sa/" + account
}

// exec runs a program in a pod.
func (s *space) exec(ctx context.Context, pod string, stdout, stderr io.Writer, args ...string) error {
	r := s.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.name).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: "app", Command: args, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	e, err := remotecommand.NewWebSocketExecutor(s.rest, "GET", r.URL().String())
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
}

// try makes one request from a pod and returns the answer.
func (s *space) try(pod, url string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	err := s.exec(ctx, pod, &out, &errs, "testapp", "get", "-timeout", "5s", url)
	if err != nil {
		err = fmt.Errorf("%s: GET %s: %w: %s", pod, url, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), err
}

// call makes a request that must succeed at once.
func (s *space) call(pod, url string) string {
	s.t.Helper()
	out, err := s.try(pod, url)
	if err != nil {
		s.t.Error(err)
	}
	return out
}

// works waits until a request succeeds.
func (s *space) works(pod, url string) {
	s.t.Helper()
	until(s.t, url+" from "+pod, func() (string, bool) {
		_, err := s.try(pod, url)
		return fmt.Sprint(err), err == nil
	})
}

// fails waits until a request is refused.
func (s *space) fails(pod, url string) error {
	s.t.Helper()
	var refused error
	until(s.t, url+" from "+pod+" to be refused", func() (string, bool) {
		_, refused = s.try(pod, url)
		return "it succeeds", refused != nil
	})
	return refused
}

// meshed waits until both nodes know the pods as meshed: what crosses the link
// between them is not readable any more. Only from then on is it promised.
func (s *space) meshed(from, to string) {
	s.t.Helper()
	until(s.t, "traffic from "+from+" to "+to+" to be carried in mTLS", func() (string, bool) {
		word := token("probe")
		if out, err := s.try(from, "http://"+to+"/"+word); err != nil {
			return out + err.Error(), false
		}
		s.wire.settle(s.t)
		return "plaintext", !s.wire.has(word)
	})
}

// plainly waits until traffic is readable on the link again.
func (s *space) plainly(from, to string) {
	s.t.Helper()
	until(s.t, "traffic from "+from+" to "+to+" to go direct", func() (string, bool) {
		word := token("probe")
		if out, err := s.try(from, "http://"+to+"/"+word); err != nil {
			s.t.Errorf("a request failed while the pods were leaving: %v %s", err, out)
			return "", true
		}
		s.wire.settle(s.t)
		return "not readable", s.wire.has(word)
	})
}

// stream is a connection that a pod holds open and sends on all the time.
type stream struct {
	s      *space
	cancel context.CancelFunc
	done   chan struct{}
	err    error // owned by the goroutine until done is closed

	mu     sync.Mutex
	echoes int          // guarded by mu
	errs   bytes.Buffer // guarded by mu
}

// hold opens a connection to an echo server that says the word again and again.
func (s *space) hold(pod, address, word string) *stream {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	h := &stream{s: s, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.err = s.exec(ctx, pod, counter{h, nil}, counter{h, &h.errs}, "testapp", "connect", "-hold", "1h", "-every", "100ms", "-timeout", "30s", "-send", word, address)
	}()
	s.t.Cleanup(func() { cancel(); <-h.done })
	h.goesOn("after it was opened")
	return h
}

type counter struct {
	h    *stream
	keep *bytes.Buffer
}

func (c counter) Write(b []byte) (int, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if c.keep != nil {
		c.keep.Write(b)
	} else {
		c.h.echoes += bytes.Count(b, []byte("echo "))
	}
	return len(b), nil
}

func (h *stream) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.echoes
}

// goesOn wants some more echoes on the same connection.
func (h *stream) goesOn(when string) {
	h.s.t.Helper()
	want := h.count() + 3
	until(h.s.t, "an open connection to go on "+when, func() (string, bool) {
		select {
		case <-h.done:
			h.s.t.Fatalf("an open connection ended %s: %v", when, h.broken())
		default:
		}
		return fmt.Sprintf("%d echoes", h.count()), h.count() >= want
	})
}

func (h *stream) broken() error {
	<-h.done
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Join(h.err, errors.New(h.errs.String()))
}
