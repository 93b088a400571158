package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ambitmesh/ambit/cni/install"
	"github.com/ambitmesh/ambit/cni/node"
)

// serveAdmin answers on a loopback port of the host. While two agents overlap
// the port is the older one's; that is no reason to end.
func serveAdmin(ctx context.Context, address string, registry *prometheus.Registry, agent *node.Agent, installer *install.Installer, log *slog.Logger) {
	if address == "" {
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case !agent.Ready():
			http.Error(w, "pods are not known yet", http.StatusServiceUnavailable)
		case !installer.Ready():
			http.Error(w, "the plugin is not in place", http.StatusServiceUnavailable)
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	warned := false
	for ctx.Err() == nil {
		l, err := net.Listen("tcp", address)
		if err == nil {
			err = server.Serve(l)
			if errors.Is(err, http.ErrServerClosed) {
				return
			}
		}
		if !warned {
			log.Warn("no /readyz and /metrics for now", "address", address, "err", err)
			warned = true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func registerBuild(registry *prometheus.Registry, agent *node.Agent, installer *install.Installer) {
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ambit_build", Help: "The version that runs.",
		ConstLabels: prometheus.Labels{"component": "cni-node", "tag": version}})
	build.Set(1)
	registry.MustRegister(build,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ambit_cni_ztunnel_connected", Help: "Connections of ztunnels."}, func() float64 {
			select {
			case <-agent.Started():
				return float64(len(agent.Ztunnels()))
			default:
				return 0
			}
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ambit_cni_install_ready", Help: "1 when plugin and network configuration are in place."}, func() float64 {
			if installer.Ready() {
				return 1
			}
			return 0
		}))
}
