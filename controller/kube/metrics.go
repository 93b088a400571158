package kube

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of this package; those of our own have the prefix ambit_controller_.
type metrics struct {
	batches  prometheus.Histogram
	keys     prometheus.Counter
	rejected prometheus.Gauge
	version  prometheus.Gauge
	leader   prometheus.Gauge
	writes   *prometheus.CounterVec
	// Of Istio's control plane, for its dashboards.
	waited, context prometheus.Histogram
	triggers        *prometheus.CounterVec

	settingsValid prometheus.Gauge
	settingsOther *prometheus.GaugeVec
}

// newMetrics registers them; services counts what is known at a scrape.
func newMetrics(r prometheus.Registerer, services func() int) *metrics {
	m := &metrics{
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ambit_controller_translate_seconds",
			Help:    "Time to translate one batch of changed objects.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}),
		keys: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_controller_changed_objects_total",
			Help: "Objects whose change was translated.",
		}),
		rejected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_controller_rejected_objects",
			Help: "Objects that cannot be honoured as they are; the log names each with its field.",
		}),
		version: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_controller_snapshot_version",
			Help: "Version of the newest mesh snapshot; counts from 1 in every process.",
		}),
		leader: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_controller_leader",
			Help: "1 while this replica writes status and ConfigMaps.",
		}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_controller_writes_total",
			Help: "Writes to the API server.",
		}, []string{"object", "result"}),
		settingsValid: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_controller_mesh_config_valid",
			Help: "0 while the mesh's settings cannot be read: the last good ones are in force, or nothing is served where there are none.",
		}),
		settingsOther: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_controller_mesh_config_fields_without_effect",
			Help: "Fields of the mesh's settings that have no effect: unknown ones, and those of Istio's that have none here.",
		}, []string{"why"}),
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pilot_services", Help: "Services known to this replica.",
	}, func() float64 { return float64(services()) }))
	m.waited = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "pilot_debounce_time", Help: "Seconds from the first of several changes to their being translated together.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
	})
	m.context = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "pilot_pushcontext_init_seconds", Help: "Seconds to make a new picture of the mesh of what changed.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
	})
	m.triggers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pilot_push_triggers", Help: "New pictures of the mesh by what they were made for.",
	}, []string{"type"})
	r.MustRegister(m.waited, m.context, m.triggers)
	r.MustRegister(m.batches, m.keys, m.rejected, m.version, m.leader, m.writes, m.settingsValid, m.settingsOther)
	return m
}

func (m *metrics) observe(keys int, d time.Duration, rejected int) {
	m.batches.Observe(d.Seconds())
	m.context.Observe(d.Seconds())
	m.keys.Add(float64(keys))
	m.rejected.Set(float64(rejected))
}

// meshConfig notes how the mesh's settings read.
func (m *metrics) meshConfig(valid bool, unknown, ignored int) {
	m.settingsValid.Set(0)
	if valid {
		m.settingsValid.Set(1)
	}
	m.settingsOther.WithLabelValues("unknown").Set(float64(unknown))
	m.settingsOther.WithLabelValues("not_here").Set(float64(ignored))
}

func (m *metrics) swapped(version uint64) { m.version.Set(float64(version)) }

func (m *metrics) wrote(object string, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.writes.WithLabelValues(object, result).Inc()
}

// triggered counts a new snapshot for each kind of what it was made of.
func (m *metrics) triggered(changed map[key]struct{}) {
	var seen [len(updateTypes)]bool
	for k := range changed {
		seen[k.kind.update()] = true
	}
	for t, ok := range seen {
		if ok {
			m.triggers.WithLabelValues([...]string{"config", "endpoint", "service"}[t]).Inc()
		}
	}
}

// updateTypes are the kinds of changes as Istio's control plane counts them.
var updateTypes = [...]string{"config", "eds", "svc"}

// update is the index in updateTypes of what a change of k is.
func (k kind) update() int {
	switch k {
	case kindPod, kindSlice, kindWorkloadEntry:
		return 1
	case kindService, kindServiceEntry:
		return 2
	}
	return 0
}

// registry says whether objects of k are Kubernetes' own, not configuration.
func (k kind) registry() bool {
	switch k {
	case kindNamespace, kindNode, kindPod, kindService, kindSlice, kindNetworkPolicy, kindMeshConfig:
		return true
	}
	return false
}

// eventCounts reports what the API server said, in Istio's series.
type eventCounts struct{ dirty *dirtySet }

var (
	registryEvents = prometheus.NewDesc("pilot_k8s_reg_events", "Events of Kubernetes' own objects.", []string{"type", "event"}, nil)
	configEvents   = prometheus.NewDesc("pilot_k8s_cfg_events", "Events of configuration.", []string{"type", "event"}, nil)
	inboundUpdates = prometheus.NewDesc("pilot_inbound_updates", "Changes that came in, by what they are about.", []string{"type"}, nil)
)

// Describe implements prometheus.Collector.
func (c eventCounts) Describe(ch chan<- *prometheus.Desc) {
	ch <- registryEvents
	ch <- configEvents
	ch <- inboundUpdates
}

// Collect implements prometheus.Collector.
func (c eventCounts) Collect(ch chan<- prometheus.Metric) {
	var updates [len(updateTypes)]uint64
	for k := range kinds {
		desc := configEvents
		if k.registry() {
			desc = registryEvents
		}
		for e := range events {
			n := c.dirty.events[k][e].Load()
			if n == 0 {
				continue
			}
			if e != unchanged {
				updates[k.update()] += n
			}
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), k.String(), e.String())
		}
	}
	for i, n := range updates {
		if n > 0 {
			ch <- prometheus.MustNewConstMetric(inboundUpdates, prometheus.CounterValue, float64(n), updateTypes[i])
		}
	}
}
