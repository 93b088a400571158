package ztunnel

import (
	"crypto/x509"

	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

// revocation ends connections whose peer is revoked, and counts what is refused.
type revocation struct {
	trust                *identity.Revocations
	roots                func() *x509.CertPool
	rejected, cut, blind [2]prometheus.Counter // by live.Reporter
}

// newRevocation gives nil where there are no lists to keep.
func newRevocation(certs identity.Source, r prometheus.Registerer) *revocation {
	terms := certs.Terms()
	if terms == nil || terms.Revoked == nil {
		return nil
	}
	v := &revocation{trust: terms.Revoked, roots: certs.Roots}
	v.trust.Refused = v.refused
	vec := func(name, help string) (of [2]prometheus.Counter) {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"reporter"})
		r.MustRegister(c)
		for _, side := range []live.Reporter{live.Source, live.Destination} {
			of[side] = c.WithLabelValues(side.String())
		}
		return of
	}
	v.rejected = vec("istio_crl_policy_rejections_total", "HBONE connections refused because the peer's certificate is revoked (unstable)")
	v.cut = vec("ambit_crl_connections_ended_total", "HBONE connections that ended because the peer's certificate was revoked (unstable)")
	v.blind = vec("istio_crl_untracked_connections_total", "HBONE connections that a revocation cannot end (unstable)")
	gauge := func(name, help string, labels prometheus.Labels, f func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, f))
	}
	for i, state := range []string{"accepted", "refused", "unmet"} {
		gauge("ambit_crl_lists", "Revocation lists, by what they are to the issuers of their names (unstable)", prometheus.Labels{"state": state}, func() float64 {
			accepted, refused, unmet := v.trust.Standing()
			return float64([]int{accepted, refused, unmet}[i])
		})
	}
	gauge("ambit_crl_certificates", "Certificates on the revocation lists (unstable)", nil, func() float64 { _, n := v.trust.Len(); return float64(n) })
	return v
}

// watch is hbone.Config.Watch.
func (v *revocation) watch(client bool, chain []*x509.Certificate, end func(error)) (unwatch func()) {
	side := live.Destination
	if client {
		side = live.Source
	}
	stop, err := v.trust.Watch(chain, v.roots(), func(err error) {
		v.cut[side].Inc()
		end(live.Errorf(live.CertificateRevoked, "connection closed due to certificate revocation: %w", err))
	})
	if err != nil {
		v.blind[side].Inc()
	}
	return stop
}

// refused counts that a peer was refused on one side's handshake.
func (v *revocation) refused(client bool) {
	if client {
		v.rejected[live.Source].Inc()
	} else {
		v.rejected[live.Destination].Inc()
	}
}
