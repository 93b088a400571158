package main

import (
	"log/slog"

	"github.com/ambitmesh/ambit/ztunnel/dns"
)

// resolvConf names ztunnel's own resolvers.
const resolvConf = "/etc/resolv.conf"

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
