// Package server owns the control plane's half of delta ADS: it brings every
// connected data plane to the current mesh snapshot.
package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Caller is who a verified token belongs to.
type Caller struct{ Namespace, ServiceAccount, PodName, PodUID, Node string }

// Config of a Server.
type Config struct {
	Store        *mesh.Store
	Authenticate func(ctx context.Context) (Caller, error)
	Logger       *slog.Logger
	Registerer   prometheus.Registerer
}

// Server answers delta ADS streams.
type Server struct{}

// ClientStatus describes one connected client.
type ClientStatus struct {
	Caller    Caller
	NodeID    string
	Connected time.Time
	Types     []TypeStatus
}

// TypeStatus is how far one client is with one resource type.
type TypeStatus struct {
	TypeURL      string
	Sent, Acked  uint64 // snapshot versions
	LastNACK     string // empty when the last answer was an ACK
	LastNACKTime time.Time
}

// New has no side effects but registering metrics.
func New(c Config) *Server { panic("unset") }

// Register adds the service to g.
func (s *Server) Register(g *grpc.Server) { panic("unset") }

// Clients lists the connected clients.
func (s *Server) Clients() []ClientStatus { panic("unset") }
