package server

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambitmesh/ambit/controller/wire"
)

// Trust is where the roots of the mesh come from.
type Trust interface {
	// Bundle is all that is trusted, in PEM, and its hash, which data planes
	// report by acknowledging it.
	Bundle() (pem []byte, hash string)
	// Changed is closed at the next change; call it before Bundle.
	Changed() <-chan struct{}
}

// trustChanged is a channel nobody closes when no roots are served.
func (s *Server) trustChanged() <-chan struct{} {
	if s.config.Trust == nil {
		return nil
	}
	return s.config.Trust.Changed()
}

// trustRequest takes in a subscription, an ACK or a NACK of the roots.
func (c *client) trustRequest(r *discovery.DeltaDiscoveryRequest) {
	if c.singleRequest(&c.trust, "the roots", r) {
		c.mu.Lock()
		c.roots = c.trust.held // for those who ask who has which
		c.mu.Unlock()
	}
}

// pushTrust sends the roots unless the client has them or owes an answer.
func (c *client) pushTrust() error {
	if !c.trust.asked {
		return nil
	}
	pem, hash := c.server.config.Trust.Bundle()
	return c.pushSingle(&c.trust, hash, func() []byte { return wire.MarshalTrust(pem) })
}
