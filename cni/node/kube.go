package node

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const indexUID = "uid"
const indexNamespace = "namespace"

// watcher keeps the pods of this node and all namespaces.
type watcher struct {
	client     kubernetes.Interface
	own        string // namespace of our components
	changed    func(uid string)
	pods       cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
}

func newWatcher(client kubernetes.Interface, node, own string, changed func(uid string)) *watcher {
	rest := client.CoreV1().RESTClient()
	return &watcher{
		client:  client,
		own:     own,
		changed: changed,
		pods: cache.NewSharedIndexInformer(
			cache.NewListWatchFromClient(rest, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node)),
			&corev1.Pod{}, 0, cache.Indexers{
				indexUID:       func(o any) ([]string, error) { return []string{string(o.(*corev1.Pod).UID)}, nil },
				indexNamespace: cache.MetaNamespaceIndexFunc,
			}),
		namespaces: cache.NewSharedIndexInformer(
			cache.NewListWatchFromClient(rest, "namespaces", metav1.NamespaceAll, fields.Everything()),
			&corev1.Namespace{}, 0, cache.Indexers{}),
	}
}

// run watches until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	slim := func(o any) (any, error) {
		if m, ok := o.(metav1.Object); ok {
			m.SetManagedFields(nil)
		}
		return o, nil
	}
	pod := func(o any) {
		if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = d.Obj
		}
		if p, ok := o.(*corev1.Pod); ok {
			w.changed(string(p.UID))
		}
	}
	namespace := func(o any) {
		ns, ok := o.(*corev1.Namespace)
		if !ok {
			return
		}
		w.changed("") // the plugin's view of the namespace itself
		for _, p := range w.podsIn(ns.Name) {
			w.changed(string(p.UID))
		}
	}
	for _, informer := range []cache.SharedIndexInformer{w.pods, w.namespaces} {
		if err := informer.SetTransform(slim); err != nil {
			return err
		}
	}
	if _, err := w.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: pod, DeleteFunc: pod,
		UpdateFunc: func(_, o any) { pod(o) },
	}); err != nil {
		return err
	}
	if _, err := w.namespaces.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: namespace, DeleteFunc: namespace,
		UpdateFunc: func(before, o any) {
			a, b := before.(*corev1.Namespace), o.(*corev1.Namespace)
			if a.Labels[labelMode] != b.Labels[labelMode] {
				namespace(o)
			}
			if b.Name == w.own && a.Annotations[annotationUninstall] != b.Annotations[annotationUninstall] {
				w.changed("")
				for _, p := range w.allPods() {
					w.changed(string(p.UID))
				}
			}
		},
	}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { w.pods.Run(ctx.Done()) })
	wg.Go(func() { w.namespaces.Run(ctx.Done()) })
	wg.Wait()
	return nil
}

// wait reports whether both caches are complete before ctx ends.
func (w *watcher) wait(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), w.pods.HasSynced, w.namespaces.HasSynced)
}

// pod returns the pod with this uid, nil when there is none.
func (w *watcher) pod(uid string) *corev1.Pod {
	found, err := w.pods.GetIndexer().ByIndex(indexUID, uid)
	if err != nil || len(found) == 0 {
		return nil
	}
	return found[0].(*corev1.Pod)
}

// named returns the pod of this node with this name, nil when there is none.
func (w *watcher) named(namespace, name string) *corev1.Pod {
	o, ok, err := w.pods.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	return o.(*corev1.Pod)
}

func (w *watcher) allPods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, o := range w.pods.GetStore().List() {
		out = append(out, o.(*corev1.Pod))
	}
	return out
}

func (w *watcher) podsIn(namespace string) []*corev1.Pod {
	found, err := w.pods.GetIndexer().ByIndex(indexNamespace, namespace)
	if err != nil {
		return nil
	}
	var out []*corev1.Pod
	for _, o := range found {
		out = append(out, o.(*corev1.Pod))
	}
	return out
}

// labels of a namespace; ok is false when it is not known.
func (w *watcher) labels(namespace string) (labels map[string]string, ok bool) {
	o, ok, err := w.namespaces.GetStore().GetByKey(namespace)
	if err != nil || !ok {
		return nil, false
	}
	return o.(*corev1.Namespace).Labels, true
}

func (w *watcher) allNamespaces() []*corev1.Namespace {
	var out []*corev1.Namespace
	for _, o := range w.namespaces.GetStore().List() {
		out = append(out, o.(*corev1.Namespace))
	}
	return out
}

// find returns the pod a sandbox is made for. The kubelet may know it before
// our watch does, so a pod that is not there yet is asked for.
func (w *watcher) find(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	if o, ok, err := w.pods.GetStore().GetByKey(namespace + "/" + name); err == nil && ok && matches(o.(*corev1.Pod), uid) {
		return o.(*corev1.Pod), nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	p, err := w.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", namespace, name, err)
	}
	if !matches(p, uid) {
		return nil, fmt.Errorf("pod %s/%s: the API server has uid %s, the sandbox is for %s", namespace, name, p.UID, uid)
	}
	return p, nil
}

// handler of a runtime class, as the container runtime's configuration names it.
func (w *watcher) handler(ctx context.Context, class string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := w.client.NodeV1().RuntimeClasses().Get(ctx, class, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("runtime class %s: %w", class, err)
	}
	return c.Handler, nil
}

// matches accepts any pod when the runtime does not tell a uid.
func matches(p *corev1.Pod, uid string) bool {
	return uid == "" || uid == string(p.UID) || uid == runtimeUID(p)
}

// annotate writes our annotations with a merge patch on the status: the right
// to do that is all the agent needs. "" removes. The uid in the patch makes
// the API server refuse it for a successor of the same name.
func (w *watcher) annotate(ctx context.Context, p *corev1.Pod, values map[string]string) error {
	annotations := make(map[string]any, len(values))
	same := true
	for k, v := range values {
		if p.Annotations[k] != v {
			same = false
		}
		if v == "" {
			annotations[k] = nil
		} else {
			annotations[k] = v
		}
	}
	if same {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID, "annotations": annotations}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = w.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "ambit-cni-node"}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) && w.pod(string(p.UID)) == nil {
		return nil // gone, and its annotations with it
	}
	if err != nil {
		return fmt.Errorf("annotate pod %s: %w", podName(p), err)
	}
	return nil
}
