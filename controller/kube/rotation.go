package kube

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

// RotationConfig of a Rotation.
type RotationConfig struct {
	Client    kubernetes.Interface
	Namespace string
	Replica   string
	Ring      *ca.Keyring                       // follows what is in force
	Generate  func() (map[string][]byte, error) // contents of a new self-signed Secret
	Timeout   time.Duration                     // how long a change waits for those that lack the new root
	// Holders are this replica's clients: pod UID -> hash of the roots it has.
	Holders func() map[string]string
	// Lacking is who lacks the roots when has says which pods have them.
	Lacking    func(has func(podUID string) bool) []string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Rotation changes what is signed with when the operator wants something else.
// What it decides is in ca.Record.Step; here is where that is read, written and
// followed: by the replica that leads with Lead, by every replica with Run.
type Rotation struct {
	cfg       RotationConfig
	metrics   rotationMetrics
	secrets   map[string]cache.SharedIndexInformer // by name
	report    cache.SharedIndexInformer            // of the ConfigMap
	factories []informers.SharedInformerFactory
	follow    chan struct{} // one slot: Run looks again
	lead      chan struct{} // one slot: Lead looks again

	mu     sync.Mutex
	record *ca.Record // in force, guarded by mu
	seen   string     // resource version it was read at, guarded by mu
	// said and problem are what was logged last about the state Secret, and
	// about the one that says what is wanted; guarded by mu.
	said, problem string

	crlSeen string // resource version of the Secret, owned by Run
}

// NewRotation starts from what Load found; it has no effects but registering
// metrics and handing the keys to the ring.
func NewRotation(cfg RotationConfig, record *ca.Record) (*Rotation, error) {
	r := &Rotation{cfg: cfg, secrets: map[string]cache.SharedIndexInformer{}, record: record,
		follow: make(chan struct{}, 1), lead: make(chan struct{}, 1)}
	r.metrics = newRotationMetrics(cfg.Registerer)
	cfg.Ring.Set(record)
	r.metrics.phase(record.Phase())
	// Only objects of these names are watched, which RBAC can be limited to.
	factory := func(name string) informers.SharedInformerFactory {
		f := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithNamespace(cfg.Namespace),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=" + name }))
		r.factories = append(r.factories, f)
		return f
	}
	for _, name := range []string{PluggedInSecret, SelfSignedSecret, rotation.StateSecret} {
		r.secrets[name] = factory(name).Core().V1().Secrets().Informer()
		if err := r.wakeOn(r.secrets[name]); err != nil {
			return nil, err
		}
	}
	r.report = factory(rotation.ConfigMap).Core().V1().ConfigMaps().Informer()
	return r, r.wakeOn(r.report)
}

func (r *Rotation) wakeOn(inf cache.SharedIndexInformer) error {
	wake := func() {
		for _, c := range []chan struct{}{r.follow, r.lead} {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { wake() },
		UpdateFunc: func(any, any) { wake() },
		DeleteFunc: func(any) { wake() },
	})
	if err != nil {
		return fmt.Errorf("watch for a change of the CA: %w", err)
	}
	return nil
}

func (r *Rotation) synced() []cache.InformerSynced {
	all := []cache.InformerSynced{r.report.HasSynced}
	for _, inf := range r.secrets {
		all = append(all, inf.HasSynced)
	}
	return all
}

// glance is how often a change under way is looked at without an event:
// reports of data planes come without one.
const glance = time.Second

// Run signs with what is in force and reports which clients have its roots,
// until ctx ends. Whatever happens to the Secrets, the last good keys go on
// signing: losing them would end the mesh within a day.
func (r *Rotation) Run(ctx context.Context) error {
	defer func() {
		for _, f := range r.factories {
			f.Shutdown()
		}
	}()
	for _, f := range r.factories {
		f.Start(ctx.Done())
	}
	if awaitSync(ctx, r.synced()...) != nil {
		return nil
	}
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		r.followCRL()
		record, _, _ := r.current()
		if record.Next != nil {
			r.reportHolders(ctx, record)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.follow:
		case <-tick.C:
		}
	}
}

