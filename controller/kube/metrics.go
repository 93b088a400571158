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
			Help: "0 while the mesh's settings cannot be read and the last good ones are in force.",
		}),
		settingsOther: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_controller_mesh_config_fields_without_effect",
			Help: "Fields of the mesh's settings that have no effect: unknown ones, and those of Istio's that have none here.",
		}, []string{"why"}),
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pilot_services", Help: "Services known to this replica.",
	}, func() float64 { return float64(services()) }))
	r.MustRegister(m.batches, m.keys, m.rejected, m.version, m.leader, m.writes, m.settingsValid, m.settingsOther)
	return m
}

func (m *metrics) observe(keys int, d time.Duration, rejected int) {
	m.batches.Observe(d.Seconds())
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
