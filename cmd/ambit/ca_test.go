package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

//ambit:feature identity-root-stalled identity-ca-away
func TestJudgeCA(t *testing.T) {
	until := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name           string
		s              *rotation.Status
		problems, note string
	}{
		{"unknown", nil, "", ""},
		{"settled", &rotation.Status{Phase: "settled"}, "", ""},
		{"damaged", &rotation.Status{Phase: "settled", Problem: "secret a/b: key c: no"}, "secret a/b: key c: no", ""},
		{"waiting", &rotation.Status{Phase: rotation.PhaseDistributing, Next: &rotation.Next{Waiting: []string{"ztunnel z on n"}}}, "", "waiting for ztunnel z on n"},
		{"stalled", &rotation.Status{Phase: rotation.PhaseStalled, Next: &rotation.Next{Waiting: []string{"1", "2", "3", "4", "5", "6", "7"}}}, "waiting for 1, 2, 3, 4, 5 and 2 more: ambit ca status", ""},
		{"retiring", &rotation.Status{Phase: rotation.PhaseRetiring, Retired: []rotation.Retired{{Until: until}, {Until: until.Add(-time.Hour)}}}, "", "2026-05-01T12:00:00Z"},
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
	err := printCA(&b, rotation.Status{Phase: rotation.PhaseStalled, Source: "ambit-ca-secret", Signer: "aa", Roots: "bb", Expires: at, Problem: "p",
		Next:    &rotation.Next{Source: "cacerts", Signer: "cc", Began: at, Deadline: at, Waiting: []string{"node n"}, Without: []string{"node m"}},
		Retired: []rotation.Retired{{Serial: "7f", Until: at}}})
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

// TestRotateWaits: the exit code says whether the new key signs, by whatever way
// the change ended.
//
//ambit:feature identity-root-cli
func TestRotateWaits(t *testing.T) {
	under := func(phase, signer string) rotation.Status {
		s := rotation.Status{Phase: phase, Signer: signer, Next: &rotation.Next{Signer: "new", Waiting: []string{"node n"}}}
		if phase != rotation.PhaseDistributing && phase != rotation.PhaseStalled {
			s.Next = nil
		}
		return s
	}
	for _, c := range []struct {
		name    string
		answer  rotation.Status   // to the command
		then    []rotation.Status // what follows it; the last stays
		forbids bool              // to read the status
		want    int
		says    string
	}{
		{"done", under(rotation.PhaseDistributing, "old"), []rotation.Status{under(rotation.PhaseDistributing, "old"), under(rotation.PhaseRetiring, "new")}, false, exitHealthy, "waiting for node n"},
		{"done at once", under(rotation.PhaseRetiring, "new"), nil, false, exitHealthy, rotation.PhaseRetiring},
		{"stalled", under(rotation.PhaseDistributing, "old"), []rotation.Status{under(rotation.PhaseStalled, "old")}, false, exitUnhealthy, rotation.PhaseStalled},
		{"taken back by somebody else", under(rotation.PhaseDistributing, "old"), []rotation.Status{under("settled", "old")}, false, exitUnhealthy, "given up: old signs, and not new"},
		{"refused", rotation.Status{Command: &rotation.Answer{Refused: "plugged in"}}, nil, false, exitUnhealthy, "refused: plugged in"},
		{"may not read the answer", rotation.Status{}, nil, true, exitUnknown, "ambit-system/ambit-ca-rotation"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			id, commands, shown := "", 0, -1
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				w.Header().Set("Content-Type", "application/json")
				switch {
				case r.Method == http.MethodPatch:
					var patch struct {
						Metadata struct{ Annotations map[string]string }
					}
					var cmd struct{ ID, Verb string }
					body, _ := io.ReadAll(r.Body)
					if err := json.Unmarshal(body, &patch); err != nil {
						t.Error(err)
					}
					if err := json.Unmarshal([]byte(patch.Metadata.Annotations[rotation.CommandAnnotation]), &cmd); err != nil || cmd.Verb != "rotate" || !strings.HasSuffix(r.URL.Path, "/ambit-system/secrets/ambit-ca-state") {
						t.Errorf("%s: %s, %v", r.URL.Path, body, err)
					}
					id = cmd.ID
					commands++
					_, _ = w.Write([]byte(`{"apiVersion":"v1","kind":"Secret"}`))
				case c.forbids:
					w.WriteHeader(http.StatusForbidden)
					_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: 403, Reason: metav1.StatusReasonForbidden})
				default:
					now := rotation.Status{Phase: "settled", Signer: "old"}
					if id != "" {
						if now = c.answer; shown >= 0 && len(c.then) > 0 {
							now = c.then[min(shown, len(c.then)-1)]
						}
						shown++
						answer := rotation.Answer{ID: id}
						if c.answer.Command != nil {
							answer.Refused = c.answer.Command.Refused
						}
						now.Command = &answer
					}
					text, _ := json.Marshal(now)
					_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]string{"status": string(text)}})
				}
			}))
			defer s.Close()
			config := filepath.Join(t.TempDir(), "kubeconfig")
			text := `{"apiVersion":"v1","kind":"Config","current-context":"x","clusters":[{"name":"x","cluster":{"server":"` + s.URL + `"}}],"contexts":[{"name":"x","context":{"cluster":"x"}}]}`
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			if got := run(t.Context(), []string{"ca", "rotate", "--wait", "--kubeconfig", config}, &out, &errs); got != c.want {
				t.Errorf("exit code %d, want %d", got, c.want)
			}
			if all := out.String() + errs.String(); !strings.Contains(all, c.says) {
				t.Errorf("no %q in %s", c.says, all)
			}
			if c.forbids != (commands == 0) || commands > 1 {
				t.Errorf("%d commands were given", commands)
			}
		})
	}
}
