package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The words are those of /debug/clients.
const (
	clientsA = `[
{"Caller":{"Namespace":"ambit-system","PodName":"ztunnel-1","PodUID":"u1","Node":"n1"},"Version":"v1","Cluster":"Kubernetes","Connected":"2026-01-01T10:00:00Z",
 "Types":[{"TypeURL":"type.googleapis.com/istio.security.Authorization","Sent":7,"Acked":7,"AckedTime":"2026-01-01T12:55:00Z"},
          {"TypeURL":"type.googleapis.com/istio.workload.Address","Sent":7,"Acked":5,"AckedTime":"2026-01-01T12:00:00Z"}]},
{"Caller":{"Namespace":"ambit-system","PodName":"ztunnel-2","PodUID":"u2","Node":"n2"},"Version":"v1","Connected":"2026-01-01T10:00:00Z",
 "Types":[{"TypeURL":"type.googleapis.com/istio.workload.Address","Sent":0,"Acked":0}]}]`
	clientsB = `[
{"Caller":{"Namespace":"ambit-system","PodName":"ztunnel-2","PodUID":"u2","Node":"n2"},"Version":"v2","Connected":"2026-01-01T11:00:00Z",
 "Types":[{"TypeURL":"type.googleapis.com/istio.workload.Address","Sent":9,"Acked":8,"LastNACK":"bad\n\u001b[2Jaddress","LastNACKTime":"2026-01-01T12:00:00Z"},
          {"TypeURL":"type.googleapis.com/ambit.trust.Bundle","Sent":1,"Acked":1},
          {"TypeURL":"type.googleapis.com/some.other.Thing","Sent":0,"Acked":0}]}]`
)

func clientsOf(t *testing.T, text string) []debugClient {
	t.Helper()
	var out []debugClient
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

//ambit:feature cli-proxy-status
func TestMergeReplicas(t *testing.T) {
	pods := []corev1.Pod{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ztunnel-2"}, Spec: corev1.PodSpec{NodeName: "n2"}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ztunnel-3"}, Spec: corev1.PodSpec{NodeName: "n3"},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "leaving", DeletionTimestamp: &metav1.Time{}}},
	}
	a, b := replica{Pod: "c-a", Clients: clientsOf(t, clientsA)}, replica{Pod: "c-b", Clients: clientsOf(t, clientsB)}
	const problems = `

Problems:
ztunnel-1.ambit-system has not confirmed WDS for 1h0m0s
ztunnel-2.ambit-system refused WDS at 2026-01-01T12:00:00Z: bad  [2Jaddress
ztunnel-3.ambit-system: connected to no controller; it goes on with what it had`
	const short = `NAME|CLUSTER|ISTIOD|VERSION|SUBSCRIBED TYPES
ztunnel-1.ambit-system|Kubernetes|c-a|v1|2 (WADS,WDS)
ztunnel-2.ambit-system|-|c-b|v2|3 (TRUST,WDS,some.other.Thing)
ztunnel-3.ambit-system|-|-|-|0` + problems
	const detailed = `NAME|CLUSTER|WDS|WADS|TRUST|some.other.Thing|ISTIOD|VERSION
ztunnel-1.ambit-system|Kubernetes|STALE (60m)|SYNCED (5m)|-|-|c-a|v1
ztunnel-2.ambit-system|-|ERROR (60m)|-|SYNCED|NOT SENT|c-b|v2
ztunnel-3.ambit-system|-|-|-|-|-|-|-` + problems
	now := time.Date(2026, 1, 1, 13, 0, 0, 0, time.UTC)
	// The order in which replicas answer changes nothing.
	for _, order := range [][]replica{{a, b}, {b, a}} {
		states, err := mergeReplicas(order, pods)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{short, detailed} {
			var out bytes.Buffer
			if err := printProxyStates(&out, "table", states, want == detailed, now); err != nil {
				t.Fatal(err)
			}
			if got := cells(out.String()); got != want {
				t.Errorf("\n%s\nwant\n%s", got, want)
			}
		}
	}
	// With one replica silent, that nobody knows a ztunnel is no finding.
	states, err := mergeReplicas([]replica{a, {Pod: "c-b", Err: errors.New("c-b is silent")}}, pods)
	if err == nil || len(states) != 3 || states[2].Problem != "unknown: not every controller answered" {
		t.Errorf("%v %+v", err, states)
	}
}

//ambit:feature cli-proxy-status
func TestProxyStatus(t *testing.T) {
	s := newAPIServer(t)
	if code, _, errs := s.ambit("proxy-status"); code != exitUnknown || !strings.Contains(errs, "no controller runs in ambit-system") {
		t.Errorf("%d %q", code, errs)
	}
	s.pod("ambit-system", "c-a", "ambit-controller", "n1")
	s.pod("ambit-system", "c-b", "ambit-controller", "n2")
	s.pod("ambit-system", "ztunnel-1", "ztunnel", "n1")
	say := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || r.URL.Path != "/debug/clients" {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			_, _ = w.Write([]byte(text))
		}
	}
	s.serve("c-a", "15014", say(clientsA))
	// One replica does not answer: what is known is printed, and the end is not 0.
	code, out, errs := s.ambit("proxy-status")
	if code != exitUnknown || !strings.Contains(out, "ztunnel-1.ambit-system") || !strings.Contains(errs, "pod ambit-system/c-b port 15014") {
		t.Errorf("%d %q %q", code, out, errs)
	}
	s.serve("c-b", "15014", say(clientsB))
	code, out, errs = s.ambit("proxy-status", "-o", "json")
	var states []proxyState
	if err := json.Unmarshal([]byte(out), &states); err != nil || code != 0 || len(states) != 2 || states[1].Types["WDS"].Reason != "bad\n\x1b[2Jaddress" {
		t.Errorf("%d %v %q %q", code, err, out, errs)
	}
	for arg, want := range map[string]string{"ztunnel-1": "ztunnel-1.ambit-system", "ambit-system/ztunnel-2": "ztunnel-2.ambit-system", "ztunnel-2.ambit-system": "ztunnel-2.ambit-system"} {
		if code, out, _ := s.ambit("proxy-status", arg, "-v", "1"); code != 0 || strings.Count(out, "ztunnel-") < 1 || !strings.Contains(out, want) || len(strings.Split(strings.TrimSpace(out), "\n")) < 2 {
			t.Errorf("%s: %d %q", arg, code, out)
		}
	}
	if code, _, errs := s.ambit("proxy-status", "nobody"); code != exitUnknown || !strings.Contains(errs, "nobody.ambit-system is no data plane") {
		t.Errorf("%d %q", code, errs)
	}
	s.forbidden = true
	if code, out, errs := s.ambit("proxy-status"); code != exitUnknown || out != "" || !strings.Contains(errs, "needs create on pods/portforward") {
		t.Errorf("%d %q %q", code, out, errs)
	}
}
