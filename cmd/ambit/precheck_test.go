package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/ambitmesh/ambit/controller/diagnose"
)

func TestPrintCheckup(t *testing.T) {
	r := checkup{Counts: map[diagnose.Level]int{diagnose.Error: 1, diagnose.Info: 2}, Findings: []diagnose.Finding{
		{Level: diagnose.Error, Check: "nodes", Object: "nodes a, b", What: "too old", Do: "use newer ones"}}}
	var table, raw, text bytes.Buffer
	for output, b := range map[string]*bytes.Buffer{"table": &table, "json": &raw, "yaml": &text} {
		if err := printCheckup(b, output, r); err != nil {
			t.Fatal(err)
		}
	}
	if s := table.String(); !strings.Contains(s, "error  nodes  nodes a, b  too old\n") || !strings.Contains(s, "> use newer ones\n") ||
		!strings.HasSuffix(s, "Ambit would not work as it should here. 1 error, 0 warnings.\n") {
		t.Error(s)
	}
	var a, b checkup
	if err := json.Unmarshal(raw.Bytes(), &a); err != nil || a.OK || len(a.Findings) != 1 {
		t.Error(err, raw.String())
	}
	if err := yaml.Unmarshal(text.Bytes(), &b); err != nil || !slices.Equal(a.Findings, b.Findings) {
		t.Error(err, text.String())
	}
	r = checkup{OK: true, Counts: map[diagnose.Level]int{diagnose.Warning: 1}}
	table.Reset()
	if err := printCheckup(&table, "table", r); err != nil || !strings.Contains(table.String(), "Nothing here keeps Ambit from working. 0 errors, 1 warning.") {
		t.Error(err, table.String())
	}
}

func TestDefinition(t *testing.T) {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"versions": []any{
		map[string]any{"name": "v1", "served": true, "subresources": map[string]any{"status": map[string]any{}}},
		map[string]any{"name": "v1beta1", "served": true},
		map[string]any{"name": "v1alpha1", "served": false},
		"nonsense",
	}}}}
	o.SetName("x.example.com")
	o.SetAnnotations(map[string]string{"gateway.networking.k8s.io/bundle-version": "v1.2.3", "gateway.networking.k8s.io/channel": "standard"})
	o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "helm"}, {Manager: ourManager}, {Manager: "kube-apiserver", Subresource: "status"}})
	d := definition(o)
	if d.Name != "x.example.com" || !slices.Equal(d.Served, []string{"v1", "v1beta1"}) || !d.Status ||
		d.BundleVersion != "v1.2.3" || d.Channel != "standard" || d.ManagedByOther != "helm" {
		t.Errorf("%+v", d)
	}
	if d := definition(&unstructured.Unstructured{Object: map[string]any{}}); d.Status || d.Served != nil {
		t.Errorf("of nothing: %+v", d)
	}
}

// TestPrecheckWithoutAnAnswer: an API server that forbids everything is
// something to say, one that is broken or away is "do not know".
func TestPrecheckWithoutAnAnswer(t *testing.T) {
	for _, c := range []struct {
		name string
		code int // of the API server, for all but the version
		want int
		says string
	}{
		{"forbidden", http.StatusForbidden, exitHealthy, "could not ask: nodes: this account may not"},
		{"broken", http.StatusInternalServerError, exitUnknown, "which APIs are served"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				if r.URL.Path == "/version" {
					_, _ = w.Write([]byte(`{"gitVersion":"v1.33.0"}`))
					return
				}
				w.WriteHeader(c.code)
				reason := metav1.StatusReasonForbidden
				if c.code != http.StatusForbidden {
					reason = metav1.StatusReasonInternalError
				}
				_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(c.code), Reason: reason})
			}))
			defer s.Close()
			config := filepath.Join(t.TempDir(), "kubeconfig")
			text := `{"apiVersion":"v1","kind":"Config","current-context":"x","clusters":[{"name":"x","cluster":{"server":"` + s.URL + `"}}],"contexts":[{"name":"x","context":{"cluster":"x"}}]}`
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			if got := run(context.Background(), []string{"precheck", "--kubeconfig", config}, &out, &errs); got != c.want {
				t.Errorf("exit code %d, want %d", got, c.want)
			}
			if all := out.String() + errs.String(); !strings.Contains(all, c.says) || strings.Contains(all, "Nothing here keeps") {
				t.Error(all)
			}
		})
	}
	var out, errs bytes.Buffer
	if code := run(context.Background(), []string{"precheck", "-o", "xml"}, &out, &errs); code != exitUnknown {
		t.Errorf("bad -o: code %d", code)
	}
}
