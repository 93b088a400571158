package main

import (
	"os"
	"strings"
	"testing"
)

// documented are the variables that Istio's ztunnel is documented to read.
const documented = `ENABLE_PROXY PROXY_MODE PROXY_WORKLOAD_INFO PACKET_MARK INPOD_UDS INPOD_PORT_REUSE ENABLE_ORIG_SRC IPV6_ENABLED NETWORK NODE_NAME
CLUSTER_ID ISTIO_META_CLUSTER_ID CLUSTER_DOMAIN TRUST_DOMAIN POD_NAME POD_NAMESPACE SERVICE_ACCOUNT INSTANCE_IP
XDS_ADDRESS XDS_ROOT_CA ALT_XDS_HOSTNAME XDS_HEADER_* XDS_ON_DEMAND LOCAL_XDS_PATH LOCAL_XDS CA_ADDRESS CA_ROOT_CA ALT_CA_HOSTNAME CA_HEADER_*
FAKE_CA AUTH_TOKEN SECRET_TTL CRL_PATH PREFERED_SERVICE_NAMESPACE POOL_MAX_STREAMS_PER_CONNECTION POOL_UNUSED_RELEASE_TIMEOUT
HTTP2_STREAM_WINDOW_SIZE HTTP2_CONNECTION_WINDOW_SIZE HTTP2_FRAME_SIZE KEEPALIVE_ENABLED KEEPALIVE_TIME KEEPALIVE_INTERVAL KEEPALIVE_RETRIES
USER_TIMEOUT_ENABLED CONNECTION_TERMINATION_DEADLINE TERMINATION_GRACE_PERIOD_SECONDS UNSTABLE_ENABLE_SOCKS5 LOCALHOST_APP_TUNNEL
ENABLE_RESPONSE_BAGGAGE AUTHZ_POLICY_INFO_LOGGING TLS12_ENABLED COMPLIANCE_POLICY ZTUNNEL_WORKER_THREADS ZTUNNEL_RESOURCE_CPU_LIMIT
ZTUNNEL_RESOURCE_CPU_REQUEST ZTUNNEL_CPU_LIMIT RUST_LOG LOG_FORMAT PROXY_CONFIG ISTIO_META_* ISTIO_METAJSON_* KUBERNETES_SERVICE_HOST`

// TestSettings: every documented variable has its row, and every row is whole.
//
//ambit:feature config-settings
func TestSettings(t *testing.T) {
	rows := map[string]bool{}
	for _, s := range settings {
		if rows[s.name] {
			t.Errorf("%s has two rows", s.name)
		}
		rows[s.name] = true
		prefix := strings.HasSuffix(s.name, "*")
		switch {
		case s.why != "":
			if s.value.read != nil || s.each != nil || s.help != "" || s.def != "" {
				t.Errorf("%s has no effect and a meaning", s.name)
			}
		case s.help == "" || prefix != (s.each != nil) || prefix == (s.value.read != nil):
			t.Errorf("%s: no help, or not one way to read it", s.name)
		case s.def != "" && s.instead != "":
			t.Errorf("%s has two defaults", s.name)
		}
	}
	for name := range strings.FieldsSeq(documented) {
		if !rows[name] {
			t.Errorf("%s has no row", name)
		}
	}
}

func TestSettingsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/reference/ztunnel.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, text, _ := strings.Cut(string(b), "\n\n"); text != page() {
		t.Error("docs/reference/ztunnel.md is not what the code says: make generate")
	}
}

// TestSettingsWithoutEffect: what is set and does nothing is named once.
//
//ambit:feature config-no-effect
func TestSettingsWithoutEffect(t *testing.T) {
	for _, s := range settings {
		if s.why == "" {
			continue
		}
		if c := readConfig(env(s.name, s.anyway), nofile); len(c.warnings) > 0 {
			t.Errorf("%s=%s: %q", s.name, s.anyway, c.warnings)
		}
		c := readConfig(env(s.name, "something"), nofile)
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		if s.anyway != "*" && (len(c.warnings) != 1 || !strings.HasPrefix(c.warnings[0], s.name+" has no effect: ")) {
			t.Errorf("%s: %q", s.name, c.warnings)
		}
	}
	if c := readConfig(env("ISTIO_METAJSON_X", "{"), nofile); len(c.warnings) != 1 || c.Validate() != nil || len(c.MetaJSON) > 0 {
		t.Errorf("%q %v", c.warnings, c.MetaJSON)
	}
}

