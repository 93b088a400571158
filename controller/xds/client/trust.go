package client

import (
	"fmt"
	"maps"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/metadata"

	"github.com/ambitmesh/ambit/controller/wire"
)

// askTrust asks once per stream for the roots, of a server that has named the
// type: any other one might end the stream over a type it does not know. The
// header is there when the first response is.
func (c *Client) askTrust(header metadata.MD, send *sender) {
	if c.asked || c.config.Trust == nil {
		return
	}
	c.asked = true
	if slices.Contains(header.Get(wire.HeaderTypes), wire.TypeTrust) {
		send.put(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.TypeTrust, InitialResourceVersions: maps.Clone(c.held[wire.TypeTrust])})
	}
}

// applyTrust hands the roots on. Of roots that are refused, or taken away, the
// last good ones stay.
func (c *Client) applyTrust(r *discovery.DeltaDiscoveryResponse) (refused []string) {
	for _, x := range r.GetResources() {
		if x.GetName() != wire.TrustName || x.GetResource().GetTypeUrl() != wire.TypeTrust {
			refused = append(refused, fmt.Sprintf("%s: not the roots but a %q", x.GetName(), x.GetResource().GetTypeUrl()))
			continue
		}
		roots, err := wire.UnmarshalTrust(x.GetResource().GetValue())
		if err == nil {
			err = c.config.Trust(roots)
		}
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v", x.GetName(), err))
			continue
		}
		c.held[wire.TypeTrust][wire.TrustName] = x.GetVersion()
	}
	return refused
}
