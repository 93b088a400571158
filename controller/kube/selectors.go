package kube

import (
	corev1 "k8s.io/api/core/v1"
)

// selectors finds the services of one namespace that may pick a pod, without
// asking each of them once there are many pods to ask for.
type selectors struct {
	all   []*corev1.Service
	asked int
	by    map[label][]*corev1.Service // nil until it pays
}

// label is one key and value of a selector.
type label struct{ key, value string }

// payOff is how many pods are looked up by asking every service. A single pod
// that changes is not worth an index.
const payOff = 16

func (s *selectors) picking(pod *corev1.Pod) []*corev1.Service {
	if s.asked++; s.asked <= payOff {
		return s.all
	}
	if s.by == nil {
		s.index()
	}
	var out []*corev1.Service
	for k, v := range pod.Labels {
		out = append(out, s.by[label{k, v}]...)
	}
	return out
}

// index files each service under the rarest label of its selector: others,
// such as the one that a whole product carries, would find everything.
func (s *selectors) index() {
	count := make(map[label]int)
	for _, svc := range s.all {
		for k, v := range svc.Spec.Selector {
			count[label{k, v}]++
		}
	}
	s.by = make(map[label][]*corev1.Service)
	for _, svc := range s.all {
		var rarest label
		least := 0
		for k, v := range svc.Spec.Selector {
			if n := count[label{k, v}]; least == 0 || n < least {
				rarest, least = label{k, v}, n
			}
		}
		if least > 0 { // without a selector it picks nobody
			s.by[rarest] = append(s.by[rarest], svc)
		}
	}
}
