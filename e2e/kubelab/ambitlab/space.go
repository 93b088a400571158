package ambitlab

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// LabelMode enrols a namespace or a pod, Redirection is the agent's answer.
	LabelMode   = "istio.io/dataplane-mode"
	Redirection = "ambient.istio.io/redirection"
	// App is the image of the test's applications: kubelab's testapp.
	App = "kubelab.local/app:1"
)

// Ambient enrols; it is not written to.
var Ambient = map[string]string{LabelMode: "ambient"}

// Space is the namespace of one test.
type Space struct {
	*Lab
	Name string
	t    *testing.T
}

// Space makes the test's namespace, named after it, with the accounts client
// and server. It goes when the test has passed.
func (l *Lab) Space(t *testing.T, labels map[string]string) *Space {
	t.Helper()
	words := strings.FieldsFunc(strings.ToLower(t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
	name := "t-" + strings.Join(words, "-")
	return l.SpaceNamed(t, strings.Trim(name[:min(len(name), 50)], "-"), labels)
}

// SpaceNamed is Space for a second namespace of a test.
func (l *Lab) SpaceNamed(t *testing.T, name string, labels map[string]string) *Space {
	t.Helper()
	s := &Space{Lab: l, Name: name, t: t}
	s.create(labels)
	t.Cleanup(func() {
		if !t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = l.Client.CoreV1().Namespaces().Delete(ctx, s.Name, metav1.DeleteOptions{})
		}
	})
	return s
}

func (s *Space) create(labels map[string]string) {
	s.t.Helper()
	_, err := s.Client.CoreV1().Namespaces().Create(s.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Name, Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range []string{"client", "server"} {
		_, err := s.Client.CoreV1().ServiceAccounts(s.Name).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: a}}, metav1.CreateOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// Mode labels the namespace; "" takes the label away.
func (s *Space) Mode(value string) {
	s.t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, LabelMode, value)
	if value == "" {
		patch = fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, LabelMode)
	}
	if _, err := s.Client.CoreV1().Namespaces().Patch(s.t.Context(), s.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// Pod makes a pod whose account is the part of its name before a dash. Without
// arguments it serves when that account is "server", and sleeps otherwise.
func (s *Space) Pod(name, node string, labels map[string]string, args ...string) {
	s.t.Helper()
	restart := corev1.RestartPolicyAlways
	if len(args) > 0 {
		restart = corev1.RestartPolicyNever
	}
	s.run(name, node, labels, restart, nil, args...)
}

// Job makes a pod that runs one command after the other, the first in an init
// container, and ends.
func (s *Space) Job(name, node string, first, then []string) {
	s.t.Helper()
	s.run(name, node, nil, corev1.RestartPolicyNever, first, then...)
}

// Loop makes a pod that requests the URL without end.
func (s *Space) Loop(name, node, url string) {
	s.t.Helper()
	s.run(name, node, nil, corev1.RestartPolicyAlways, nil, "get", "-n", "0", "-every", "50ms", "-timeout", "2s", "-carry-on", url)
}

func (s *Space) run(name, node string, labels map[string]string, restart corev1.RestartPolicy, first []string, args ...string) {
	s.t.Helper()
	account, _, _ := strings.Cut(name, "-")
	all := map[string]string{"app": account}
	for k, v := range labels {
		all[k] = v
	}
	grace := int64(1)
	c := corev1.Container{Name: "app", Image: App, Args: args, Env: []corev1.EnvVar{{Name: "NODE", Value: node}}}
	switch {
	case len(args) > 0:
	case account == "server":
		c.Args = []string{"serve"}
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 10, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8080)}}}
	default:
		c.Args = []string{"sleep"}
	}
	var init []corev1.Container
	if first != nil {
		init = []corev1.Container{{Name: "first", Image: App, Args: first, Env: c.Env}}
	}
	_, err := s.Client.CoreV1().Pods(s.Name).Create(s.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: all},
		Spec: corev1.PodSpec{ServiceAccountName: account, NodeName: node, TerminationGracePeriodSeconds: &grace,
			RestartPolicy: restart, InitContainers: init, Containers: []corev1.Container{c}},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// Service makes the Service "server": http on 80, echo on 9090.
func (s *Space) Service() {
	s.t.Helper()
	_, err := s.Client.CoreV1().Services(s.Name).Create(s.t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "server"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "server"}, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}, {Name: "tcp", Port: 9090}}},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// Pair makes the usual cast: a client and a server on different nodes, a second
// client beside the server, and the Service.
func (s *Space) Pair() {
	s.t.Helper()
	s.Service()
	s.Pod("server", "node2", nil)
	s.Pod("client", "node1", nil)
	s.Pod("client-beside", "node2", nil)
	s.Ready("server", "client", "client-beside")
}

// Account makes one more service account.
func (s *Space) Account(name string) {
	s.t.Helper()
	_, err := s.Client.CoreV1().ServiceAccounts(s.Name).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// Policy applies one of the namespace's policies of security.istio.io.
func (s *Space) Policy(kind, name, spec string) {
	s.t.Helper()
	s.Apply(s.t, fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: %s\n", kind, name, s.Name, spec))
}
