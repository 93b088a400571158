package main

import "github.com/ambitmesh/ambit/ztunnel"

// own is ztunnel's own pod.
func (c *config) own() ztunnel.Own {
	return ztunnel.Own{Name: c.PodName, Namespace: c.PodNamespace, ServiceAccount: c.ServiceAccount}
}

// inbound are the settings of how applications are reached.
func (c *config) inbound() ztunnel.InboundSettings {
	return ztunnel.InboundSettings{
		NoLoopback: !c.LocalhostAppTunnel, NoBaggage: !c.ResponseBaggage, OwnSource: c.OriginalSource != nil && !*c.OriginalSource,
	}
}
