package live

import (
	"slices"
	"sync"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/prometheus/client_golang/prometheus"
)

// Reporter is the side a record is about: the label "reporter".
type Reporter uint8

// The two sides.
const (
	Source      Reporter = iota // outbound
	Destination                 // inbound
)

func (r Reporter) String() string {
	if r == Source {
		return "source"
	}
	return "destination"
}

// Direction is the access log's word for r.
func (r Reporter) Direction() string {
	if r == Source {
		return "outbound"
	}
	return "inbound"
}

// trafficLabels are Istio's, in its order.
var trafficLabels = []string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision",
	"destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_cluster", "request_protocol", "response_flags", "connection_security_policy",
	"source_region", "source_zone", "destination_region", "destination_zone",
}

// party is one end as labels name it. It is comparable.
type party struct {
	known                                  bool
	workload, service, revision, namespace string
	cluster, region, zone                  string
	principal                              identity.ID
}

func partyOf(w *mesh.Workload, principal identity.ID) party {
	if w == nil {
		return party{principal: principal}
	}
	return party{
		known: true, workload: w.WorkloadName, service: w.CanonicalName, revision: w.CanonicalRevision,
		namespace: w.Namespace, cluster: cluster(w), region: w.Locality.Region, zone: w.Locality.Zone,
		principal: principal,
	}
}

// labelKey is everything the traffic labels of one connection depend on, the
// response flag apart. It is the cache key, so that a connection between
// known parties makes no strings.
type labelKey struct {
	reporter                        Reporter
	source, destination             party
	service, serviceNS, serviceName string
	mtls                            bool
}

func or(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func (k *labelKey) values(flag Flag) []string {
	sp, dp := or(k.source.principal.String()), or(k.destination.principal.String())
	policy := "unknown"
	if k.mtls {
		policy = "mutual_tls"
	}
	s, d := &k.source, &k.destination
	v := []string{
		k.reporter.String(),
		or(s.workload), or(s.service), or(s.revision), or(s.namespace),
		sp, or(s.service), or(s.revision), or(s.cluster),
		or(k.service), or(k.serviceNS), or(k.serviceName),
		or(d.workload), or(d.service), or(d.revision),
		or(d.namespace), dp, or(d.service), or(d.revision),
		or(d.cluster), "tcp", string(flag), policy,
	}
	if !s.known && !d.known {
		return append(v, "", "", "", "") // an empty label is an absent label
	}
	return append(v, or(s.region), or(s.zone), or(d.region), or(d.zone))
}

// series are the counters of one labelKey.
type series struct {
	opened, closed, received, sent prometheus.Counter // response_flags "-"
}

// Metrics are the counters of a ztunnel.
type Metrics struct {
	opened, closed, failed, received, sent *prometheus.CounterVec
	reasons                                *prometheus.CounterVec
	suppressed                             prometheus.Counter
	namesAsked                             *prometheus.CounterVec
	acceptErrors, handshakesDelayed        prometheus.Counter
	sockets                                [2]prometheus.Gauge

	mu    sync.RWMutex
	cache map[labelKey]*series // guarded by mu
}

// maxSeries bounds the cache, not the metrics: beyond it the cache starts
// again, which costs one look-up per connection.
const maxSeries = 50000

// NewMetrics registers the counters with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		r.MustRegister(v)
		return v
	}
	m := &Metrics{
		opened:   vec("istio_tcp_connections_opened_total", "The total number of TCP connections opened", trafficLabels...),
		closed:   vec("istio_tcp_connections_closed_total", "The total number of TCP connections closed", trafficLabels...),
		failed:   vec("istio_tcp_connections_failed_total", "The total number of TCP connections that failed (unstable)", trafficLabels...),
		received: vec("istio_tcp_received_bytes_total", "The size of total bytes received during request in case of a TCP connection", trafficLabels...),
		sent:     vec("istio_tcp_sent_bytes_total", "The size of total bytes sent during response in case of a TCP connection", trafficLabels...),
		reasons: vec("ambit_connections_failed_total",
			"Connections that failed, were refused or were cut, by the reason in the access log (unstable)", "reporter", "reason"),
		cache: map[labelKey]*series{},
	}
	m.namesAsked = vec("istio_on_demand_dns_total", "Host names of workloads that connections asked for, cached or not (unstable)",
		append(slices.Clone(trafficLabels[1:9]), "hostname")...)
	m.suppressed = prometheus.NewCounter(prometheus.CounterOpts{Name: "ambit_access_log_suppressed_total",
		Help: "Access log lines left out because a pod repeated one failure too often (unstable)"})
	m.acceptErrors = prometheus.NewCounter(prometheus.CounterOpts{Name: "ambit_accept_errors_total",
		Help: "Times that no connection could be accepted for want of descriptors or memory; they wait (unstable)"})
	m.handshakesDelayed = prometheus.NewCounter(prometheus.CounterOpts{Name: "ambit_handshakes_delayed_total",
		Help: "Times that HBONE connections of a pod had to wait for others' handshakes or for the rate (unstable)"})
	r.MustRegister(m.acceptErrors, m.handshakesDelayed)
	open := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "istio_tcp_sockets_open",
		Help: "Accepted sockets that are open (unstable)"}, []string{"reporter"})
	r.MustRegister(m.suppressed, open)
	for _, side := range []Reporter{Source, Destination} {
		m.sockets[side] = open.WithLabelValues(side.String())
	}
	return m
}

// SocketOpened counts an accepted socket; the result is to be called once when
// it is closed.
func (m *Metrics) SocketOpened(r Reporter) func() {
	m.sockets[r].Inc()
	return m.sockets[r].Dec
}

// NameAsked counts that a connection of source goes to a workload that has a host
// name and no address.
func (m *Metrics) NameAsked(source *mesh.Workload, host string) {
	k := labelKey{source: partyOf(source, source.Identity())}
	m.namesAsked.WithLabelValues(append(k.values(FlagNone)[1:9:9], host)...).Inc()
}

// HandshakesDelayed counts that HBONE connections of a pod have to wait.
func (m *Metrics) HandshakesDelayed() { m.handshakesDelayed.Inc() }

func (m *Metrics) series(k *labelKey) *series {
	m.mu.RLock()
	s := m.cache[*k]
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	v := k.values(FlagNone)
	s = &series{
		opened: m.opened.WithLabelValues(v...), closed: m.closed.WithLabelValues(v...),
		received: m.received.WithLabelValues(v...), sent: m.sent.WithLabelValues(v...),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.cache) >= maxSeries {
		clear(m.cache)
	}
	m.cache[*k] = s
	return s
}
