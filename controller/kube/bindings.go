package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"istio.io/api/meta/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// bindingManager names in managedFields who writes the conditions about
// waypoints, apart from everything else the controller writes.
const bindingManager = "ambit-waypoint-binding"

// bindings brings the conditions about waypoints on Services and service and
// workload entries to what the translator wants, while this replica holds the
// Lease. Nothing is written that is there already.
type bindings struct {
	cfg     *Config
	caches  *caches
	metrics *metrics
	queue   *duties[key]

	mu     sync.Mutex
	wanted map[key][]translate.Condition // guarded by mu; of objects that have any

	refused map[key]refused // owned by run: of Services, in this term
}

// refused is what another manager did not let us write.
type refused struct {
	uid  types.UID
	want []translate.Condition
}

func newBindings(cfg *Config, cs *caches, m *metrics) *bindings {
	return &bindings{
		cfg: cfg, caches: cs, metrics: m, wanted: make(map[key][]translate.Condition), refused: make(map[key]refused),
		queue: newDuties(workqueue.NewTypedItemExponentialFailureRateLimiter[key](50*time.Millisecond, time.Minute)),
	}
}

// ours are the types of condition that this part writes and takes away.
var ours = []string{
	translate.ConditionWaypointBound, translate.ConditionWaypointMissing, translate.ConditionWaypointRequired,
	translate.ConditionVisibilityApplied,
}

// want records which conditions an object should have. It is called by the
// translator and never blocks. Of an object that is not ours to write on,
// nothing is wanted.
func (b *bindings) want(k key, conditions []translate.Condition) {
	b.mu.Lock()
	old := b.wanted[k]
	if len(conditions) > 0 {
		b.wanted[k] = conditions
	} else {
		delete(b.wanted, k)
	}
	b.mu.Unlock()
	// Without any now and before, there may still be one that an earlier run of
	// ours has left; run looks at those.
	if !slices.Equal(old, conditions) || len(conditions) > 0 {
		b.queue.Add(k)
	}
}

// run writes until term ends.
func (b *bindings) run(term context.Context) {
	defer b.queue.take()()
	clear(b.refused)
	// Everything that has a condition is looked at again: another replica may
	// have had the Lease.
	b.mu.Lock()
	for k := range b.wanted {
		b.queue.Add(k)
	}
	b.mu.Unlock()
	for _, k := range b.stale() {
		b.queue.Add(k)
	}
	stop := context.AfterFunc(term, func() { b.queue.Add(key{}) }) // the queue knows no context
	defer stop()
	for term.Err() == nil {
		k, shutdown := b.queue.Get()
		if shutdown {
			return
		}
		b.do(term, k)
		b.queue.Done(k)
	}
}

// stale are the objects that have a condition of ours, maybe by an earlier run.
// On what another control plane may write, such a condition is its own.
func (b *bindings) stale() []key {
	v := newView(b.caches, &lastGood{}, &b.cfg.Translate)
	var out []key
	for _, o := range b.caches.services.GetIndexer().List() {
		svc := o.(*corev1.Service)
		if b.cfg.Translate.Writes(svc, v) && slices.ContainsFunc(svc.Status.Conditions, func(c metav1.Condition) bool { return slices.Contains(ours, c.Type) }) {
			out = append(out, key{kindService, svc.Namespace, svc.Name})
		}
	}
	for k, inf := range map[kind]cache.SharedIndexInformer{kindServiceEntry: b.caches.serviceEntries, kindWorkloadEntry: b.caches.workloadEntries} {
		for _, o := range inf.GetIndexer().List() {
			m := o.(metav1.Object)
			if b.cfg.Translate.Writes(m, v) && slices.ContainsFunc(istioConditions(o), func(c *v1alpha1.IstioCondition) bool { return slices.Contains(ours, c.GetType()) }) {
				out = append(out, key{k, m.GetNamespace(), m.GetName()})
			}
		}
	}
	return out
}

func istioConditions(o any) []*v1alpha1.IstioCondition {
	switch o := o.(type) {
	case *networkingv1.ServiceEntry:
		return o.Status.GetConditions()
	case *networkingv1.WorkloadEntry:
		return o.Status.GetConditions()
	}
	return nil
}

