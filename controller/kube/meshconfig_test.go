package kube

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambitmesh/ambit/controller/translate"
)

// Namespaces come and go all day. Only one that is looked at differently, with
// objects in it, has what is there decided again.
func TestScopesCostNothing(t *testing.T) {
	tr := newBench(t)
	tr.cfg.Translate.Beside, tr.cfg.Translate.Revision = true, "ambit"
	namespace := func(name, revision string) *corev1.Namespace {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"mesh": "yes"}}}
		if revision != "" {
			ns.Labels[translate.RevisionLabel] = revision
		}
		return ns
	}
	settle := func() bool {
		tr.whole = false
		tr.settle(newView(tr.caches, &tr.good, &tr.cfg.Translate), tr.dirty.drain())
		return tr.whole
	}
	tr.put(kindNamespace, namespace("first", ""))
	settle()
	tr.cfg.Translate.Mesh.DiscoverySelectors = []labels.Selector{labels.SelectorFromSet(labels.Set{"mesh": "yes"})}
	if tr.put(kindNamespace, namespace("preview", "ambit")); settle() {
		t.Error("everything is decided again for a new namespace")
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "preview", Name: "p"}}
	tr.put(kindPod, pod)
	settle()
	if tr.put(kindNamespace, namespace("preview", "")); !settle() {
		t.Error("nothing is decided again for a namespace that is another's now")
	}
	tr.del(kindPod, pod)
	if tr.del(kindNamespace, namespace("preview", "")); settle() {
		t.Error("everything is decided again for a namespace that is gone")
	}
	if _, ok := tr.scopes["preview"]; ok {
		t.Error("a namespace that is gone is remembered")
	}
	tr.cfg.Translate.Beside = false
	tr.put(kindPod, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "first", Name: "p"}})
	settle()
	if tr.put(kindNamespace, namespace("first", "ambit")); settle() {
		t.Error("alone in a cluster a namespace's revision counts")
	}
}

// A controller that starts with settings that it cannot read serves nothing until
// it can: the defaults would open what somebody may have closed.
//
//ambit:feature mesh-config-bad
func TestUnreadableSettingsAtStart(t *testing.T) {
	tr := newBench(t)
	write := func(text string) {
		tr.put(kindMeshConfig, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: translate.MeshConfigMap}, Data: map[string]string{"mesh": text}})
	}
	if err := tr.unreadable(); err != nil {
		t.Errorf("without settings: %v", err)
	}
	write("outboundTrafficPolicy: {mode: ALLOW_SOME}")
	if err := tr.unreadable(); err == nil || !strings.Contains(err.Error(), "ALLOW_SOME") {
		t.Errorf("%v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		c := &Controller{cfg: *tr.cfg}
		asked := 0
		if err := c.awaitSettings(t.Context(), func() error {
			if asked++; asked == 3 {
				write("outboundTrafficPolicy: {mode: REGISTRY_ONLY}")
			}
			return tr.unreadable()
		}); err != nil || asked != 3 {
			t.Errorf("asked %d times: %v", asked, err)
		}
		ended, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.awaitSettings(ended, func() error { return errors.New("odd") }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}
