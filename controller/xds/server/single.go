package server

import (
	"crypto/sha256"
	"encoding/hex"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// single is how far one client is with a type of ours that has one resource,
// which is sent as a whole. Owned by run.
type single struct {
	typeURL, name string
	asked         bool
	held          string // what the client says or acknowledged that it has
	sent          string // what it was sent last; "" before the first answer
	nonce         string // of the answer it owes; "" when it owes none
}

// singleRequest takes in a subscription, an ACK or a NACK, and reports whether
// held says something new.
func (c *client) singleRequest(s *single, what string, r *discovery.DeltaDiscoveryRequest) bool {
	if !s.asked {
		s.asked = true
		s.held = r.GetInitialResourceVersions()[s.name]
		return true
	}
	if r.GetResponseNonce() == "" || r.GetResponseNonce() != s.nonce {
		return false
	}
	s.nonce = ""
	if d := r.GetErrorDetail(); d != nil {
		c.server.metrics.rejects.WithLabelValues(metricType(s.typeURL)).Inc()
		c.server.config.Logger.Error("xds client refused "+what, "pod", c.caller.Namespace+"/"+c.caller.PodName,
			"node", c.caller.Node, "error", d.GetMessage())
		return false
	}
	s.held = s.sent
	return true
}

// pushSingle sends the resource unless the client has that version or owes an
// answer. A version that it refused is not sent again.
func (c *client) pushSingle(s *single, version string, value func() []byte) error {
	if !s.asked || s.nonce != "" || version == "" || version == s.held || version == s.sent {
		return nil
	}
	s.sent = version
	nonce, err := c.reply(update{typeURL: s.typeURL, resources: []*discovery.Resource{{
		Name: s.name, Version: version, Resource: &anypb.Any{TypeUrl: s.typeURL, Value: value()},
	}}}, c.server.config.Store.Load().Version())
	s.nonce = nonce
	return err
}

// pushSettings sends those of the mesh's settings that data planes act on. As
// long as nobody knows them the client keeps what it has.
func (c *client) pushSettings(snap *mesh.Snapshot) error {
	settings, known := snap.Settings()
	if !known || !c.settings.asked {
		return nil
	}
	b := wire.MarshalSettings(settings)
	sum := sha256.Sum256(b)
	return c.pushSingle(&c.settings, hex.EncodeToString(sum[:8]), func() []byte { return b })
}