func (b *bindings) do(ctx context.Context, k key) {
	if k == (key{}) || ctx.Err() != nil {
		return
	}
	b.mu.Lock()
	want := b.wanted[k]
	b.mu.Unlock()
	var err error
	switch k.kind {
	case kindService:
		err = b.writeService(ctx, k, want)
	case kindServiceEntry, kindWorkloadEntry:
		err = b.writeEntry(ctx, k, want)
	}
	if err == nil {
		b.queue.Forget(k)
		return
	}
	if b.queue.NumRequeues(k) == 3 { // conflicts and lost races heal before
		b.cfg.Logger.Warn("cannot write, trying on", "error", err)
	}
	b.queue.AddRateLimited(k)
}

// writeService applies the conditions under a name of our own: the list is
// merged by type, so everybody's others stay. Beside another control plane a
// condition that somebody else owns is not taken from him.
func (b *bindings) writeService(ctx context.Context, k key, want []translate.Condition) error {
	svc := get[*corev1.Service](b.caches.services, k.namespace+"/"+k.name)
	if svc == nil {
		delete(b.refused, k)
		return nil
	}
	if no, ok := b.refused[k]; ok && no.uid == svc.UID && slices.Equal(no.want, want) {
		return nil // the next term asks again: the other one may be gone
	}
	conditions := []metav1.Condition{}
	same := true
	for _, w := range want {
		c := metav1.Condition{Type: w.Type, Status: metav1.ConditionFalse, Reason: w.Reason, Message: w.Message,
			ObservedGeneration: svc.Generation, LastTransitionTime: metav1.Now()}
		if w.True {
			c.Status = metav1.ConditionTrue
		}
		i := slices.IndexFunc(svc.Status.Conditions, func(o metav1.Condition) bool { return o.Type == w.Type })
		if i >= 0 && svc.Status.Conditions[i].Status == c.Status {
			c.LastTransitionTime = svc.Status.Conditions[i].LastTransitionTime
		}
		if i < 0 || svc.Status.Conditions[i] != c {
			same = false
		}
		conditions = append(conditions, c)
	}
	for _, have := range svc.Status.Conditions {
		if slices.Contains(ours, have.Type) && !slices.ContainsFunc(want, func(w translate.Condition) bool { return w.Type == have.Type }) {
			same = false
		}
	}
	if same {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Service",
		// Of a Service that was made again under the name, nothing is known.
		"metadata": map[string]any{"name": svc.Name, "namespace": svc.Namespace, "uid": svc.UID},
		"status":   map[string]any{"conditions": conditions},
	})
	if err != nil {
		return fmt.Errorf("status of Service %s/%s: %w", k.namespace, k.name, err)
	}
	force := !b.cfg.Translate.Beside
	now, err := b.cfg.Client.CoreV1().Services(k.namespace).Patch(ctx, k.name, types.ApplyPatchType, patch,
		metav1.PatchOptions{FieldManager: bindingManager, Force: &force}, "status")
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err) && !force:
		// Or the UID is that of a later one, which is asked for when it is seen.
		b.refused[k] = refused{svc.UID, want}
		b.cfg.Logger.Info("the conditions about waypoints are another's to write", "service", k.namespace+"/"+k.name, "error", err)
		return nil
	case apierrors.IsConflict(err): // the UID: an event of the new one comes
		return nil
	}
	delete(b.refused, k)
	b.metrics.wrote("service_status", err)
	if err == nil && force {
		err = b.sweep(ctx, now, want)
	}
	if err != nil {
		return fmt.Errorf("status of Service %s/%s: %w", k.namespace, k.name, err)
	}
	return nil
}

// sweep takes away conditions that are no longer wanted and that an apply leaves,
// because it does not own them: those of a control plane that was here before.
// Never beside another one, which may be whose they are.
func (b *bindings) sweep(ctx context.Context, svc *corev1.Service, want []translate.Condition) error {
	var left []map[string]string
	for _, have := range svc.Status.Conditions {
		if slices.Contains(ours, have.Type) && !slices.ContainsFunc(want, func(w translate.Condition) bool { return w.Type == have.Type }) {
			left = append(left, map[string]string{"$patch": "delete", "type": have.Type})
		}
	}
	if len(left) == 0 || !b.cfg.Translate.Writes(svc, newView(b.caches, &lastGood{}, &b.cfg.Translate)) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": svc.ResourceVersion},
		"status":   map[string]any{"conditions": left},
	})
	if err == nil {
		_, err = b.cfg.Client.CoreV1().Services(svc.Namespace).Patch(ctx, svc.Name, types.StrategicMergePatchType, patch,
			metav1.PatchOptions{FieldManager: bindingManager}, "status")
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	b.metrics.wrote("service_status", err)
	return err
}

