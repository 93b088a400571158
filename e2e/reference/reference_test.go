package main

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/ztunnel/live"
)

const root = "../.."

// sources returns the text of the non-test Go files below folders.
func sources(t *testing.T, folders ...string) string {
	t.Helper()
	var b strings.Builder
	for _, f := range folders {
		err := filepath.WalkDir(filepath.Join(root, f), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			b.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func page(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "docs", "reference", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// set collects the first group of every match.
func set(re, text string) map[string]bool {
	m := map[string]bool{}
	for _, s := range regexp.MustCompile(re).FindAllStringSubmatch(text, -1) {
		m[s[1]] = true
	}
	return m
}

func same(t *testing.T, page string, code, docs map[string]bool) {
	t.Helper()
	if len(code) == 0 {
		t.Fatal("found nothing in the code: is the pattern right?")
	}
	for _, k := range slices.Sorted(maps.Keys(code)) {
		if !docs[k] {
			t.Errorf("%s does not mention %s", page, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(docs)) {
		if !code[k] {
			t.Errorf("%s mentions %s, which the code does not have", page, k)
		}
	}
}

func TestReasonsPage(t *testing.T) {
	if page(t, "reasons.md") != reasonsPage() {
		t.Error("docs/reference/reasons.md is not what the code says: make generate")
	}
}

// TestTroubleshootingNamesReasons: a reason or a metric that does not exist is
// searched for in vain, at the worst moment.
func TestTroubleshootingNamesReasons(t *testing.T) {
	known := set(metricRow, page(t, "metrics.md"))
	for _, m := range live.Reasons() {
		known[string(m.Reason)] = true
	}
	text := page(t, "../troubleshooting.md")
	named := set("`([a-z]+(?:_[a-z]+)+)`", text)
	if len(named) == 0 {
		t.Fatal("no reasons found: is the pattern right?")
	}
	for _, r := range slices.Sorted(maps.Keys(named)) {
		if !known[r] && !strings.HasPrefix(r, "process_") { // those every program has
			t.Errorf("docs/troubleshooting.md names reason or metric %s, which does not exist", r)
		}
	}
}

// metricRow finds the metrics of the page, with labels or without.
const metricRow = "(?m)^\\| `([a-z0-9_]+)[`{]"

func TestMetricsPage(t *testing.T) {
	code := set(`"((?:ambit|istio|pilot|citadel|workload_manager)_[a-z0-9_]+[a-z0-9])"`, sources(t, "cmd", "ztunnel", "controller", "cni", "hbone"))
	delete(code, "istio_converted_static_strict") // the name of a policy
	for name := range set(`(?:counter|gauge)\("([a-z_]+)"`, sources(t, "controller/ca")) {
		code["citadel_server_"+name] = true
	}
	same(t, "metrics.md", code, set(metricRow, page(t, "metrics.md")))
}

// documented are the metrics that Istio's ztunnel is documented to have; those of
// its runtime are left out.
const documented = `istio_build istio_tcp_connections_opened_total istio_tcp_connections_closed_total istio_tcp_received_bytes_total
istio_tcp_sent_bytes_total istio_tcp_connections_failed_total istio_tcp_sockets_open istio_on_demand_dns_total istio_dns_requests_total istio_dns_upstream_requests_total istio_dns_upstream_failures_total
istio_dns_upstream_request_duration_seconds istio_xds_connection_terminations_total istio_xds_message_total istio_xds_message_bytes_total
workload_manager_active_proxy_count workload_manager_pending_proxy_count workload_manager_proxies_started_total workload_manager_proxies_stopped_total
pilot_xds pilot_xds_pushes pilot_xds_push_time pilot_proxy_convergence_time pilot_proxy_queue_time pilot_push_triggers pilot_debounce_time
pilot_pushcontext_init_seconds pilot_xds_config_size_bytes pilot_services pilot_inbound_updates pilot_total_xds_rejects
pilot_total_xds_internal_errors pilot_k8s_reg_events pilot_k8s_cfg_events`

// TestDocumentedMetrics: every metric that dashboards ask for is there and described.
//
//ambit:feature telemetry-metrics
func TestDocumentedMetrics(t *testing.T) {
	have := set(metricRow, page(t, "metrics.md"))
	for name := range strings.FieldsSeq(documented) {
		if !have[name] {
			t.Errorf("metrics.md has no %s", name)
		}
	}
}
