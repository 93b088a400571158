package main

import (
	"maps"
	"os"
	"runtime"
	"slices"
)

// dump is the key "config" of config_dump, with the names of the reference. It
// holds no token and no metadata of requests.
func (c *config) dump() map[string]any {
	wildcard := map[bool]string{true: "[::]", false: "0.0.0.0"}[c.IPv6]
	illegal := []int{15001, 15006, 15008}
	var socks any
	if c.SOCKS5 {
		illegal, socks = append(illegal, 15080), "127.0.0.1:15080"
	}
	return map[string]any{
		"proxy": true, "dnsProxy": c.dnsCapture(), "proxyMode": "Shared",
		"windowSize": c.HBONE.StreamWindow, "connectionWindowSize": c.HBONE.ConnWindow, "frameSize": c.HBONE.MaxFrame,
		"poolMaxStreamsPerConn": c.Pool.MaxStreams, "poolUnusedReleaseTimeout": brief(c.Pool.Idle),
		"adminAddr": c.AdminAddr, "statsAddr": c.StatsAddr, "readinessAddr": c.ReadyAddr, "socks5Addr": socks,
		"inboundAddr": wildcard + ":15008", "inboundPlaintextAddr": wildcard + ":15006", "outboundAddr": wildcard + ":15001",
		"dnsProxyAddr": "localhost:15053", "illegalPorts": illegal,
		"network": "", "localNode": c.NodeName, "clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain,
		"caAddress": c.CAAddress, "caRootCert": c.CARootCA, "altCaHostname": optional(c.CAName), "caHeaders": names(c.CAHeaders),
		"xdsAddress": c.XDSAddress, "xdsRootCert": c.XDSRootCA, "altXdsHostname": optional(c.XDSName), "xdsHeaders": names(c.XDSHeaders),
		"xdsOnDemand": c.OnDemand, "preferedServiceNamespace": optional(c.PreferredNamespace),
		"secretTtl": brief(c.SecretTTL), "fakeCa": false, "selfTerminationDeadline": brief(c.Grace),
		"proxyMetadata": c.proxyMetadata(), "requireOriginalSource": c.OriginalSource,
		"inpodUds": c.Socket, "inpodPortReuse": c.PortReuse, "packetMark": 1337,
		"socketConfig": map[string]any{
			"keepaliveEnabled": c.KeepAlive.Enabled, "keepaliveTime": brief(c.KeepAlive.Time), "keepaliveInterval": brief(c.KeepAlive.Interval),
			"keepaliveRetries": c.KeepAlive.Retries, "userTimeoutEnabled": c.KeepAlive.UserTimeout,
		},
		"numWorkerThreads": workers(c, runtime.NumCPU()), "fakeSelfInbound": false,
		// Of a ztunnel for one workload, of its start and of its resolver's library.
		"proxyWorkloadInformation": nil, "proxyArgs": os.Args[1:], "dnsResolverCfg": nil, "dnsResolverOpts": nil,
		"localhostAppTunnel": c.LocalhostAppTunnel, "enableEnhancedBaggage": c.ResponseBaggage, "ipv6Enabled": c.IPv6, "crlPath": optional(c.CRLPath),
		"ztunnelIdentity": "spiffe://" + c.TrustDomain + "/ns/" + c.PodNamespace + "/sa/" + c.ServiceAccount,
		"ztunnelWorkload": map[string]string{"name": c.PodName, "namespace": c.PodNamespace, "serviceAccount": c.ServiceAccount},
	}
}

func optional(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// names of headers: what they carry may be secret.
func names(headers map[string]string) []string {
	return slices.Sorted(maps.Keys(headers))
}