// TestSettingsRange: what is out of range or no value at all is an error that
// names the variable, and a value in range is none.
//
//ambit:feature config-checked
func TestSettingsRange(t *testing.T) {
	for name, tt := range map[string]struct{ good, bad string }{
		"KEEPALIVE_ENABLED":                {"true false", "yes 1 TRUE"},
		"ENABLE_ORIG_SRC":                  {"true false", "maybe"},
		"KEEPALIVE_RETRIES":                {"1 127", "0 128 -1 nine"},
		"KEEPALIVE_TIME":                   {"1s 30m", "0s -5s 10 24h"},
		"SECRET_TTL":                       {"1m 24h", "25h 1d forever"},
		"HTTP2_FRAME_SIZE":                 {"1 16777215", "0 16777216 -1"},
		"TERMINATION_GRACE_PERIOD_SECONDS": {"1 30", "0 -1 30s"},
		"LOG_FORMAT":                       {"plain json", "xml"},
		"COMPLIANCE_POLICY":                {"pqc fips-140-2", "fips"},
		"STATS_ADDR":                       {":0 0.0.0.0:15020 [::]:1", "15020 :http :70000"},
		"ADMIN_ADDR":                       {"localhost:1 127.0.0.1:0 [::1]:15000", ":15000 0.0.0.0:15000 example.com:1"},
		"XDS_ADDRESS":                      {"a:1 https://a:1 http://[::1]:1", "a ftp://a:1 https://a"},
		"ZTUNNEL_WORKER_THREADS":           {"0 4 1% 100%", "-1 0% 101% many"},
		"ZTUNNEL_RESOURCE_CPU_LIMIT":       {"2 1.5 500m", "0 -1 m 1e99 NaN"},
		"ZTUNNEL_CPU_LIMIT":                {"1 64", "0 1.5"},
		"PROXY_CONFIG":                     {"{} concurrency:_2", "[ proxyAdminPort:_70000 discoveryAddress:_nowhere"},
	} {
		for v := range strings.FieldsSeq(tt.good) {
			if err := readConfig(env(name, strings.ReplaceAll(v, "_", " ")), nofile).Validate(); err != nil {
				t.Errorf("%s=%s: %v", name, v, err)
			}
		}
		for v := range strings.FieldsSeq(tt.bad) {
			if err := readConfig(env(name, strings.ReplaceAll(v, "_", " ")), nofile).Validate(); err == nil || !strings.HasPrefix(err.Error(), name+"=") {
				t.Errorf("%s=%s: %v", name, v, err)
			}
		}
	}
}

// TestProxyConfig: later wins: the file, the variable, the variables of their own.
//
//ambit:feature config-proxyconfig
func TestProxyConfig(t *testing.T) {
	file := func(string) ([]byte, error) {
		return []byte("defaultConfig:\n  discoveryAddress: file:1\n  statsPort: 1\n  concurrency: 7\n  proxyMetadata: {ISTIO_META_A: file, B: file, C: file}\nextensionProviders: []\n"), nil
	}
	c := readConfig(env("PROXY_CONFIG", `{"discoveryAddress":"variable:1","proxyAdminPort":2,"proxyMetadata":{"B":"variable","DNS_CAPTURE":"false"}}`,
		"ISTIO_META_C", "own", "ISTIO_METAJSON_D", `{"x":[1]}`), file)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	meta := c.metadata("v")
	if c.XDSAddress != "variable:1" || c.CAAddress != "variable:1" || c.StatsAddr != ":1" || c.AdminAddr != "localhost:2" || workers(c, 64) != 7 ||
		meta["A"] != "file" || meta["B"] != "variable" || meta["C"] != "own" || c.dnsCapture() {
		t.Errorf("%+v %v", c, meta)
	}
	c = readConfig(env("PROXY_CONFIG", "discoveryAddress: variable:1", "XDS_ADDRESS", "own:1", "STATS_ADDR", ":9"), file)
	if c.XDSAddress != "own:1" || c.StatsAddr != ":9" || !c.dnsCapture() {
		t.Errorf("%+v", c)
	}
	if err := readConfig(env(), func(string) ([]byte, error) { return []byte("defaultConfig: 1"), nil }).Validate(); err == nil || !strings.Contains(err.Error(), meshFile) {
		t.Errorf("bad file: %v", err)
	}
}

//ambit:feature config-threads
func TestWorkers(t *testing.T) {
	for _, tt := range []struct {
		env  []string
		want int // of 16 CPUs
	}{
		{nil, 4},
		{[]string{"ZTUNNEL_CPU_LIMIT", "40"}, 10},
		{[]string{"ZTUNNEL_CPU_LIMIT", "2"}, 2},
		{[]string{"ZTUNNEL_RESOURCE_CPU_REQUEST", "5500m"}, 6},
		{[]string{"ZTUNNEL_RESOURCE_CPU_LIMIT", "500m"}, 1},
		{[]string{"ZTUNNEL_RESOURCE_CPU_LIMIT", "2", "ZTUNNEL_RESOURCE_CPU_REQUEST", "1"}, 2},
		{[]string{"PROXY_CONFIG", "concurrency: 3"}, 3},
		{[]string{"PROXY_CONFIG", "concurrency: 0"}, 16},
		{[]string{"PROXY_CONFIG", "concurrency: 3", "ZTUNNEL_WORKER_THREADS", "5"}, 5},
		{[]string{"ZTUNNEL_WORKER_THREADS", "0"}, 16},
		{[]string{"ZTUNNEL_WORKER_THREADS", "10%"}, 2},
		{[]string{"ZTUNNEL_WORKER_THREADS", "1%"}, 1},
		{[]string{"ZTUNNEL_WORKER_THREADS", "50%", "ZTUNNEL_RESOURCE_CPU_LIMIT", "3"}, 2},
	} {
		if got := workers(readConfig(env(tt.env...), nofile), 16); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.env, got, tt.want)
		}
	}
}
