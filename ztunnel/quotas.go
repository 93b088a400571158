package ztunnel

import (
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

// Quotas bound what each pod may use of the node's ztunnel; zero bounds nothing.
type Quotas struct {
	Connections   live.Limits
	Backlog       int64   // bytes one pod's connections may hold, of hbone.Config.Budget
	HandshakeRate float64 // HBONE handshakes per second of one pod
}

func (q Quotas) quota(r prometheus.Registerer) *live.Quota {
	if q.Connections == (live.Limits{}) {
		return nil
	}
	return live.NewQuota(q.Connections, r)
}

// part is cfg for one pod.
func (q Quotas) part(cfg hbone.Config) hbone.Config {
	if cfg.Budget != nil && q.Backlog > 0 {
		cfg.Budget = cfg.Budget.Part(q.Backlog)
	}
	return cfg
}

func (q Quotas) report(r prometheus.Registerer, b *hbone.Budget) {
	if b == nil {
		return
	}
	gauge := func(name, help string, value func() int64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) }))
	}
	gauge("ambit_backlog_bytes", "Bytes held for applications and peers that do not read (unstable)", b.Used)
	gauge("ambit_backlog_limit_bytes", "Bytes that may be held for them (unstable)", b.Limit)
}
