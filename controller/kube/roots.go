package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// followRoots has every ConfigMap looked at again when the roots change.
func (w *writer) followRoots(ctx context.Context) {
	for ctx.Err() == nil {
		changed := w.cfg.Roots.Changed()
		w.queueNamespaces()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (w *writer) queueNamespaces() {
	for _, ns := range w.caches.namespaces.GetIndexer().ListKeys() {
		w.queue.Add(job{namespace: ns})
	}
}

// lacking are the ConfigMaps that do not hold the roots yet.
func (w *writer) lacking() []string {
	bundle, _ := w.cfg.Roots.Bundle()
	var out []string
	for _, ns := range w.caches.namespaces.GetIndexer().List() {
		ns := ns.(*corev1.Namespace)
		if !w.receivesRoots(ns) {
			continue
		}
		for _, name := range w.cfg.ConfigMaps {
			if name == IstioCRLConfigMap {
				continue
			}
			if have := get[*corev1.ConfigMap](w.byName[name], ns.Name+"/"+name); have == nil || have.Data[RootKey] != string(bundle) {
				out = append(out, "configmap "+ns.Name+"/"+name)
			}
		}
	}
	return out
}

// writeRoots puts the trust anchors into namespace, under every configured
// ConfigMap name. Pods mount it to verify the controller.
func (w *writer) writeRoots(ctx context.Context, namespace string) error {
	ns := get[*corev1.Namespace](w.caches.namespaces, namespace)
	if !w.receivesRoots(ns) {
		return nil
	}
	var errs []error
	for _, name := range w.cfg.ConfigMaps {
		errs = append(errs, w.writeRoot(ctx, namespace, name))
	}
	return errors.Join(errs...)
}

// receivesRoots: the two namespaces left out hold no pods.
func (w *writer) receivesRoots(ns *corev1.Namespace) bool {
	return ns != nil && ns.Status.Phase == corev1.NamespaceActive && ns.DeletionTimestamp == nil &&
		ns.Name != metav1.NamespacePublic && ns.Name != corev1.NamespaceNodeLease
}

func (w *writer) writeRoot(ctx context.Context, namespace, name string) error {
	client := w.cfg.Client.CoreV1().ConfigMaps(namespace)
	bundle, _ := w.cfg.Roots.Bundle()
	want, revoked := string(bundle), w.cfg.Roots.Revoked()
	have := get[*corev1.ConfigMap](w.byName[name], namespace+"/"+name)
	var err error
	var data map[string]string
	if have != nil {
		data = have.Data
	}
	lacks := rootData(name, data, want, revoked)
	switch {
	case lacks == nil:
		return nil
	case have == nil:
		_, err = client.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"istio.io/config": "true"}},
			Data:       lacks,
		}, metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || apierrors.IsNotFound(err) {
			return nil // the namespace is going
		}
	default:
		var patch []byte
		if patch, err = json.Marshal(map[string]any{"data": lacks}); err == nil {
			_, err = client.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		}
	}
	w.metrics.wrote("configmap", err)
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", namespace, name, err)
	}
	return nil
}
