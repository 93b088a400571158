package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
)

//ambit:feature identity-root-stalled identity-ca-away
func TestJudgeCA(t *testing.T) {
	until := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name           string
		s              *caStatus
		problems, note string
	}{
		{"unknown", nil, "", ""},
		{"settled", &caStatus{Phase: "settled"}, "", ""},
		{"damaged", &caStatus{Phase: "settled", Problem: "secret a/b: key c: no"}, "secret a/b: key c: no", ""},
		{"waiting", &caStatus{Phase: caDistributing, Next: &caNext{Waiting: []string{"ztunnel z on n"}}}, "", "waiting for ztunnel z on n"},
		{"stalled", &caStatus{Phase: caStalled, Next: &caNext{Waiting: []string{"1", "2", "3", "4", "5", "6", "7"}}}, "waiting for 1, 2, 3, 4, 5 and 2 more: ambit ca status", ""},
		{"retiring", &caStatus{Phase: caRetiring, Retired: []caRetired{{Until: until}, {Until: until.Add(-time.Hour)}}}, "", "2026-05-01T12:00:00Z"},
	} {
		f := sound()
		f.CA = c.s
		r := judge(f)
		if got := strings.Join(r.Problems, "\n"); r.Healthy != (c.problems == "") || !strings.Contains(got, c.problems) {
			t.Errorf("%s: healthy %t, problems %q, want %q", c.name, r.Healthy, got, c.problems)
		}
		if got := strings.Join(r.Notes, "\n"); (got == "") != (c.note == "") || !strings.Contains(got, c.note) {
			t.Errorf("%s: notes %q, want %q", c.name, got, c.note)
		}
	}
	f := sound()
	f.Components[2].Overdue = 3
	if r := judge(f); !r.Healthy || !slices.ContainsFunc(r.Notes, func(n string) bool {
		return strings.HasPrefix(n, "3 certificates could not be had or renewed, on node1")
	}) {
		t.Errorf("healthy %t, notes %q", r.Healthy, r.Notes)
	}
}

func TestPrintCA(t *testing.T) {
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	var b bytes.Buffer
	err := printCA(&b, caStatus{Phase: caStalled, Source: "ambit-ca-secret", Signer: "aa", Roots: "bb", Expires: at, Problem: "p",
		Next:    &caNext{Source: "cacerts", Signer: "cc", Began: at, Deadline: at, Waiting: []string{"node n"}, Without: []string{"node m"}},
		Retired: []caRetired{{"7f", at}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"stalled", "aa of Secret ambit-ca-secret", "cc of Secret cacerts", "waiting for       node n", "not waiting for   node m", "7f, trusted until 2026-05-01T12:00:00Z", "problem           p"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}

func TestNumber(t *testing.T) {
	const text = "# HELP a b\nambit_certificates 5\nambit_certificates_overdue 2.0\n"
	if got := number(text, "ambit_certificates_overdue"); got != 2 {
		t.Errorf("got %v", got)
	}
	if got := number(text, "missing"); got != 0 {
		t.Errorf("got %v", got)
	}
}

// TestRetireNeedsForce: what breaks connections is not done by a slip.
//
//ambit:feature identity-root-cli
func TestRetireNeedsForce(t *testing.T) {
	var out, err bytes.Buffer
	if code := run(t.Context(), []string{"ca", "retire", "--kubeconfig", "/nonexistent"}, &out, &err); code != exitUnknown || !strings.Contains(err.String(), "--force") {
		t.Errorf("code %d: %s", code, &err)
	}
}
