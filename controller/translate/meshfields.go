package translate

// MeshField is one field of the mesh's settings and what becomes of it.
type MeshField struct {
	Name   string
	Effect string // "": none on pods without a sidecar
	Why    string // without an effect: why that is so
}

// Reasons why a field has no effect.
const (
	ofWaypoints = "concerns HTTP and what waypoints do, which this release has not"
	ofSidecars  = "concerns sidecars or their injection"
	ofIngress   = "concerns Istio's ingress controller"
	ofClusters  = "concerns meshes of several clusters"
	ofRouters   = "concerns VirtualServices and DestinationRules, which are not read at L4"
)

// MeshFields are all fields of Istio's MeshConfig.
func MeshFields() []MeshField {
	return []MeshField{
		{Name: "trustDomain", Effect: "The trust domain of every identity, unless the controller is given `--trust-domain`. Read when the controller starts; a change while it runs is logged and takes effect at its next start, because every identity would change."},
		{Name: "trustDomainAliases", Effect: "Identities of these trust domains count as those of the mesh's own: in policies, and when peers are verified."},
		{Name: "rootNamespace", Effect: "Checked only: the controller's `--root-namespace` counts, because this ConfigMap is found by it. A difference is logged."},
		{Name: "outboundTrafficPolicy", Effect: "`mode: REGISTRY_ONLY` refuses connections to addresses that the mesh does not know. `AMBIT_OUTBOUND_TRAFFIC_POLICY` of ztunnel goes before it. `tls` has no effect."},
		{Name: "defaultServiceExportTo", Effect: "Who sees a ServiceEntry that does not say `exportTo`: `.` its own namespace, `*` all, `~` nobody."},
		{Name: "serviceEntryVisibility", Effect: "How far ServiceEntries are seen at most: the first of `policies` whose rules all match the namespace, else `defaultVisibility`. `applyToSidecars` has no effect."},
		{Name: "discoverySelectors", Effect: "Only namespaces that one of these picks are looked at, and always the root namespace. What is in others is to the mesh as if it were not in the cluster."},

		{Name: "accessLogEncoding", Why: "ztunnel's access log is set by its own environment"},
		{Name: "accessLogFile", Why: "ztunnel's access log is set by its own environment"},
		{Name: "accessLogFormat", Why: "ztunnel's access log is set by its own environment"},
		{Name: "ca", Why: "certificates are signed by Ambit's own CA"},
		{Name: "caCertificates", Why: "the roots of the mesh are those of Ambit's CA; see certificates.md"},
		{Name: "certificates", Why: "has been without effect in Istio for long"},
		{Name: "configSources", Why: "configuration is read from the API server"},
		{Name: "connectTimeout", Why: ofWaypoints},
		{Name: "defaultConfig", Why: ofSidecars},
		{Name: "defaultDestinationRuleExportTo", Why: ofRouters},
		{Name: "defaultHttpRetryPolicy", Why: ofWaypoints},
		{Name: "defaultProviders", Why: ofWaypoints},
		{Name: "defaultTrafficPolicy", Why: ofRouters},
		{Name: "defaultVirtualServiceExportTo", Why: ofRouters},
		{Name: "disableEnvoyListenerLog", Why: ofSidecars},
		{Name: "dnsRefreshRate", Why: "host names are looked up when a connection needs them"},
		{Name: "enableAutoMtls", Why: "between captured pods mutual TLS is not an option"},
		{Name: "enableEnvoyAccessLogService", Why: ofSidecars},
		{Name: "enablePrometheusMerge", Why: ofSidecars},
		{Name: "enableTracing", Why: ofWaypoints},
		{Name: "extensionProviders", Why: ofWaypoints},
		{Name: "h2UpgradePolicy", Why: ofRouters},
		{Name: "hboneIdleTimeout", Why: "idle tunnels are closed by ztunnel's `POOL_UNUSED_RELEASE_TIMEOUT`"},
		{Name: "inboundClusterStatName", Why: ofSidecars},
		{Name: "inboundTrafficPolicy", Why: ofSidecars},
		{Name: "ingressClass", Why: ofIngress},
		{Name: "ingressControllerMode", Why: ofIngress},
		{Name: "ingressSelector", Why: ofIngress},
		{Name: "ingressService", Why: ofIngress},
		{Name: "localityLbSetting", Why: "locality is a matter of each Service: `trafficDistribution`"},
		{Name: "meshMTLS", Why: "tunnels are TLS 1.3 and nothing older"},
		{Name: "outboundClusterStatName", Why: ofSidecars},
		{Name: "pathNormalization", Why: ofWaypoints},
		{Name: "protocolDetectionTimeout", Why: ofSidecars},
		{Name: "proxyHttpPort", Why: ofSidecars},
		{Name: "proxyInboundListenPort", Why: ofSidecars},
		{Name: "proxyListenPort", Why: ofSidecars},
		{Name: "serviceScopeConfigs", Why: ofClusters},
		{Name: "serviceSettings", Why: ofClusters},
		{Name: "tcpKeepalive", Why: "ztunnel's `KEEPALIVE_*` set it for tunnels"},
		{Name: "tlsDefaults", Why: "tunnels are TLS 1.3 and nothing older"},
		{Name: "verifyCertificateAtClient", Why: ofRouters},
		{Name: "zoneAwareLbSetting", Why: "locality is a matter of each Service: `trafficDistribution`"},
	}
}
