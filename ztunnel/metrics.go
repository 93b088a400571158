package ztunnel

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

type nodeMetrics struct {
	active, pending  prometheus.Gauge
	started, stopped prometheus.Counter
}

func newNodeMetrics(r *prometheus.Registry, version string) nodeMetrics {
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		r.MustRegister(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		r.MustRegister(c)
		return c
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "istio_build", Help: "Istio component build info"}, []string{"component", "tag"})
	build.WithLabelValues("ztunnel", version).Set(1)
	r.MustRegister(build, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return nodeMetrics{
		active:  gauge("workload_manager_active_proxy_count", "The total number current workloads with active proxies (unstable)"),
		pending: gauge("workload_manager_pending_proxy_count", "The total number current workloads with pending proxies (unstable)"),
		started: counter("workload_manager_proxies_started_total", "The total number of proxies that were started (unstable)"),
		stopped: counter("workload_manager_proxies_stopped_total", "The total number of proxies that were stopped (unstable)"),
	}
}
