package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	xds "github.com/ambitmesh/ambit/controller/xds/server"
)

// monitor answers those who look at the controller from outside.
type monitor struct {
	handler http.Handler
	ready   atomic.Bool
	clients atomic.Pointer[xds.Server] // nil until xDS is served
}

func newMonitor(registry *prometheus.Registry) *monitor {
	m := &monitor{}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if !m.ready.Load() {
			http.Error(w, "not ready: the cluster's objects are still being read", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, version) })
	mux.HandleFunc("GET /debug/clients", m.listClients)
	m.handler = mux
	return m
}

// rootsOfClients is which roots each data plane connected to this replica has,
// by the UID of its pod.
func (m *monitor) rootsOfClients() map[string]string {
	s := m.clients.Load()
	if s == nil {
		return nil
	}
	return latestRoots(s.Clients())
}

// latestRoots: a program that was restarted in its pod has lost what it had,
// and its old stream may not have ended yet.
func latestRoots(clients []xds.ClientStatus) map[string]string {
	all, since := map[string]string{}, map[string]time.Time{}
	for _, c := range clients {
		uid := c.Caller.PodUID
		if at, ok := since[uid]; !ok || c.Connected.After(at) {
			all[uid], since[uid] = c.Roots, c.Connected
		}
	}
	return all
}

// listClients shows how far each data plane connected to this replica is. Only
// the pod's own loopback is answered, which is what kubectl port-forward comes
// from: who may see pods and nodes is the API server's decision.
func (m *monitor) listClients(w http.ResponseWriter, r *http.Request) {
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !a.Addr().Unmap().IsLoopback() {
		http.Error(w, "only for loopback: use kubectl port-forward", http.StatusForbidden)
		return
	}
	clients := []xds.ClientStatus{}
	if s := m.clients.Load(); s != nil {
		clients = append(clients, s.Clients()...)
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(clients) // the only failure is a reader that has gone
}

func (m *monitor) serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: m.handler, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.Shutdown(deadline)
		_ = s.Close()
	})
	err := s.Serve(l)
	if stop() {
		return err // it failed by itself
	}
	<-stopped
	return nil
}
