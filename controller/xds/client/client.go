// Package client owns the data plane's half of delta ADS: it keeps a
// mesh.Store in step with a control plane.
package client

import (
	"context"
	"crypto/tls"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Config of a Client.
type Config struct {
	Address    string
	TLS        func() (*tls.Config, error) // nil: plaintext
	Token      func() (string, error)
	ClusterID  string
	NodeID     string
	Metadata   map[string]string
	Store      *mesh.Store
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Client keeps Store current.
type Client struct{}

// New has no side effects but registering metrics.
func New(c Config) *Client { panic("unset") }

// Run works until ctx ends.
func (c *Client) Run(ctx context.Context) error { panic("unset") }

// Synced is closed once every type has been received and applied.
func (c *Client) Synced() <-chan struct{} { panic("unset") }
