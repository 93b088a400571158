package kube

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// TestSelectorsFindWhatAskingEachFinds, and no service twice.
func TestSelectorsFindWhatAskingEachFinds(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		labels := func(most int) map[string]string {
			m := map[string]string{}
			for range rnd.IntN(most + 1) {
				m[fmt.Sprint("k", rnd.IntN(4))] = fmt.Sprint("v", rnd.IntN(3))
			}
			return m
		}
		s := newSelectors(nil, func(svc *corev1.Service) map[string]string { return svc.Spec.Selector })
		for i := range 40 {
			s.all = append(s.all, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: fmt.Sprint(i)}, Spec: corev1.ServiceSpec{Selector: labels(3)}})
		}
		for i := range 200 {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Labels: labels(4)}}
			found := func(in []*corev1.Service) (names []string) {
				for _, svc := range in {
					if translate.Selects(svc, pod.Namespace, pod.Labels) {
						names = append(names, svc.Name)
					}
				}
				slices.Sort(names)
				return names
			}
			if got, want := found(s.picking(pod.Labels)), found(s.all); !slices.Equal(got, want) {
				t.Fatalf("seed %d, look %d: %v, want %v", seed, i, got, want)
			}
		}
		if s.by == nil {
			t.Fatal("the index was never made")
		}
	}
}
