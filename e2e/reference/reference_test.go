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
