// Package client owns the data plane's certificates: it asks the CA for them,
// keeps them fresh and hands them out as an identity.Source.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Config of a Source.
type Config struct {
	Address     string
	TLS         func() (*tls.Config, error)
	Token       func() (string, error)
	ClusterID   string
	Impersonate bool
	TTL         time.Duration
	Logger      *slog.Logger
	Registerer  prometheus.Registerer
}

// Source is an identity.Source backed by the CA.
type Source struct{}

// Error is why a certificate is not available.
type Error struct {
	ID     identity.ID
	Denied bool // the CA refused; asking again will not help by itself
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// CertState describes one identity for config_dump.
type CertState struct {
	ID    identity.ID
	State string // Initializing, Available, Unavailable: <reason>
	Chain []*x509.Certificate
	Roots []*x509.Certificate
}

// New has no side effects but registering metrics.
func New(c Config) *Source { panic("unset") }

// Run works until ctx ends.
func (s *Source) Run(ctx context.Context) error { panic("unset") }

// Certificate implements identity.Source.
func (s *Source) Certificate(ctx context.Context, id identity.ID) (*tls.Certificate, error) {
	panic("unset")
}

// Roots implements identity.Source.
func (s *Source) Roots() *x509.CertPool { panic("unset") }

// Prefetch asks for id soon.
func (s *Source) Prefetch(id identity.ID) { panic("unset") }

// Forget drops id.
func (s *Source) Forget(id identity.ID) { panic("unset") }

// States lists what is held, sorted by identity.
func (s *Source) States() []CertState { panic("unset") }
