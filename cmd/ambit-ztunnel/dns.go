package main

import (
	"log/slog"

	"github.com/ambitmesh/ambit/ztunnel/dns"
	"github.com/ambitmesh/ambit/ztunnel/outbound"
)

// resolvConf names ztunnel's own resolvers.
const resolvConf = "/etc/resolv.conf"

// resolve asks ztunnel's own resolvers, nil where there are none.
func (c *config) resolve() outbound.Ask {
	resolvers, err := dns.Resolvers(resolvConf)
	if err != nil || len(resolvers) == 0 {
		return nil // dns has said so
	}
	return dns.NewHosts(resolvers, !c.IPv6).Lookup
}

// dns is how pods' questions are answered. Without resolvers of its own ztunnel
// still forwards to those that the pods ask.
func (c *config) dns(log *slog.Logger) dns.Settings {
	resolvers, err := dns.Resolvers(resolvConf)
	if err != nil {
		log.Warn("own resolvers", "err", err)
	}
	return dns.Settings{
		Off: !c.dnsCapture(), Domain: c.ClusterDomain, PreferredNamespace: c.PreferredNamespace, NoIPv6: !c.IPv6,
		Resolvers: resolvers,
	}
}
