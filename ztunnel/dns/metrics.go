package dns

import (
	"slices"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/prometheus/client_golang/prometheus"
)

// questionLabels are Istio's, in its order.
var questionLabels = []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}

// Metrics count the questions of all pods.
type Metrics struct {
	requests, upstream, failures *prometheus.CounterVec
	duration                     *prometheus.HistogramVec
	dropped                      prometheus.Counter

	mu    sync.RWMutex
	cache map[questionKey]*series // guarded by mu
}

// questionKey is what the labels of a question depend on.
type questionKey struct{ kind, protocol, service, revision string }

type series struct {
	requests, upstream, failures prometheus.Counter
	duration                     prometheus.Observer
}

// maxSeries bounds the cache. The metrics are bounded by what their labels can be:
// services and revisions of the node's pods, and the kinds below.
const maxSeries = 10000

// kinds are the types with a name of their own in the metrics. A pod may ask for
// any, and each has series that stay.
var kinds = []string{"a", "aaaa", "any", "axfr", "caa", "cname", "dnskey", "ds", "https", "ixfr", "mx", "naptr", "ns", "ptr", "soa", "srv", "svcb", "txt",
	"unknown"} // has no name, or cannot be read

// counted is a type as a label.
func counted(kind string) string {
	if slices.Contains(kinds, kind) {
		return kind
	}
	return "other"
}

// NewMetrics registers the counters with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	vec := func(name, help string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, questionLabels)
		r.MustRegister(v)
		return v
	}
	m := &Metrics{
		requests: vec("istio_dns_requests_total", "DNS questions of pods (unstable)"),
		upstream: vec("istio_dns_upstream_requests_total", "DNS questions of pods that were forwarded to a resolver (unstable)"),
		failures: vec("istio_dns_upstream_failures_total", "Forwarded DNS questions that no resolver answered (unstable)"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "istio_dns_upstream_request_duration_seconds",
			Help: "How long resolvers took to answer forwarded DNS questions (unstable)", Buckets: []float64{0.0005, 0.001, 0.01, 0.1, 1, 5}}, questionLabels),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "ambit_dns_dropped_total",
			Help: "DNS questions over UDP that were dropped because the pod had too many waiting for a resolver (unstable)"}),
		cache: map[questionKey]*series{},
	}
	r.MustRegister(m.duration, m.dropped)
	return m
}

func (m *Metrics) of(q *question, protocol string, w *mesh.Workload) *series {
	k := questionKey{kind: counted(q.kind()), protocol: protocol, service: "unknown", revision: "unknown"}
	if w != nil {
		k.service, k.revision = orUnknown(w.CanonicalName), orUnknown(w.CanonicalRevision)
	}
	m.mu.RLock()
	s := m.cache[k]
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	v := []string{k.kind, k.protocol, k.service, k.revision}
	s = &series{
		requests: m.requests.WithLabelValues(v...), upstream: m.upstream.WithLabelValues(v...),
		failures: m.failures.WithLabelValues(v...), duration: m.duration.WithLabelValues(v...),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.cache) >= maxSeries {
		clear(m.cache)
	}
	m.cache[k] = s
	return s
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func (s *series) answered(started time.Time, err error) {
	s.duration.Observe(time.Since(started).Seconds())
	if err != nil {
		s.failures.Inc()
	}
}
