package node

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the agent:
//
//	ambit_cni_pods{state}                    pods on this node: captured, pending, failing
//	ambit_cni_jobs_total{step,result}        enrol, withdraw, forget; ok or failed
//	ambit_cni_plugin_requests_total{kind,outcome}
//	ambit_cni_enrol_seconds                  successful enrolments and repairs
//	ambit_cni_drift_repairs_total            captured pods whose capture had been changed
//	ambit_cni_intent_write_errors_total
//	ambit_cni_older_connections              open connections that are older than their pod's capture
//	ambit_cni_cut_connections_total          connections that outlasted the drain of their pod
//	ambit_cni_proxy_cgroups                  cgroups the proxy's mark is believed from; 0: from any
//	ambit_cni_probe_cgroups                  cgroups whose processes pass for the kubelet at probe ports; 0: every process of the node
//	ambit_cni_findings{finding}              1 for each thing about this node that limits what the mesh can promise
//	ambit_cni_ztunnel_connected              connections of ztunnels
type metrics struct {
	pods         *prometheus.GaugeVec
	jobs         *prometheus.CounterVec
	requests     *prometheus.CounterVec
	enrolSeconds prometheus.Histogram
	repairs      prometheus.Counter
	intentErrors prometheus.Counter
	cut          prometheus.Counter
	findings     *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		pods: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_cni_pods", Help: "Pods of this node that are to be captured, by state."}, []string{"state"}),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_cni_jobs_total", Help: "Attempts to bring a pod into its wanted state."}, []string{"step", "result"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_cni_plugin_requests_total", Help: "Requests of the CNI plugin."}, []string{"kind", "outcome"}),
		enrolSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ambit_cni_enrol_seconds", Help: "Time to capture a pod, proof included.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_cni_drift_repairs_total", Help: "Captured pods whose capture had been changed by somebody and was repaired."}),
		intentErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_cni_intent_write_errors_total", Help: "Failed writes of the intent file."}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_cni_cut_connections_total", Help: "Connections that outlasted the time their pod had to leave the mesh, and were cut."}),
	}
	m.findings = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "ambit_cni_findings", Help: "Things about this node that limit what the mesh can promise there, 1 for each."}, []string{"finding"})
	if r != nil {
		r.MustRegister(m.findings, m.pods, m.jobs, m.requests, m.enrolSeconds, m.repairs, m.intentErrors, m.cut)
	}
	return m
}

// watch adds what is read from the agent.
func (m *metrics) watch(r prometheus.Registerer, a *Agent) {
	if r == nil {
		return
	}
	r.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ambit_cni_older_connections", Help: "Open connections that are older than the capture of their pod and bypass the mesh."},
			func() float64 { return float64(a.older.total()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ambit_cni_proxy_cgroups", Help: "Cgroups from which the proxy's mark is believed; 0 when the mark alone decides."},
			func() float64 { return float64(len(a.proxies.list())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ambit_cni_probe_cgroups", Help: "Cgroups whose processes pass for the kubelet at the probe ports of pods; 0 when every process of the node does."},
			func() float64 { return float64(len(a.kubelet.list())) }))
}

func (m *metrics) found(fs []Finding) {
	m.findings.Reset()
	for _, f := range fs {
		m.findings.WithLabelValues(f.Code).Set(1)
	}
}

func (m *metrics) done(s step)   { m.jobs.WithLabelValues(s.String(), "ok").Inc() }
func (m *metrics) failed(s step) { m.jobs.WithLabelValues(s.String(), "failed").Inc() }

func (m *metrics) states(pods map[string]*entry) {
	n := map[string]float64{"captured": 0, "pending": 0, "failing": 0}
	for _, e := range pods {
		switch {
		case e.held != nil && e.held.complete():
			n["captured"]++
		case e.failed > 0 && e.held != nil && e.held.set:
			n["pending"]++
		case e.failed > 0:
			n["failing"]++
		}
	}
	for state, count := range n {
		m.pods.WithLabelValues(state).Set(count)
	}
}
