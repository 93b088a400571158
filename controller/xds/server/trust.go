package server

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

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

// trust is how far one client is with the roots. Owned by run.
type trust struct {
	asked bool
	held  string // what the client says or acknowledged that it has
	sent  string // what it was sent last; "" before the first answer
	nonce string // of the answer it owes; "" when it owes none
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
	t := &c.trust
	if !t.asked {
		t.asked = true
		c.holds(r.GetInitialResourceVersions()[wire.TrustName])
		return
	}
	if r.GetResponseNonce() == "" || r.GetResponseNonce() != t.nonce {
		return
	}
	t.nonce = ""
	if d := r.GetErrorDetail(); d != nil {
		c.server.metrics.rejects.WithLabelValues(metricType(wire.TypeTrust)).Inc()
		c.server.config.Logger.Error("xds client refused the roots", "pod", c.caller.Namespace+"/"+c.caller.PodName,
			"node", c.caller.Node, "error", d.GetMessage())
		return
	}
	c.holds(t.sent)
}

// holds notes which roots the client has, for those who ask.
func (c *client) holds(hash string) {
	c.trust.held = hash
	c.mu.Lock()
	c.roots = hash
	c.mu.Unlock()
}

// pushTrust sends the roots unless the client has them or owes an answer.
func (c *client) pushTrust() error {
	t := &c.trust
	if !t.asked || t.nonce != "" {
		return nil
	}
	pem, hash := c.server.config.Trust.Bundle()
	if hash == "" || hash == t.held || hash == t.sent {
		return nil
	}
	t.sent = hash
	nonce, err := c.reply(update{typeURL: wire.TypeTrust, resources: []*discovery.Resource{{
		Name: wire.TrustName, Version: hash, Resource: &anypb.Any{TypeUrl: wire.TypeTrust, Value: wire.MarshalTrust(pem)},
	}}}, c.server.config.Store.Load().Version())
	t.nonce = nonce
	return err
}
