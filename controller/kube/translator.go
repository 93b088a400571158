package kube

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
)

// translator turns changed objects into snapshots. Everything below the
// immutable block is owned by the goroutine that calls run.
type translator struct {
	cfg     *Config
	caches  *caches
	dirty   *dirtySet
	store   *mesh.Store
	metrics *metrics
	verdict func(policyVerdict) // told of every AuthorizationPolicy translated
	// statuses is told which conditions about waypoints an object should have.
	statuses func(key, []translate.Condition)

	good     lastGood
	gateways gatewayState
	// settings are what data planes act on, nil until a ConfigMap could be
	// read or there was none.
	settings *mesh.Settings
	// whole says that the next expansion is everything; scopes is what decided
	// about each namespace, nil before the first batch.
	whole      bool
	scopes     map[string]scope
	meshReport translate.MeshConfigReport
	// networkUIDs are the gateways of other networks.
	networkUIDs map[string]*mesh.Workload
	problems    map[key]string // text of the errors in force, by object
	network     string
	// naming holds, per service and policy key, the pods (<namespace>/<name>)
	// whose workload names it.
	naming map[string]names
	// sliceUIDs and sliceService remember what a slice became, by its
	// <namespace>/<name>.
	sliceUIDs    map[string][]string
	sliceService map[string]string
	external     external
	networks     networks
	targeted     names // policies with targetRefs: other objects decide about their status
}

// policyVerdict is what the status of an AuthorizationPolicy should say.
type policyVerdict struct {
	namespace, name string
	generation      int64
	condition       *translate.Condition // of ztunnels; nil: none
	waypoint        *translate.Condition // of waypoints; nil: none
	foreign         bool                 // another control plane's waypoints say that
	deleted         bool
}

func newTranslator(cfg *Config, cs *caches, dirty *dirtySet, m *metrics, verdict func(policyVerdict)) *translator {
	own := *cfg // the translation's settings change with the mesh's
	return &translator{
		cfg: &own, gateways: newGatewayState(), caches: cs, dirty: dirty, store: mesh.NewStore(), metrics: m, verdict: verdict,
		statuses: func(key, []translate.Condition) {},
		good: lastGood{
			policies: make(map[string]*securityv1.AuthorizationPolicy),
			peers:    make(map[string]*securityv1.PeerAuthentication),
			gateways: make(map[string]*gatewayv1.Gateway),
		},
		problems:     make(map[key]string),
		naming:       make(map[string]names),
		sliceUIDs:    make(map[string][]string),
		sliceService: make(map[string]string),
		external:     newExternal(),
		networks:     newNetworks(),
		targeted:     names{},
	}
}

// run translates until ctx ends. The first batch, with everything the synced
// caches hold, is published before ready is called.
func (t *translator) run(ctx context.Context, ready func()) {
	t.batch(t.dirty.drain())
	ready()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.dirty.wake:
			t.metrics.waited.Observe(t.dirty.waiting().Seconds())
			t.batch(t.dirty.drain())
		}
	}
}

// batch translates what changed touches and publishes one snapshot if that
// made a difference.
func (t *translator) batch(changed map[key]struct{}) {
	if len(changed) == 0 {
		return
	}
	start := time.Now()
	t.settle(newView(t.caches, &t.good, &t.cfg.Translate), changed)
	t.judge(t.withTargeting(changed))
	v := newView(t.caches, &t.good, &t.cfg.Translate)
	a := t.expand(v, changed)
	snap := t.store.Load()
	var d mesh.Delta
	t.translatePods(v, snap, a.pods, &d)
	t.translateNetworkPolicies(v, snap, changed, &d)
	t.translateSlices(v, snap, a.slices, &d)
	t.translateEntries(v, snap, a.entries, &d)
	t.translateServices(v, snap, a.services, a.external, &d)
	t.translatePolicies(v, snap, a.policies, &d)
	t.translatePeers(v, snap, a.peers, &d)
	t.translateGateways(v, snap, &d)
	if now, known := snap.Settings(); t.settings != nil && (!known || !now.Equal(*t.settings)) {
		d.Settings = t.settings
	}
	t.metrics.observe(len(changed), time.Since(start), len(t.problems))
	if d.Empty() {
		return
	}
	b := mesh.NewBuilder(snap)
	b.Apply(d)
	next := b.Build()
	t.store.Swap(next)
	t.metrics.swapped(next.Version())
	t.metrics.triggered(changed)
}

