package ca

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics carry the names of Istio's CA.
type metrics struct {
	csrs           prometheus.Counter
	authentication prometheus.Counter
	parsing        prometheus.Counter
	identity       prometheus.Counter
	signing        *prometheus.CounterVec
	issued         prometheus.Counter
}

func newMetrics(r prometheus.Registerer, a Signer) metrics {
	f := promauto.With(r)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "citadel_server_" + name, Help: help})
	}
	gauge := func(name, help string, value func(root, chain time.Time) float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "citadel_server_" + name, Help: help}, func() float64 { return value(a.Expiry()) })
	}
	gauge("root_cert_expiry_timestamp", "Unix time when the root certificate ends.", func(root, _ time.Time) float64 { return float64(root.Unix()) })
	gauge("root_cert_expiry_seconds", "Seconds until the root certificate ends.", func(root, _ time.Time) float64 { return time.Until(root).Seconds() })
	gauge("cert_chain_expiry_timestamp", "Unix time when the issuing chain ends.", func(_, chain time.Time) float64 { return float64(chain.Unix()) })
	gauge("cert_chain_expiry_seconds", "Seconds until the issuing chain ends.", func(_, chain time.Time) float64 { return time.Until(chain).Seconds() })
	return metrics{
		csrs:           counter("csr_count", "Certificate requests received."),
		authentication: counter("authentication_failure_count", "Requests whose caller could not be authenticated."),
		parsing:        counter("csr_parsing_err_count", "Requests with an unusable signing request."),
		identity:       counter("id_extraction_err_count", "Requests for an identity the caller may not have."),
		signing: f.NewCounterVec(prometheus.CounterOpts{
			Name: "citadel_server_csr_sign_err_count", Help: "Requests that could not be signed.",
		}, []string{"error"}),
		issued: counter("success_cert_issuance_count", "Certificates issued."),
	}
}
