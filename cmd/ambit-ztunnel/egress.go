package main

import "github.com/ambitmesh/ambit/ztunnel/outbound"

// egress is what may leave the mesh: what was set, else what the mesh says.
func (c *config) egress() outbound.Egress {
	e := outbound.Egress{Domain: c.ClusterDomain}
	if c.Outbound != "" {
		only := c.Outbound == "REGISTRY_ONLY"
		e.RegistryOnly = &only
	}
	return e
}