// writeEntry patches the whole list, which these types do not merge, at the
// version it was read at.
func (b *bindings) writeEntry(ctx context.Context, k key, want []translate.Condition) error {
	name := k.namespace + "/" + k.name
	var o metav1.Object
	var have []*v1alpha1.IstioCondition
	if k.kind == kindServiceEntry {
		if se := get[*networkingv1.ServiceEntry](b.caches.serviceEntries, name); se != nil {
			o, have = se, istioConditions(se)
		}
	} else if we := get[*networkingv1.WorkloadEntry](b.caches.workloadEntries, name); we != nil {
		o, have = we, istioConditions(we)
	}
	if o == nil {
		return nil
	}
	conditions, changed := withConditions(have, want, o.GetGeneration(), timestamppb.Now())
	if !changed {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": o.GetResourceVersion()},
		"status":   map[string]any{"conditions": conditions},
	})
	options := metav1.PatchOptions{FieldManager: bindingManager}
	if err == nil {
		if k.kind == kindServiceEntry {
			_, err = b.cfg.Istio.NetworkingV1().ServiceEntries(k.namespace).Patch(ctx, k.name, types.MergePatchType, patch, options, "status")
		} else {
			_, err = b.cfg.Istio.NetworkingV1().WorkloadEntries(k.namespace).Patch(ctx, k.name, types.MergePatchType, patch, options, "status")
		}
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	object := "serviceentry_status"
	if k.kind == kindWorkloadEntry {
		object = "workloadentry_status"
	}
	b.metrics.wrote(object, err)
	if err != nil {
		return fmt.Errorf("status of %s %s: %w", k.kind, name, err)
	}
	return nil
}

// withConditions is have with want in place of the conditions that are ours,
// and whether that differs.
func withConditions(have []*v1alpha1.IstioCondition, want []translate.Condition, generation int64, now *timestamppb.Timestamp) ([]*v1alpha1.IstioCondition, bool) {
	out := []*v1alpha1.IstioCondition{} // not nil: a merge patch would drop the field
	old := make(map[string]*v1alpha1.IstioCondition)
	for _, c := range have {
		if slices.Contains(ours, c.GetType()) {
			old[c.GetType()] = c
		} else {
			out = append(out, c)
		}
	}
	changed := len(old) != len(want)
	for _, w := range want {
		status := "False"
		if w.True {
			status = "True"
		}
		c := &v1alpha1.IstioCondition{Type: w.Type, Status: status, Reason: w.Reason, Message: w.Message,
			ObservedGeneration: generation, LastTransitionTime: now}
		o := old[w.Type]
		if o.GetStatus() == status {
			c.LastTransitionTime = o.GetLastTransitionTime()
		}
		if o == nil || o.GetStatus() != status || o.GetReason() != c.Reason || o.GetMessage() != c.Message || o.GetObservedGeneration() != generation {
			changed = true
		}
		out = append(out, c)
	}
	return out, changed
}

// boundService records what svc, nil when it is gone, was translated with, and
// wants the conditions that it should have.
func (t *translator) boundService(v *view, svc *corev1.Service, k key) {
	if svc == nil {
		t.unbound(k)
		return
	}
	t.gateways.ask(k, t.cfg.Translate.BindService(svc, false, v).Gateways)
	t.statuses(k, t.cfg.Translate.ServiceStatus(svc, v))
}

func (t *translator) boundServiceEntry(v *view, se *networkingv1.ServiceEntry, k key) {
	if se == nil || !v.reads(se) {
		t.unbound(k)
		return
	}
	gateways, conditions := t.cfg.Translate.ServiceEntryStatus(se, v)
	t.gateways.ask(k, gateways)
	t.statuses(k, conditions)
}

func (t *translator) boundWorkloadEntry(v *view, we *networkingv1.WorkloadEntry, k key) {
	if !v.reads(we) {
		t.unbound(k)
		return
	}
	gateways, conditions := t.cfg.Translate.WorkloadEntryStatus(we, v)
	t.gateways.ask(k, gateways)
	t.statuses(k, conditions)
}

// unbound: an object is gone, or none of ours.
func (t *translator) unbound(k key) {
	t.gateways.ask(k, nil)
	t.statuses(k, nil)
}