// judge decides, before anything is translated, which version of each changed
// policy is in force: the newest that can be honoured.
func (t *translator) judge(changed map[key]struct{}) {
	v := newView(t.caches, &t.good, &t.cfg.Translate)
	for k := range changed {
		name := k.namespace + "/" + k.name
		switch k.kind {
		case kindPolicy:
			ap := get[*securityv1.AuthorizationPolicy](t.caches.policies, name)
			if ap == nil || !v.reads(ap) {
				delete(t.good.policies, name)
				delete(t.targeted, name)
				t.report(k, nil)
				t.verdict(policyVerdict{namespace: k.namespace, name: k.name, deleted: true})
				continue
			}
			out := t.cfg.Translate.AuthorizationPolicy(ap)
			kept := keep(t.good.policies, ap, out.Err)
			t.report(k, out.Err)
			switch {
			case out.Condition == nil || out.Err == nil:
			case kept:
				out.Condition.Message += "; the last version without errors stays in force"
			default:
				out.Condition.Message += "; " + out.Meanwhile()
			}
			waypoint := t.cfg.Translate.PolicyTargets(ap, v)
			t.target(name, ap)
			t.verdict(policyVerdict{namespace: k.namespace, name: k.name, generation: ap.Generation, condition: out.Condition,
				waypoint: waypoint, foreign: waypoint == nil && translate.TargetsWaypoints(ap),
				deleted: !t.cfg.Translate.Writes(ap, v)}) // in force, and another's to write on
		case kindPeer:
			pa := get[*securityv1.PeerAuthentication](t.caches.peers, name)
			if pa == nil || !v.reads(pa) {
				delete(t.good.peers, name)
				t.report(k, nil)
				continue
			}
			_, err := t.cfg.Translate.PeerAuthentication(pa, v)
			keep(t.good.peers, pa, err)
			t.report(k, err)
		case kindGateway:
			t.sticky(k)
		}
	}
}

// keep records now as the version in force unless err says it cannot be; it
// reports whether an earlier version of the same object stays.
func keep[T interface {
	named
	GetUID() types.UID
}](good map[string]T, now T, err error) bool {
	name := now.GetNamespace() + "/" + now.GetName()
	old, ok := good[name]
	if ok && old.GetUID() != now.GetUID() {
		delete(good, name)
		ok = false
	}
	if err == nil {
		good[name] = now
		return false
	}
	return ok
}

// report logs err once per change of its text and keeps count.
func (t *translator) report(k key, err error) {
	if err == nil {
		if _, ok := t.problems[k]; ok {
			delete(t.problems, k)
			t.cfg.Logger.Info("object can be honoured again", "kind", k.kind, "object", k.namespace+"/"+k.name)
		}
		return
	}
	if text := err.Error(); t.problems[k] != text {
		t.problems[k] = text
		t.cfg.Logger.Warn("object cannot be honoured as it is", "kind", k.kind, "object", k.namespace+"/"+k.name,
			"error", strings.ReplaceAll(text, "\n", "; "))
	}
}

func (t *translator) translatePods(v *view, snap *mesh.Snapshot, pods names, d *mesh.Delta) {
	for name := range pods {
		namespace, short, _ := strings.Cut(name, "/")
		uid := t.cfg.Translate.PodUID(namespace, short)
		var w *mesh.Workload
		var err error
		var asks []string
		if pod := get[*corev1.Pod](t.caches.pods, name); pod != nil && t.cfg.Translate.Looks(namespace, v) {
			w, err = t.cfg.Translate.Pod(pod, v)
			asks = t.cfg.Translate.BindWorkload(pod, v).Gateways
		}
		t.gateways.ask(key{kindPod, namespace, short}, asks)
		t.report(key{kindPod, namespace, short}, err)
		old := snap.Workload(uid)
		if reflect.DeepEqual(old, w) {
			continue
		}
		t.renaming(name, old, w)
		if w == nil {
			d.RemovedWorkloads = append(d.RemovedWorkloads, uid)
		} else {
			d.Workloads = append(d.Workloads, w)
		}
	}
}

