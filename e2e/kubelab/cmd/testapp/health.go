package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// conditions are what probes ask for, by name; all are good until /health/NAME/bad
// is asked for. The same names are services of the gRPC health server, and "tcp"
// closes the echo server's port.
type conditions struct {
	grpc *health.Server // immutable
	tcp  *echoes        // immutable; nil without an echo server

	mu  sync.Mutex
	bad map[string]bool // guarded by mu
}

func newConditions(tcp *echoes) *conditions {
	return &conditions{grpc: health.NewServer(), tcp: tcp, bad: map[string]bool{}}
}

func (c *conditions) handle(mux *http.ServeMux) {
	mux.HandleFunc("/health/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("probe", r.PathValue("name"), "from", r.RemoteAddr)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.bad[r.PathValue("name")] {
			http.Error(w, "bad", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "good")
	})
	mux.HandleFunc("/health/{name}/{state}", func(w http.ResponseWriter, r *http.Request) {
		if err := c.set(r.PathValue("name"), r.PathValue("state") == "bad"); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "set")
	})
	// Hooks show in the log, because the pod may be gone before anybody asks.
	mux.HandleFunc("/hook/{name}", func(_ http.ResponseWriter, r *http.Request) {
		fmt.Println("hook", r.PathValue("name"), "from", r.RemoteAddr)
	})
}

func (c *conditions) set(name string, bad bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bad[name] = bad
	status := healthpb.HealthCheckResponse_SERVING
	if bad {
		status = healthpb.HealthCheckResponse_NOT_SERVING
	}
	c.grpc.SetServingStatus(name, status)
	switch {
	case name != "tcp" || c.tcp == nil:
		return nil
	case bad:
		return c.tcp.close()
	}
	return c.tcp.open()
}

// serveGRPC answers grpc.health.v1 until ctx ends.
func (c *conditions) serveGRPC(ctx context.Context, address string) error {
	for _, n := range []string{"start", "ready", "live"} {
		c.grpc.SetServingStatus(n, healthpb.HealthCheckResponse_SERVING)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		if q, ok := req.(*healthpb.HealthCheckRequest); ok {
			fmt.Println("probe grpc", q.GetService())
		}
		return handle(ctx, req)
	}))
	healthpb.RegisterHealthServer(s, c.grpc)
	context.AfterFunc(ctx, s.Stop)
	fmt.Println("grpc health on", address)
	return s.Serve(l)
}

// echoes sends back what it gets, while it is open.
type echoes struct {
	address string       // immutable
	failed  chan<- error // immutable

	mu sync.Mutex
	l  net.Listener // guarded by mu; nil while closed
}

func (e *echoes) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.l != nil {
		return nil
	}
	l, err := net.Listen("tcp", e.address)
	if err != nil {
		return err
	}
	e.l = l
	fmt.Println("tcp echo on", e.address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if e.wanted(l) {
					e.failed <- err
				}
				return
			}
			fmt.Println("tcp client", c.RemoteAddr())
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	return nil
}

func (e *echoes) wanted(l net.Listener) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.l == l
}

func (e *echoes) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.l == nil {
		return nil
	}
	l := e.l
	e.l = nil
	return l.Close()
}
