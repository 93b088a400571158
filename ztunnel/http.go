package ztunnel

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// server is one of the process's own HTTP interfaces.
type server struct {
	name string
	ln   net.Listener
	http *http.Server
}

// listen opens them all; the error names each address that could not be had.
func (n *Node) listen() ([]*server, error) {
	var (
		out  []*server
		errs []error
	)
	for _, s := range []struct {
		name, addr string
		handler    http.Handler
		limit      time.Duration // to send a request, and to take its answer
	}{
		{"admin", n.cfg.AdminAddr, n.admin(), 0}, // loopback only, and a profile takes as long as it is asked to
		{"metrics", n.cfg.StatsAddr, metricsHandler(n.table.Flush, n.cfg.Registry), 30 * time.Second},
		{"readiness", n.cfg.ReadyAddr, n.ready, 5 * time.Second},
	} {
		if s.addr == "" {
			continue
		}
		lns, err := open(s.addr, n.cfg.IPv4Only)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s server: %w", s.name, err))
		}
		for _, ln := range lns {
			out = append(out, &server{s.name + " server", ln, &http.Server{
				Handler: s.handler, ReadHeaderTimeout: 2 * time.Second, MaxHeaderBytes: 8 << 10,
				ReadTimeout: s.limit, WriteTimeout: s.limit, IdleTimeout: 2 * time.Minute,
				ErrorLog: slog.NewLogLogger(n.cfg.Logger.Handler(), slog.LevelDebug),
			}})
		}
	}
	if len(errs) > 0 {
		for _, s := range out {
			s.ln.Close()
		}
		return nil, errors.Join(errs...)
	}
	return out, nil
}

// open listens at addr; the host localhost means both loopback addresses, as far
// as the machine has the one of IPv6.
func open(addr string, ipv4 bool) ([]net.Listener, error) {
	network := "tcp"
	if ipv4 {
		network = "tcp4"
	}
	port, ok := strings.CutPrefix(addr, "localhost:")
	if !ok {
		ln, err := net.Listen(network, addr)
		if err != nil {
			return nil, err
		}
		return []net.Listener{ln}, nil
	}
	first, err := net.Listen("tcp4", "127.0.0.1:"+port)
	if err != nil {
		return nil, err
	}
	if ipv4 {
		return []net.Listener{first}, nil
	}
	// With port 0 both get the same.
	second, err := net.Listen("tcp6", fmt.Sprintf("[::1]:%d", first.Addr().(*net.TCPAddr).Port))
	switch {
	case err == nil:
		return []net.Listener{first, second}, nil
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		return []net.Listener{first}, nil
	}
	first.Close()
	return nil, err
}

func (s *server) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// metricsHandler always answers with OpenMetrics text, as the reference does,
// whatever the content type says. before is called first.
func metricsHandler(before func(), g prometheus.Gatherer) http.Handler {
	h := func(w http.ResponseWriter, r *http.Request) {
		before()
		families, err := g.Gather()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		contentType := "text/plain; charset=utf-8"
		for part := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
			kind, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(kind, "application/openmetrics-text") {
				contentType = "application/openmetrics-text;charset=utf-8;version=1.0.0"
			}
		}
		w.Header().Set("Content-Type", contentType)
		out := io.Writer(w)
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			out = z
		}
		enc := expfmt.NewEncoder(out, expfmt.NewFormat(expfmt.TypeOpenMetrics))
		for _, f := range families {
			if err := enc.Encode(f); err != nil {
				return // the client has gone
			}
		}
		if c, ok := enc.(expfmt.Closer); ok {
			c.Close()
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", h)
	mux.HandleFunc("/stats/prometheus", h)
	return mux
}

// readiness is the set of things that are not ready yet.
type readiness struct {
	mu    sync.Mutex
	tasks map[string]struct{} // guarded by mu
}

func newReadiness(tasks ...string) *readiness {
	r := &readiness{tasks: map[string]struct{}{}}
	for _, t := range tasks {
		r.tasks[t] = struct{}{}
	}
	return r
}

func (r *readiness) done(task string) {
	r.mu.Lock()
	delete(r.tasks, task)
	r.mu.Unlock()
}

func (r *readiness) pending(task string) {
	r.mu.Lock()
	r.tasks[task] = struct{}{}
	r.mu.Unlock()
}

func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path != "/healthz/ready" {
		http.NotFound(w, req)
		return
	}
	if req.Method != http.MethodGet {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	r.mu.Lock()
	pending := slices.Sorted(maps.Keys(r.tasks))
	r.mu.Unlock()
	if len(pending) == 0 {
		io.WriteString(w, "ready\n")
		return
	}
	w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(pending, ", "))
}

// admin is the loopback interface of istioctl ztunnel-config and operators.
func (n *Node) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<!doctype html><title>ambit-ztunnel</title><ul>")
		for _, p := range []string{"config_dump", "logging", "quitquitquit", "debug/pprof/"} {
			fmt.Fprintf(w, `<li><a href="%s">/%s</a>`, p, p)
		}
		io.WriteString(w, "</ul>\n")
	})
	mux.HandleFunc("/config_dump", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		enc.Encode(n.dump()) // an error means that the client has gone
	})
	post := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			h(w, r)
		}
	}
	mux.HandleFunc("/logging", post(n.logging))
	mux.HandleFunc("/quitquitquit", post(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "shutdown now\n")
		n.quitNow()
	}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	return mux
}

func (n *Node) logging(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var err error
	if q.Has("reset") {
		err = n.cfg.Levels.Reset()
	}
	if err == nil && q.Get("level") != "" {
		err = n.cfg.Levels.Add(q.Get("level"))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "current log level is %s\n", n.cfg.Levels)
}
