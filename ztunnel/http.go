package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
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