// renaming keeps naming true when pod's workload changes from old to now.
func (t *translator) renaming(pod string, old, now *mesh.Workload) {
	t.noteRequired(old, now)
	rename(t.naming, pod, mentions(old), mentions(now))
}

// mentions are the keys of the services and policies w names. The two kinds
// cannot meet: a service's key ends in the cluster domain.
func mentions(w *mesh.Workload) []string {
	if w == nil {
		return nil
	}
	keys := slices.Clone(w.Policies)
	for k := range w.Services {
		keys = append(keys, k)
	}
	return keys
}

func (t *translator) translateSlices(v *view, snap *mesh.Snapshot, all names, d *mesh.Delta) {
	for name := range all {
		namespace, short, _ := strings.Cut(name, "/")
		var ws []*mesh.Workload
		var err error
		slice := get[*discoveryv1.EndpointSlice](t.caches.slices, name)
		if slice != nil && t.cfg.Translate.Looks(namespace, v) {
			ws, err = t.cfg.Translate.EndpointSlice(slice, v)
			t.sliceService[name] = slice.Labels[discoveryv1.LabelServiceName]
		} else if slice == nil {
			delete(t.sliceService, name)
		}
		t.report(key{kindSlice, namespace, short}, err)
		var uids []string
		for _, w := range ws {
			uids = append(uids, w.UID)
			if !reflect.DeepEqual(snap.Workload(w.UID), w) {
				d.Workloads = append(d.Workloads, w)
			}
		}
		for _, uid := range t.sliceUIDs[name] {
			if !slices.Contains(uids, uid) {
				d.RemovedWorkloads = append(d.RemovedWorkloads, uid)
			}
		}
		if len(uids) > 0 {
			t.sliceUIDs[name] = uids
		} else {
			delete(t.sliceUIDs, name)
		}
	}
}

func (t *translator) translatePolicies(v *view, snap *mesh.Snapshot, all names, d *mesh.Delta) {
	for name := range all {
		namespace, short, _ := strings.Cut(name, "/")
		var a translate.Authorization
		for _, ap := range v.AuthorizationPolicies(namespace) {
			if ap.Namespace+"/"+ap.Name == name {
				a = t.cfg.Translate.AuthorizationPolicy(ap)
				break
			}
		}
		diffPolicy(snap, name, a.Policy, d)
		diffPolicy(snap, translate.BehindKey(namespace, short), a.Behind, d)
	}
}

func (t *translator) translatePeers(v *view, snap *mesh.Snapshot, all names, d *mesh.Delta) {
	if len(all) == 0 {
		return
	}
	var strict *mesh.Policy
	if slices.ContainsFunc(t.caches.peers.GetIndexer().List(), func(o any) bool { return v.reads(o.(*securityv1.PeerAuthentication)) }) {
		strict = t.cfg.Translate.StaticStrict()
	}
	diffPolicy(snap, t.cfg.Translate.StaticStrictKey(), strict, d)
	for name := range all {
		namespace, short, _ := strings.Cut(name, "/")
		var p *mesh.Policy
		for _, pa := range v.PeerAuthentications(namespace) {
			if pa.Name == short {
				p, _ = t.cfg.Translate.PeerAuthentication(pa, v) // judge has reported the error
				break
			}
		}
		diffPolicy(snap, translate.ConvertedKey(namespace, short), p, d)
	}
}

func diffPolicy(snap *mesh.Snapshot, key string, p *mesh.Policy, d *mesh.Delta) {
	switch old := snap.Policy(key); {
	case reflect.DeepEqual(old, p):
	case p == nil:
		d.RemovedPolicies = append(d.RemovedPolicies, key)
	default:
		d.Policies = append(d.Policies, p)
	}
}
