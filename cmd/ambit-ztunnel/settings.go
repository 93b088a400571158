package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A setting is one environment variable. The names are those of Istio's ztunnel,
// AMBIT_ begins our own. The list is all there is: it is what the program reads,
// what `ambit-ztunnel help` prints, and docs/reference/ztunnel.md.
type setting struct {
	name string // one that ends with * is a prefix
	// def is read like a value that was set; instead are the words for it
	// where it is not a value.
	def, instead string
	value        value
	each         func(c *config, suffix, v string) error // of a prefix
	help         string

	// why says of a variable that has no effect why it has none. Whoever sets
	// it is warned, unless it is set to something that is so anyway ("*": anything).
	why    string
	anyway string
}

var settings = []setting{
	// First, because those that say the same as a part of it win.
	{name: "PROXY_CONFIG", instead: "`defaultConfig` of the file `" + meshFile + "`", value: value{"YAML or JSON", (*config).readProxyConfig},
		help: "a ProxyConfig, of which `discoveryAddress`, `proxyAdminPort`, `statsPort`, `concurrency` and `proxyMetadata` are read"},

	// Who we are.
	{name: "NODE_NAME", value: text("", func(c *config) *string { return &c.NodeName }), help: "the node it runs on; its configuration is asked for by it"},
	{name: "POD_NAME", value: text("", func(c *config) *string { return &c.PodName }), help: "its own pod"},
	{name: "POD_NAMESPACE", value: text("", func(c *config) *string { return &c.PodNamespace }), help: "namespace of its own pod"},
	{name: "SERVICE_ACCOUNT", value: text("", func(c *config) *string { return &c.ServiceAccount }), help: "service account of its own pod"},
	{name: "INSTANCE_IP", def: "1.1.1.1", value: text("address", func(c *config) *string { return &c.InstanceIP }), help: "address of its own pod, part of its name in the control plane"},
	{name: "CLUSTER_ID", def: "Kubernetes", value: text("", func(c *config) *string { return &c.ClusterID }), help: "name of the cluster, when `ISTIO_META_CLUSTER_ID` is not set"},
	{name: "ISTIO_META_CLUSTER_ID", instead: "value of `CLUSTER_ID`", value: text("", func(c *config) *string { return &c.ClusterID }), help: "name of the cluster"},
	{name: "CLUSTER_DOMAIN", def: "cluster.local", value: text("", func(c *config) *string { return &c.ClusterDomain }), help: "what the names of services end with"},
	{name: "TRUST_DOMAIN", def: "cluster.local", value: text("", func(c *config) *string { return &c.TrustDomain }), help: "trust domain of its own identity in the configuration dump; those of workloads come with their configuration"},
	{name: "AMBIT_TRUST_DOMAIN_ALIASES", value: list("trust domains, separated by commas", func(c *config) *[]string { return &c.Aliases }),
		help: "peers of these trust domains count as the mesh's own, where the control plane does not say which (ours does: `trustDomainAliases` of the mesh's settings)"},
	{name: "ISTIO_META_*", each: each(func(c *config) *map[string]string { return &c.Meta }), help: "metadata told to the control plane, under the name without the prefix"},
	{name: "ISTIO_METAJSON_*", each: (*config).readMetaJSON, help: "the same with a value of JSON; one that cannot be read is left out with a warning"},

	// The control plane.
	{name: "XDS_ADDRESS", instead: "`discoveryAddress` of the ProxyConfig, else `" + defaultControlPlane + "`", value: server(func(c *config) *string { return &c.XDSAddress }),
		help: "where configuration comes from; `http://` is plaintext, without a scheme it is TLS"},
	{name: "XDS_ROOT_CA", def: "./var/run/secrets/istio/root-cert.pem", value: text("file, `SYSTEM`, or PEM", func(c *config) *string { return &c.XDSRootCA }), help: "root certificate of that server"},
	{name: "ALT_XDS_HOSTNAME", value: text("", func(c *config) *string { return &c.XDSName }), help: "name expected in that server's certificate, when it is not the address"},
	{name: "XDS_HEADER_*", each: each(func(c *config) *map[string]string { return &c.XDSHeaders }), help: "metadata sent to that server with every stream, under the name without the prefix"},
	{name: "XDS_ON_DEMAND", def: "false", value: boolean(func(c *config) *bool { return &c.OnDemand }), help: "ask for a workload when a connection needs it, instead of knowing all; not together with DNS capture"},
	{name: "CA_ADDRESS", instead: "value of `XDS_ADDRESS`", value: server(func(c *config) *string { return &c.CAAddress }), help: "where certificates come from"},
	{name: "CA_ROOT_CA", instead: "value of `XDS_ROOT_CA`", value: text("file, `SYSTEM`, or PEM", func(c *config) *string { return &c.CARootCA }), help: "root certificate of that server"},
	{name: "ALT_CA_HOSTNAME", value: text("", func(c *config) *string { return &c.CAName }), help: "name expected in that server's certificate, when it is not the address"},
	{name: "CA_HEADER_*", each: each(func(c *config) *map[string]string { return &c.CAHeaders }), help: "metadata sent to that server with every request, under the name without the prefix"},
	{name: "AUTH_TOKEN", instead: "`" + defaultToken + "`", value: text("file or token", func(c *config) *string { return &c.AuthToken }), help: "file with its token, read every time, or the token itself"},
	{name: "SECRET_TTL", def: "24h", value: length(func(c *config) *time.Duration { return &c.SecretTTL }, 24*time.Hour), help: "lifetime asked for certificates"},
	{name: "CRL_PATH", value: text("file", func(c *config) *string { return &c.CRLPath }), help: "revocation lists, PEM or DER; a change of the file ends connections of those it revokes"},

	// Pods.
	{name: "INPOD_UDS", def: "/var/run/ztunnel/ztunnel.sock", value: text("path", func(c *config) *string { return &c.Socket }), help: "socket over which the node agent hands it pods"},
	{name: "INPOD_PORT_REUSE", def: "true", value: boolean(func(c *config) *bool { return &c.PortReuse }), help: "two ztunnels may listen at once while one follows the other, under a node agent that leaves listening to them"},
	{name: "ENABLE_ORIG_SRC", instead: "`true`", value: tristate(func(c *config) **bool { return &c.OriginalSource }), help: "applications see the address of the client, and a connection fails where that cannot be done; with `false` they see their own pod's"},
	{name: "IPV6_ENABLED", def: "true", value: boolean(func(c *config) *bool { return &c.IPv6 }), help: "`false` binds its own interfaces to IPv4 alone and answers no AAAA queries from the mesh"},

	// Connections.
	{name: "TERMINATION_GRACE_PERIOD_SECONDS", instead: "5 s of grace", value: number(func(c *config) *uint32 { return &c.GracePeriod }, 1, 1<<31-1), help: "grace period of the pod; connections may go on for 5 s less after SIGTERM"},
	{name: "CONNECTION_TERMINATION_DEADLINE", instead: "from the grace period", value: length(func(c *config) *time.Duration { return &c.Grace }, 0), help: "the same as a duration, set directly"},
	{name: "KEEPALIVE_ENABLED", def: "true", value: boolean(func(c *config) *bool { return &c.KeepAlive.Enabled }), help: "TCP keepalive on connections of applications and to peers"},
	{name: "KEEPALIVE_TIME", def: "180s", value: length(func(c *config) *time.Duration { return &c.KeepAlive.Time }, 32767*time.Second), help: "silence before the first probe"},
	{name: "KEEPALIVE_INTERVAL", def: "180s", value: length(func(c *config) *time.Duration { return &c.KeepAlive.Interval }, 32767*time.Second), help: "between probes"},
	{name: "KEEPALIVE_RETRIES", def: "9", value: number(func(c *config) *int { return &c.KeepAlive.Retries }, 1, 127), help: "probes without an answer before the connection ends"},
	{name: "USER_TIMEOUT_ENABLED", def: "false", value: boolean(func(c *config) *bool { return &c.KeepAlive.UserTimeout }), help: "TCP_USER_TIMEOUT of keepalive time + interval × retries: data without an acknowledgement for that long ends the connection"},
	{name: "POOL_MAX_STREAMS_PER_CONNECTION", def: "100", value: number(func(c *config) *int { return &c.Pool.MaxStreams }, 1, 1<<31-1), help: "tunnelled connections on one HBONE connection before another is opened"},
	{name: "POOL_UNUSED_RELEASE_TIMEOUT", def: "5m", value: length(func(c *config) *time.Duration { return &c.Pool.Idle }, 0), help: "how long an unused HBONE connection is kept"},
	{name: "HTTP2_STREAM_WINDOW_SIZE", def: "4194304", value: number(func(c *config) *uint32 { return &c.HBONE.StreamWindow }, 1, 1<<31-1),
		help: "receive window of one tunnelled connection, bytes, never below 65535; it begins at 256 KiB and grows while the application reads"},
	{name: "HTTP2_CONNECTION_WINDOW_SIZE", def: "16777216", value: number(func(c *config) *uint32 { return &c.HBONE.ConnWindow }, 1, 1<<31-1), help: "receive window of one HBONE connection, bytes, never below 65535"},
	{name: "HTTP2_FRAME_SIZE", def: "1048576", value: number(func(c *config) *uint32 { return &c.HBONE.MaxFrame }, 1, 1<<24-1), help: "largest frame it accepts, bytes, never below 16384"},
	{name: "HTTP2_PING_INTERVAL", def: "10s", value: length(func(c *config) *time.Duration { return &c.HBONE.PingInterval }, 0), help: "an HBONE connection is asked whether it lives this long after its last answer"},
	{name: "HTTP2_PING_TIMEOUT", def: "20s", value: length(func(c *config) *time.Duration { return &c.HBONE.PingTimeout }, 0), help: "without an answer for this long it ends, with what it carries"},
	{name: "TLS12_ENABLED", def: "false", value: exactly("true", func(c *config) *bool { return &c.TLS12 }), help: "accept TLS 1.2 besides 1.3"},
	{name: "COMPLIANCE_POLICY", value: oneOf(func(c *config) *string { return &c.Compliance }, "fips-140-2", "pqc"), help: "what TLS is restricted to: `fips-140-2` what that standard approves, `pqc` key exchange with X25519MLKEM768"},
	{name: "LOCALHOST_APP_TUNNEL", def: "true", value: boolean(func(c *config) *bool { return &c.LocalhostAppTunnel }), help: "a workload with an application tunnel of protocol PROXY is dialled at its loopback address"},
	{name: "ENABLE_RESPONSE_BAGGAGE", def: "true", value: boolean(func(c *config) *bool { return &c.ResponseBaggage }), help: "say who the destination is in the answer to a CONNECT, and believe what a client says of itself in telemetry"},
	{name: "AMBIT_OUTBOUND_TRAFFIC_POLICY", instead: "`outboundTrafficPolicy` of the mesh's settings", value: oneOf(func(c *config) *string { return &c.Outbound }, "ALLOW_ANY", "REGISTRY_ONLY"),
		help: "whether pods may connect to addresses that the mesh does not know; with `REGISTRY_ONLY` others are refused with `not_registered`"},
	{name: "UNSTABLE_ENABLE_SOCKS5", def: "false", value: boolean(func(c *config) *bool { return &c.SOCKS5 }), help: "a SOCKS5 proxy on port 15080 of every pod's loopback"},
	{name: "PREFERED_SERVICE_NAMESPACE", value: text("namespace", func(c *config) *string { return &c.PreferredNamespace }), help: "whose service answers a DNS query for a host name that several namespaces have"},

	// The process.
	{name: "ADMIN_ADDR", def: "localhost:15000", value: listen(func(c *config) *string { return &c.AdminAddr }, false), help: "admin interface, on both loopback addresses for `localhost`; the port also by `proxyAdminPort` of the ProxyConfig"},
	{name: "STATS_ADDR", def: ":15020", value: listen(func(c *config) *string { return &c.StatsAddr }, true), help: "`/metrics`; the port also by `statsPort` of the ProxyConfig"},
	{name: "READINESS_ADDR", def: ":15021", value: listen(func(c *config) *string { return &c.ReadyAddr }, true), help: "`/healthz/ready`"},
	{name: "LOG_FORMAT", def: "plain", value: oneOf(func(c *config) *string { return &c.LogFormat }, "plain", "json"), help: "how lines are written"},
	{name: "RUST_LOG", def: "info", value: text("level, or `scope=level` separated by commas", func(c *config) *string { return &c.LogLevel }), help: "what is logged, for example `info,access=debug`; levels are `off`, `error`, `warn`, `info`, `debug`, `trace`"},
	{name: "AUTHZ_POLICY_INFO_LOGGING", def: "false", value: exactly("true", func(c *config) *bool { return &c.PolicyInfo }), help: "decisions of policy are logged at level info instead of debug"},
	{name: "ZTUNNEL_WORKER_THREADS", instead: "`concurrency` of the ProxyConfig, else the larger of the two below, else a quarter of the CPUs, at least 2", value: shares(func(c *config) *share { return &c.Workers }), help: "threads that work at once; `GOMAXPROCS` wins"},
	{name: "ZTUNNEL_RESOURCE_CPU_LIMIT", value: cpus(func(c *config) *int { return &c.CPULimit }), help: "CPU limit of the container, from `resourceFieldRef`"},
	{name: "ZTUNNEL_RESOURCE_CPU_REQUEST", value: cpus(func(c *config) *int { return &c.CPURequest }), help: "CPU request of the container"},
	{name: "ZTUNNEL_CPU_LIMIT", instead: "the machine's", value: number(func(c *config) *int { return &c.CPUs }, 1, 1<<16), help: "CPUs that percentages are of, when there is no limit"},
	{name: "AMBIT_ACCESS_LOG_PROGRESS", instead: "never", value: length(func(c *config) *time.Duration { return &c.Progress }, 0),
		help: "how often a connection that stays open gets a line in the access log, `connection open` with what it has carried so far; looked at every 10 s"},
	{name: "AMBIT_BACKLOG_LIMIT", instead: "a quarter of the memory limit, 256 MiB without one", value: number(func(c *config) *int64 { return &c.BacklogLimit }, 1, 1<<62-1),
		help: "bytes held for all applications and peers that do not read; above half of it windows shrink, at the whole the largest backlog is reset with `memory_pressure`"},
	{name: "AMBIT_POD_BACKLOG_LIMIT", instead: "a quarter of `AMBIT_BACKLOG_LIMIT`", value: number(func(c *config) *int64 { return &c.Quotas.Backlog }, 1, 1<<62-1), help: "the same for one pod; its largest backlog is reset with `quota_backlog`"},
	{name: "AMBIT_CONNECTION_LIMIT", instead: "descriptors, and half of the memory limit at 16 KiB each", value: number(func(c *config) *int { return &c.Quotas.Connections.Node }, 1, 1<<31-1),
		help: "connections of all pods: a connection counts one for each end in this ztunnel, an HBONE connection four; the last quarter is for all pods in equal parts, beyond it `quota_node_connections`"},
	{name: "AMBIT_POD_CONNECTION_LIMIT", instead: "half of `AMBIT_CONNECTION_LIMIT`", value: number(func(c *config) *int { return &c.Quotas.Connections.Pod }, 1, 1<<31-1), help: "the same for one pod; beyond it connections are reset with `quota_connections`"},
	{name: "AMBIT_POD_HANDSHAKE_RATE", instead: "250 for each core it uses", value: number(func(c *config) *uint32 { return &c.HandshakeRate }, 1, 1<<31-1),
		help: "HBONE handshakes per second that one pod gets, twice as many at once; others wait, and one client that makes more than a quarter of them is refused with `quota_handshakes`"},

	// What other ztunnels have and this one does not.
	{name: "ENABLE_PROXY", anyway: "true", why: "a captured pod must be served; take the pod out of the mesh instead"},
	{name: "PROXY_MODE", anyway: "shared", why: "it serves the pods of a node; a proxy for one workload alone is a waypoint's or a sidecar's work"},
	{name: "PROXY_WORKLOAD_INFO", why: "belongs to `PROXY_MODE=dedicated`"},
	{name: "PACKET_MARK", anyway: "1337", why: "the mark tells ztunnel's own packets from the pod's: node agents, Istio's too, expect 1337"},
	{name: "NETWORK", anyway: "*", why: "the network of a pod comes with its configuration, and is the one that is used"},
	{name: "INPOD_ENABLED", anyway: "true", why: "there is no other mode"},
	{name: "LOCAL_XDS", why: "configuration for tests of a ztunnel without a control plane; all of ours comes over xDS"},
	{name: "LOCAL_XDS_PATH", why: "as `LOCAL_XDS`"},
	{name: "FAKE_CA", anyway: "false", why: "identities that anybody can make are for tests"},
	{name: "KUBERNETES_SERVICE_HOST", anyway: "*", why: "it always runs in Kubernetes"},
	{name: "RUST_BACKTRACE", anyway: "*", why: "`GOTRACEBACK` is that of Go programs"},
}

