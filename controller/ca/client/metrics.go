package client

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct{ requests *prometheus.CounterVec }

func newMetrics(r prometheus.Registerer) metrics {
	return metrics{requests: promauto.With(r).NewCounterVec(prometheus.CounterOpts{
		Name: "ambit_certificate_requests_total",
		Help: "Certificate requests by result: success, denied (the CA refused), error.",
	}, []string{"result"})}
}
