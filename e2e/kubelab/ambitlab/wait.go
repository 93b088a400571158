package ambitlab

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// Now is a pod as it is.
func (s *Space) Now(name string) *corev1.Pod {
	s.t.Helper()
	p, err := s.Client.CoreV1().Pods(s.Name).Get(s.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// Watch follows a pod until it is as wanted.
func (s *Space) Watch(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
	defer cancel()
	p := s.Now(name)
	for !ok(p) {
		w, err := s.Client.CoreV1().Pods(s.Name).Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), ResourceVersion: p.ResourceVersion})
		if err != nil {
			s.t.Fatalf("pod %s/%s is not %s: %v", s.Name, name, what, err)
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
			s.t.Fatalf("pod %s/%s was not %s within %s: %s, annotations %v", s.Name, name, what, Patience, p.Status.Phase, p.Annotations)
		}
	}
	return p
}

// IsReady says whether the pod is.
func IsReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Ready waits until the pods are.
func (s *Space) Ready(names ...string) {
	s.t.Helper()
	for _, n := range names {
		s.Watch(n, "ready", IsReady)
	}
}

// Captured waits until the node agent has proven capture of the pods.
func (s *Space) Captured(names ...string) {
	s.t.Helper()
	for _, n := range names {
		s.Watch(n, "captured", func(p *corev1.Pod) bool { return p.Annotations[Redirection] == "enabled" })
	}
}

// Released waits until the agent has let go of the pods.
func (s *Space) Released(names ...string) {
	s.t.Helper()
	for _, n := range names {
		s.Watch(n, "released", func(p *corev1.Pod) bool { _, there := p.Annotations[Redirection]; return !there })
	}
}
