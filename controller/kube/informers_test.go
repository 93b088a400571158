package kube

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// twoPods lists two pods and never changes.
type twoPods struct{ cache.ListWatch }

// IsWatchListSemanticsUnSupported keeps the reflector to list and watch.
func (twoPods) IsWatchListSemanticsUnSupported() bool { return true }

// An informer that is synced has not told anybody yet. A first snapshot made
// then lacks objects, and clients would take that for their removal.
func TestSyncedMeansReported(t *testing.T) {
	source := &twoPods{cache.ListWatch{
		ListFunc: func(metav1.ListOptions) (runtime.Object, error) {
			l := &corev1.PodList{}
			for i := range 2 {
				l.Items = append(l.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: fmt.Sprint("p", i)}})
			}
			return l, nil
		},
		WatchFunc: func(metav1.ListOptions) (watch.Interface, error) { return watch.NewFake(), nil },
	}}
	inf := cache.NewSharedIndexInformer(source, &corev1.Pod{}, 0, cache.Indexers{})
	dirty := newDirtySet()
	reported, err := record(inf, kindPod, dirty, func(_, _ *corev1.Pod) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	defer func() { cancel(); <-done }()
	dirty.mu.Lock() // the handler gets no further than its first key
	go func() {
		defer close(done)
		inf.RunWithContext(ctx)
	}()
	if !cache.WaitForCacheSync(t.Context().Done(), inf.HasSynced) {
		t.Fatal("not synced")
	}
	early := reported()
	dirty.mu.Unlock()
	if early {
		t.Error("reported before the handler returned")
	}
	if err := awaitSync(t.Context(), reported); err != nil {
		t.Fatal(err)
	}
	if n := len(dirty.drain()); n != 2 {
		t.Errorf("%d keys, want 2", n)
	}
	if n := dirty.events[kindPod][added].Load(); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}
