package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// fieldManager names the controller in managedFields.
const fieldManager = "ambit-controller"

// job is one object the writer brings to its wanted state.
type job struct {
	policy          bool   // AuthorizationPolicy status; else the root ConfigMaps of namespace
	namespace, name string // name of the policy
}

// writer is the only part of the controller that writes to the API server,
// and only while it runs, which is while this replica holds the Lease. It
// compares with the cached object first, so a new leader writes nothing when
// nothing is to be changed.
type writer struct {
	cfg     *Config
	caches  *caches
	metrics *metrics

	configMaps []informers.SharedInformerFactory    // one per ConfigMap name
	byName     map[string]cache.SharedIndexInformer // the informers in them
	queue      *duties[job]                         // keys to write

	mu       sync.Mutex
	verdicts map[job]policyVerdict // wanted statuses, guarded by mu
}

func newWriter(cfg *Config, cs *caches, m *metrics) (*writer, error) {
	w := &writer{
		cfg: cfg, caches: cs, metrics: m,
		byName:   make(map[string]cache.SharedIndexInformer),
		queue:    newDuties(workqueue.NewTypedItemExponentialFailureRateLimiter[job](50*time.Millisecond, time.Minute)),
		verdicts: make(map[job]policyVerdict),
	}
	for _, name := range cfg.ConfigMaps {
		// Only objects of this name are watched, which RBAC can be limited to.
		f := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(trim),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=" + name }))
		w.configMaps = append(w.configMaps, f)
		w.byName[name] = f.Core().V1().ConfigMaps().Informer()
		if err := w.notice(w.byName[name], false); err != nil {
			return nil, err
		}
	}
	if err := w.notice(cs.namespaces, false); err != nil {
		return nil, err
	}
	return w, w.notice(cs.policies, true)
}

// notice queues what changed objects of inf ask the writer to look at.
func (w *writer) notice(inf cache.SharedIndexInformer, policy bool) error {
	add := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		o, ok := obj.(metav1.Object)
		switch ns, isNamespace := obj.(*corev1.Namespace); {
		case !ok:
		case isNamespace:
			w.queue.Add(job{namespace: ns.Name})
		case policy:
			w.queue.Add(job{policy: true, namespace: o.GetNamespace(), name: o.GetName()})
		default:
			w.queue.Add(job{namespace: o.GetNamespace()})
		}
	}
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    add,
		UpdateFunc: func(_, now any) { add(now) },
		DeleteFunc: add,
	})
	if err != nil {
		return fmt.Errorf("watch for the writer: %w", err)
	}
	return nil
}

// want records what a policy's status should say. It is called by the
// translator and never blocks.
func (w *writer) want(v policyVerdict) {
	j := job{policy: true, namespace: v.namespace, name: v.name}
	w.mu.Lock()
	if v.deleted {
		delete(w.verdicts, j)
	} else {
		w.verdicts[j] = v
	}
	w.mu.Unlock()
	w.queue.Add(j)
}

// start runs the informers only the writer needs. Every replica has them, so
// that a new leader starts from a warm cache.
func (w *writer) start(ctx context.Context, wg *sync.WaitGroup) {
	for _, f := range w.configMaps {
		f.Start(ctx.Done())
	}
	wg.Go(func() { w.followRoots(ctx) })
	wg.Go(func() {
		<-ctx.Done()
		w.queue.ShutDown()
	})
}

func (w *writer) shutdown() {
	for _, f := range w.configMaps {
		f.Shutdown()
	}
}

// run writes until term ends.
func (w *writer) run(term context.Context) {
	for _, inf := range w.byName {
		if awaitSync(term, inf.HasSynced) != nil {
			return
		}
	}
	w.metrics.leader.Set(1)
	defer w.metrics.leader.Set(0)
	defer w.queue.take()()
	// Everything is looked at again: another replica may have had the Lease.
	w.queueNamespaces()
	w.mu.Lock()
	for j := range w.verdicts {
		w.queue.Add(j)
	}
	w.mu.Unlock()

	// The queue has no way to wait for a context; a queued empty job wakes it.
	stop := context.AfterFunc(term, func() { w.queue.Add(job{}) })
	defer stop()
	for term.Err() == nil {
		j, shutdown := w.queue.Get()
		if shutdown {
			return
		}
		w.do(term, j)
		w.queue.Done(j)
	}
}

func (w *writer) do(ctx context.Context, j job) {
	if j == (job{}) || ctx.Err() != nil {
		return
	}
	var err error
	if j.policy {
		err = w.writeStatus(ctx, j)
	} else {
		err = w.writeRoots(ctx, j.namespace)
	}
	if err == nil {
		w.queue.Forget(j)
		return
	}
	if w.queue.NumRequeues(j) == 3 { // conflicts and lost races heal before
		w.cfg.Logger.Warn("cannot write, trying on", "error", err)
	}
	w.queue.AddRateLimited(j)
}
