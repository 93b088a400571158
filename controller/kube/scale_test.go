package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BenchmarkStart is the first translation of a cluster with everything in one
// namespace.
func BenchmarkStart(b *testing.B) {
	const pods, services = 50_000, 500
	for b.Loop() {
		b.StopTimer()
		tr := newBench(b)
		tr.put(kindNamespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		for i := range services {
			tr.put(kindService, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("s", i)},
				Spec: corev1.ServiceSpec{ClusterIP: fmt.Sprintf("10.96.%d.%d", i/250, i%250+1),
					Selector: map[string]string{"part-of": "shop", "app": fmt.Sprint("app", i)}, Ports: []corev1.ServicePort{{Port: 80}}}})
		}
		for i := range pods {
			tr.put(kindPod, podOf(i, services))
		}
		b.StartTimer()
		tr.batch(tr.dirty.drain())
		b.StopTimer()
		n := 0
		for w := range tr.store.Load().AllWorkloads() {
			if len(w.Services) == 1 {
				n++
			}
		}
		if n != pods {
			b.Fatalf("%d of %d pods have their service", n, pods)
		}
		b.StartTimer()
	}
}

func podOf(i, services int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("p", i), Labels: map[string]string{"part-of": "shop", "app": fmt.Sprint("app", i%services)}},
		Spec:       corev1.PodSpec{NodeName: fmt.Sprint("n", i%1000)},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.%d.%d.%d", i/65536+1, i/256%256, i%256)},
	}
}
