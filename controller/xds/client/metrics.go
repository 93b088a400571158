package client

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	terminations *prometheus.CounterVec
	messages     *prometheus.CounterVec
	bytes        *prometheus.CounterVec
	questions    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		terminations: f.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_xds_connection_terminations_total",
			Help: "Ended xDS streams by reason.",
		}, []string{"reason"}),
		messages: f.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_xds_message_total",
			Help: "Received xDS responses by type URL.",
		}, []string{"url"}),
		bytes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_xds_message_bytes_total",
			Help: "Bytes of resources in received xDS responses by type URL.",
		}, []string{"url"}),
		questions: f.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_xds_on_demand_total",
			Help: "Names asked of the control plane on demand, by how it answered: found, absent, unanswered.",
		}, []string{"answer"}),
	}
}
