package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestConfigInDump: the settings are in the dump under their documented names, and
// nothing secret is.
//
//ambit:feature telemetry-config-dump
func TestConfigInDump(t *testing.T) {
	const keys = `proxy dnsProxy windowSize connectionWindowSize frameSize poolMaxStreamsPerConn poolUnusedReleaseTimeout socks5Addr adminAddr
		statsAddr readinessAddr inboundAddr inboundPlaintextAddr outboundAddr dnsProxyAddr illegalPorts network localNode proxyMode
		proxyWorkloadInformation clusterId clusterDomain caAddress caRootCert altCaHostname xdsAddress xdsRootCert altXdsHostname
		preferedServiceNamespace secretTtl xdsOnDemand fakeCa fakeSelfInbound selfTerminationDeadline proxyMetadata numWorkerThreads
		requireOriginalSource proxyArgs dnsResolverCfg dnsResolverOpts inpodUds inpodPortReuse packetMark socketConfig xdsHeaders caHeaders
		localhostAppTunnel ztunnelIdentity ztunnelWorkload ipv6Enabled crlPath enableEnhancedBaggage`
	c := readConfig(env("AUTH_TOKEN", "secret-1", "XDS_HEADER_key", "secret-2", "CA_HEADER_key", "secret-3", "UNSTABLE_ENABLE_SOCKS5", "true",
		"POD_NAMESPACE", "ns", "SERVICE_ACCOUNT", "zt", "IPV6_ENABLED", "false", "ZTUNNEL_WORKER_THREADS", "3"), nofile)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	d := c.dump()
	for key := range strings.FieldsSeq(keys) {
		if _, ok := d[key]; !ok {
			t.Errorf("no %s", key)
		}
	}
	if n := len(strings.Fields(keys)); len(d) != n {
		t.Errorf("%d keys, want %d", len(d), n)
	}
	b, err := json.Marshal(d)
	if err != nil || strings.Contains(string(b), "secret-") {
		t.Errorf("%v %s", err, b)
	}
	for _, want := range []string{`"illegalPorts":[15001,15006,15008,15080]`, `"inboundAddr":"0.0.0.0:15008"`, `"ztunnelIdentity":"spiffe://cluster.local/ns/ns/sa/zt"`,
		`"numWorkerThreads":3`, `"xdsHeaders":["key"]`, `"secretTtl":"24h"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
}
