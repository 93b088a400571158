// Package client owns the data plane's half of delta ADS: it keeps a
// mesh.Store in step with a control plane, and keeps the last good state when
// the control plane is away or wrong.
package client

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// Config of a Client.
type Config struct {
	Address   string                      // host:port; a leading http:// or https:// is ignored
	TLS       func() (*tls.Config, error) // asked per attempt, so that new roots count; nil: plaintext
	Token     func() (string, error)      // asked per stream; nil or "": no authorization
	ClusterID string
	NodeID    string
	Metadata  map[string]string
	JSON      map[string]any    // further metadata, of any shape that JSON has
	Headers   map[string]string // sent with every stream
	// OnDemand asks for workloads only when a connection needs them, see Demand.
	OnDemand bool
	Store    *mesh.Store // the client is its only writer
	// Trust takes the roots of the mesh, in PEM, from a control plane that
	// sends them; nil: they are not asked for. An error refuses them.
	Trust      func(roots []byte) error
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are not exposed
}

// Client keeps Config.Store current.
type Client struct {
	config  Config
	metrics metrics
	synced  chan struct{}

	demand *Demand // nil: everything is asked for

	// Owned by Run.
	asked bool                         // for the roots, on this stream
	held  map[string]map[string]string // per type URL: resource name -> version applied
	// waiting holds the types of which no response has been applied yet.
	waiting map[string]bool
}

// types in the order they are asked for.
var types = [...]string{wire.TypeAddress, wire.TypeAuthorization}

// New has no side effects but registering metrics.
func New(c Config) *Client {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	x := &Client{
		config:  c,
		metrics: newMetrics(c.Registerer),
		synced:  make(chan struct{}),
		held:    make(map[string]map[string]string),
		waiting: make(map[string]bool),
	}
	for _, t := range types {
		x.held[t] = make(map[string]string)
		x.waiting[t] = true
	}
	x.held[wire.TypeTrust] = make(map[string]string)
	x.held[wire.TypeSettings] = make(map[string]string)
	if c.OnDemand {
		x.demand = newDemand(c.Store, x.metrics.questions)
		delete(x.waiting, wire.TypeAddress) // there may be none before somebody asks
	}
	return x
}

// Demand is where single names are asked for; nil unless Config.OnDemand.
func (c *Client) Demand() *Demand { return c.demand }

// Synced is closed once a response of every type has been applied, at least in
// part; on demand only the policies are waited for.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Run works until ctx ends, reconnecting as often as needed.
func (c *Client) Run(ctx context.Context) error {
	delay := firstDelay
	for {
		started := time.Now()
		out := c.connect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		delay = nextDelay(delay, out)
		c.metrics.terminations.WithLabelValues(out.reason()).Inc()
		c.config.Logger.Warn("xds stream ended", "address", c.config.Address, "reason", out.reason(),
			"after", time.Since(started).Round(time.Millisecond), "retry_in", delay, "error", out.err)
		t := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}
