package ca

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// ServerConfig of the certificate service.
type ServerConfig struct {
	Authority           *Authority
	Authenticate        func(ctx context.Context) (Caller, error)
	TrustDomain         string
	TrustedNodeAccounts []string // <namespace>/<service account>
	Hosts               func(node string, id identity.ID) bool
	Logger              *slog.Logger
	Registerer          prometheus.Registerer
}

// Server is IstioCertificateService.
type Server struct{}

// NewServer has no side effects but registering metrics.
func NewServer(c ServerConfig) *Server { panic("unset") }

// Register adds the service to g.
func (s *Server) Register(g *grpc.Server) { panic("unset") }
