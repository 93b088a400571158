package kube

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"istio.io/api/meta/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// A new holder of the Lease takes back what an earlier one left, and nothing
// that is another control plane's: the conditions have the same names.
func TestStaleBindings(t *testing.T) {
	rev := func(name string) map[string]string {
		if name == "" {
			return nil
		}
		return map[string]string{translate.RevisionLabel: name}
	}
	for _, c := range []struct {
		name     string
		beside   bool
		revision string
		want     []string // namespace and revision
	}{
		{"alone", false, "", []string{"ours/", "ours/default", "theirs/", "theirs/default"}},
		{"alone, of a revision", false, "ambit", []string{"ours/", "ours/ambit", "theirs/", "theirs/ambit"}},
		{"beside another", true, "ambit", []string{"ours/ambit", "theirs/ambit"}},
	} {
		tr := newBench(t)
		tr.cfg.Translate.Beside, tr.cfg.Translate.Revision = c.beside, c.revision
		b := newBindings(tr.cfg, tr.caches, tr.metrics)
		tr.put(kindNamespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ours", Labels: rev("ambit")}})
		tr.put(kindNamespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}})
		for _, ns := range []string{"ours", "theirs"} {
			for _, r := range []string{"", "ambit", "default"} {
				meta := metav1.ObjectMeta{Namespace: ns, Name: "r" + r, Labels: rev(r)}
				bound := []*v1alpha1.IstioCondition{{Type: translate.ConditionWaypointBound, Status: "True"}}
				se := &networkingv1.ServiceEntry{ObjectMeta: meta}
				se.Status.Conditions = bound
				tr.put(kindServiceEntry, se)
				we := &networkingv1.WorkloadEntry{ObjectMeta: meta}
				we.Status.Conditions = bound
				tr.put(kindWorkloadEntry, we)
				tr.put(kindService, &corev1.Service{ObjectMeta: meta, Status: corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: translate.ConditionWaypointBound}}}})
				bare := metav1.ObjectMeta{Namespace: ns, Name: "bare" + r, Labels: rev(r)}
				tr.put(kindServiceEntry, &networkingv1.ServiceEntry{ObjectMeta: bare})
			}
		}
		got := map[kind][]string{}
		for _, k := range b.stale() {
			got[k.kind] = append(got[k.kind], k.namespace+"/"+k.name[1:])
		}
		for _, k := range []kind{kindService, kindServiceEntry, kindWorkloadEntry} {
			if slices.Sort(got[k]); !slices.Equal(got[k], c.want) {
				t.Errorf("%s: %s %q, want %q", c.name, k, got[k], c.want)
			}
		}
	}
}

// patched is an API server for the status of one Service: it keeps the patches
// and answers each by answer.
type patched struct {
	sent   []string // content type and body; read between requests
	answer func(contentType string) (code int, body any)
}

func (p *patched) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	contentType := r.Header.Get("Content-Type")
	p.sent = append(p.sent, contentType+" "+string(body))
	code, out := p.answer(contentType)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(out)
}

// newPatched returns the server, bindings that write to it, and what they say.
func newPatched(t *testing.T, tr *translator, answer func(string) (int, any)) (*patched, *bindings, *strings.Builder) {
	t.Helper()
	p := &patched{answer: answer}
	h := httptest.NewServer(p)
	t.Cleanup(h.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: h.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	log := &strings.Builder{}
	tr.cfg.Client, tr.cfg.Logger = client, slog.New(slog.NewTextHandler(log, nil))
	return p, newBindings(tr.cfg, tr.caches, tr.metrics), log
}

// Beside another control plane that has the condition, we ask once, not at each
// of the Service's events: again for another Service of the name, for other
// conditions, and in another term.
func TestRefusedBinding(t *testing.T) {
	tr := newBench(t)
	tr.cfg.Translate.Beside, tr.cfg.Translate.Revision = true, "ambit"
	p, b, log := newPatched(t, tr, func(string) (int, any) {
		return http.StatusConflict, metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonConflict, Code: http.StatusConflict}
	})
	k := key{kindService, "ours", "web"}
	mine := map[string]string{translate.RevisionLabel: "ambit"}
	step := func(what string, requests int) {
		t.Helper()
		p.sent = nil
		for range 3 {
			b.do(t.Context(), k)
		}
		if len(p.sent) != requests {
			t.Errorf("%s: %d requests, want %d", what, len(p.sent), requests)
		}
	}
	version := func(uid types.UID, generation int64) {
		tr.put(kindService, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ours", Name: "web", UID: uid, Generation: generation, Labels: mine}})
	}
	version("one", 1)
	b.want(k, []translate.Condition{{Type: translate.ConditionWaypointBound, True: true}})
	step("at first", 1)
	version("one", 2)
	step("after an event", 0)
	b.want(k, []translate.Condition{{Type: translate.ConditionWaypointBound}})
	step("for another condition", 1)
	version("two", 1)
	step("for another Service of the name", 1)
	over, end := context.WithCancel(t.Context())
	end()
	b.run(over)
	step("in another term", 1)
	if n := strings.Count(log.String(), "another's to write"); n != 4 {
		t.Errorf("said %d times:\n%s", n, log)
	}
	tr.del(kindService, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ours", Name: "web"}})
	if step("when it is gone", 0); len(b.refused) > 0 {
		t.Errorf("%v is remembered of what is gone", b.refused)
	}
}

// Conditions that another control plane has left go when we are alone, those of
// others and of Services that are not ours stay, and beside it all stay.
func TestConditionsLeftByAnother(t *testing.T) {
	const sweeps = string(types.StrategicMergePatchType) + ` {"metadata":{"resourceVersion":"8"},"status":{"conditions":[{"$patch":"delete","type":"istio.io/WaypointBound"}]}}`
	for _, c := range []struct {
		name   string
		beside bool
		rev    string
		want   []translate.Condition
		sent   []string // beginnings
	}{
		{"alone", false, "", nil, []string{string(types.ApplyPatchType), sweeps}},
		{"alone, with one that is wanted", false, "", []translate.Condition{{Type: translate.ConditionWaypointRequired}}, []string{string(types.ApplyPatchType), sweeps}},
		{"alone, and wanted", false, "", []translate.Condition{{Type: translate.ConditionWaypointBound}}, []string{string(types.ApplyPatchType)}},
		{"of another revision", false, "other", nil, []string{string(types.ApplyPatchType)}},
		{"beside another", true, "ambit", nil, []string{string(types.ApplyPatchType)}},
	} {
		tr := newBench(t)
		tr.cfg.Translate.Beside, tr.cfg.Translate.Revision = c.beside, "ambit"
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ours", Name: "web", UID: "one", ResourceVersion: "7"}}
		if c.rev != "" {
			svc.Labels = map[string]string{translate.RevisionLabel: c.rev}
		}
		svc.Status.Conditions = []metav1.Condition{{Type: translate.ConditionWaypointBound}, {Type: "example.com/Other"}}
		tr.put(kindService, svc)
		p, b, _ := newPatched(t, tr, func(string) (int, any) {
			out := svc.DeepCopy()
			out.ResourceVersion = "8"
			return http.StatusOK, out
		})
		k := key{kindService, "ours", "web"}
		b.want(k, c.want)
		b.do(t.Context(), k)
		if !slices.EqualFunc(p.sent, c.sent, strings.HasPrefix) {
			t.Errorf("%s: sent %q", c.name, p.sent)
		}
	}
}
