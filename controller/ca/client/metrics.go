package client

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct{ requests *prometheus.CounterVec }

func newMetrics(r prometheus.Registerer, s *Source) metrics {
	f := promauto.With(r)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_certificates",
		Help: "Identities of this node with a certificate that is good.",
	}, func() float64 { good, _, _ := s.survey(time.Now()); return float64(good) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_certificates_overdue",
		Help: "Identities whose certificate could not be had or renewed; those with an old one work until it ends.",
	}, func() float64 { _, overdue, _ := s.survey(time.Now()); return float64(overdue) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_certificate_first_expiry_timestamp_seconds",
		Help: "Unix time when the first of the certificates in use ends; 0 without any.",
	}, func() float64 {
		_, _, first := s.survey(time.Now())
		if first.IsZero() {
			return 0
		}
		return float64(first.Unix())
	})
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_trust_anchors",
		Help: "Root certificates that peers are verified with; more than one while the root is changed.",
	}, func() float64 { return float64(s.anchorCount()) })
	return metrics{requests: f.NewCounterVec(prometheus.CounterOpts{
		Name: "ambit_certificate_requests_total",
		Help: "Certificate requests by result: success, denied (the CA refused), error.",
	}, []string{"result"})}
}

// survey counts what is held.
func (s *Source) survey(now time.Time) (good, overdue int, first time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.held {
		if e.err != nil {
			overdue++
		}
		if !e.valid(now) {
			continue
		}
		good++
		if end := e.got.certificate.Leaf.NotAfter; first.IsZero() || end.Before(first) {
			first = end
		}
	}
	return good, overdue, first
}

func (s *Source) anchorCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[string]bool{}
	for _, list := range []anchors{s.pushed, s.answer} {
		for _, c := range list.roots {
			seen[string(c.Raw)] = true
		}
	}
	return len(seen)
}
