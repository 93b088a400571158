package client

import (
	"fmt"
	"maps"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/metadata"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// askOwn asks once per stream for the types of ours, of a server that has named
// them: any other one might end the stream over a type it does not know. The
// header is there when the first response is.
func (c *Client) askOwn(header metadata.MD, send *sender) {
	if c.asked {
		return
	}
	c.asked = true
	for _, t := range []string{wire.TypeSettings, wire.TypeTrust} {
		if slices.Contains(header.Get(wire.HeaderTypes), t) && (t != wire.TypeTrust || c.config.Trust != nil) {
			send.put(&discovery.DeltaDiscoveryRequest{TypeUrl: t, InitialResourceVersions: maps.Clone(c.held[t])})
		}
	}
	// Whoever has no settings yet waits for those that the server has: pods
	// that are served before could be let out of a mesh that does not want it.
	_, have := c.config.Store.Load().Settings()
	if !have && slices.Contains(header.Get(wire.HeaderSettings), wire.SettingsKnown) {
		c.waiting[wire.TypeSettings] = true
	} else {
		c.hasState(wire.TypeSettings) // an earlier server's promise is void
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

// applySettings puts the mesh's settings into the store. Of settings that are
// refused, or taken away, the last good ones stay.
func (c *Client) applySettings(r *discovery.DeltaDiscoveryResponse) (refused []string) {
	for _, x := range r.GetResources() {
		if x.GetName() != wire.SettingsName || x.GetResource().GetTypeUrl() != wire.TypeSettings {
			refused = append(refused, fmt.Sprintf("%s: not the settings but a %q", x.GetName(), x.GetResource().GetTypeUrl()))
			continue
		}
		s, err := wire.UnmarshalSettings(x.GetResource().GetValue())
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v", x.GetName(), err))
			continue
		}
		c.held[wire.TypeSettings][wire.SettingsName] = x.GetVersion()
		if now, known := c.config.Store.Load().Settings(); known && now.Equal(s) {
			continue
		}
		b := mesh.NewBuilder(c.config.Store.Load())
		b.Apply(mesh.Delta{Settings: &s})
		c.config.Store.Swap(b.Build())
		c.config.Logger.Info("settings of the mesh", "registry_only", s.RegistryOnly, "trust_domain_aliases", s.TrustDomainAliases)
	}
	return refused
}