// read takes the settings out of an environment into c. All that is wrong is in
// the error; what is set and has no effect is in c.warnings.
func (c *config) read(environ map[string]string) error {
	var errs []error
	for _, s := range settings {
		for _, name := range s.in(environ) {
			v, err := environ[name], error(nil)
			switch {
			case s.why != "":
				if s.anyway != "*" && v != s.anyway {
					c.warnings = append(c.warnings, fmt.Sprintf("%s has no effect: %s", name, strings.ReplaceAll(s.why, "`", "")))
				}
			case s.each != nil:
				err = s.each(c, name[len(s.name)-1:], v)
			default:
				err = s.value.read(c, v)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s=%.100q: %w", name, v, err))
			}
		}
	}
	return errors.Join(errs...)
}

// in lists the variables of s that are set; one that is empty is not.
func (s setting) in(environ map[string]string) []string {
	prefix, ok := strings.CutSuffix(s.name, "*")
	if !ok {
		if environ[s.name] == "" {
			return nil
		}
		return []string{s.name}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		if strings.HasPrefix(name, prefix) && len(name) > len(prefix) && environ[name] != "" {
			out = append(out, name)
		}
	}
	return out
}

// readDefaults reads those of the table into c.
func (c *config) readDefaults() error {
	var errs []error
	for _, s := range settings {
		if s.def == "" {
			continue
		}
		if err := s.value.read(c, s.def); err != nil {
			errs = append(errs, fmt.Errorf("default of %s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

// page is docs/reference/ztunnel.md.
func page() string {
	var b strings.Builder
	b.WriteString(`# ztunnel's settings

Environment variables of the container ` + "`istio-proxy`" + `; the names are those of Istio's
ztunnel, ` + "`AMBIT_`" + ` begins our own. A variable that is empty is not set.
All problems are reported at once at the start, and ` + "`ambit-ztunnel --check`" + ` only
checks. ` + "`ambit-ztunnel help`" + ` prints this page.

| Variable | Default | Values | Meaning |
|---|---|---|---|
`)
	for _, s := range settings {
		if s.why == "" {
			def := s.instead
			if s.def != "" {
				def = "`" + s.def + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.name, def, s.value.domain, s.help)
		}
	}
	b.WriteString(`
## Settings of Istio's ztunnel that have no effect

Whoever sets one of these is told so in one warning at the start. A value that
says what is so anyway needs no warning.

| Variable | No warning for | Why |
|---|---|---|
`)
	for _, s := range settings {
		if s.why != "" {
			anyway := "`" + s.anyway + "`"
			switch s.anyway {
			case "":
				anyway = ""
			case "*":
				anyway = "any value"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.name, anyway, s.why)
		}
	}
	return b.String()
}