// current is what is in force by the Secret, and that Secret; when it is gone
// or damaged, why, and the last good one.
func (r *Rotation) current() (*ca.Record, *corev1.Secret, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Under the lock: of two that look, the later must not take up the older.
	state := get[*corev1.Secret](r.secrets[rotation.StateSecret], r.cfg.Namespace+"/"+rotation.StateSecret)
	if state != nil && (state.ResourceVersion == r.seen || holds(state, r.record)) {
		// The same record needs no reading: one whose signer has expired could
		// not be read again, and it is by a command that it is replaced.
		r.said, r.seen = "", state.ResourceVersion
		return r.record, state, nil
	}
	record, err := (*ca.Record)(nil), fmt.Errorf("secret %s/%s is gone", r.cfg.Namespace, rotation.StateSecret)
	if state != nil {
		record, err = ca.LoadRecord(r.cfg.Namespace+"/"+rotation.StateSecret, state.Data)
	}
	if err != nil {
		if r.said != err.Error() {
			r.said = err.Error()
			r.cfg.Logger.Error("what is in force cannot be read; signing goes on with the last good keys", "error", err)
		}
		return r.record, state, err
	}
	r.said = ""
	r.adoptLocked(record, state.ResourceVersion)
	return record, state, nil
}

// holds says whether record is what state has.
func holds(state *corev1.Secret, record *ca.Record) bool {
	data, err := record.SecretData()
	return err == nil && maps.EqualFunc(data, state.Data, bytes.Equal)
}

func (r *Rotation) adoptLocked(record *ca.Record, version string) {
	before, after := r.record.Phase(), record.Phase()
	switched := r.record.Signer.Fingerprint() != record.Signer.Fingerprint()
	r.record, r.seen = record, version
	r.cfg.Ring.Set(record)
	r.metrics.phase(after)
	if before != after || switched {
		r.cfg.Logger.Info("certificates are signed with", "secret", r.cfg.Namespace+"/"+record.Source,
			"signer", record.Signer.Fingerprint(), "phase", after, "roots", ca.Hash(record.Bundle()))
	}
}

// wish is what the operator wants, nil when the Secret that says so is gone.
func (r *Rotation) wish(record *ca.Record) *ca.Wish {
	name := record.Source
	secret := get[*corev1.Secret](r.secrets[PluggedInSecret], r.cfg.Namespace+"/"+PluggedInSecret)
	if secret != nil {
		name = PluggedInSecret
	} else if name != PluggedInSecret {
		secret = get[*corev1.Secret](r.secrets[SelfSignedSecret], r.cfg.Namespace+"/"+SelfSignedSecret)
	}
	if secret == nil {
		return nil // a key that was plugged in is not given up because its Secret is gone
	}
	a, err := ca.Load(r.cfg.Namespace+"/"+name, secret.Data)
	return &ca.Wish{Source: name, Authority: a, Err: err}
}

type rotationMetrics struct {
	phases  *prometheus.GaugeVec
	intact  *prometheus.GaugeVec
	waiting prometheus.Gauge
}

func newRotationMetrics(reg prometheus.Registerer) rotationMetrics {
	m := rotationMetrics{
		phases: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_ca_rotation_phase",
			Help: "1 for the phase a change of the CA's root is in: settled, distributing, stalled, retiring.",
		}, []string{"phase"}),
		intact: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_ca_secret_intact",
			Help: "1 while the Secret that says what to sign with is there and can be used; known to the replica that leads.",
		}, []string{"secret"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_ca_rotation_waiting",
			Help: "Those that lack the new root and hold up a change of it; known to the replica that leads.",
		}),
	}
	reg.MustRegister(m.phases, m.intact, m.waiting)
	return m
}

func (m *rotationMetrics) phase(now string) {
	for _, p := range rotation.Phases() {
		v := 0.0
		if p == now {
			v = 1
		}
		m.phases.WithLabelValues(p).Set(v)
	}
}

func (m *rotationMetrics) secret(name string, intact bool) {
	m.intact.Reset()
	v := 0.0
	if intact {
		v = 1
	}
	m.intact.WithLabelValues(name).Set(v)
}
