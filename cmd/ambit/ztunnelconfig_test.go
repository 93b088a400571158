package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// savedDump is what ztunnel's own test says its program answers.
const savedDump = "../../ztunnel/testdata/config_dump.json"

func readSaved(t testing.TB) *configDump {
	t.Helper()
	d, err := readDump(savedDump, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// cells are a table without its padding.
func cells(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		var row []string
		for c := range strings.SplitSeq(strings.TrimSpace(line), "   ") {
			if c = strings.TrimSpace(c); c != "" {
				row = append(row, c)
			}
		}
		out = append(out, strings.Join(row, "|"))
	}
	return strings.Join(out, "\n")
}

// TestDumpTables: the columns and words are istioctl's.
//
//ambit:feature cli-ztunnel-config
func TestDumpTables(t *testing.T) {
	front := podName{"shop", "front-1"}
	for _, tt := range []struct {
		view string
		f    dumpFilter
		o    tableOptions
		want string
	}{
		{"workload", dumpFilter{}, tableOptions{}, `NAMESPACE|POD NAME|ADDRESS|NODE|WAYPOINT|PROTOCOL
plain|old|10.0.2.9|n2|None|TCP
shop|cart-1|10.0.1.2|n1|waypoint|HBONE
shop|cart-2|10.0.2.2|n2|NA|HBONE
shop|front-1|10.0.1.1,fd00::1|n1|None|HBONE`},
		// Names are resolved by what the filter left out, too.
		{"workload", dumpFilter{workloadNamespace: "shop", workloadNode: "n1", workload: "cart-1"}, tableOptions{}, `NAMESPACE|POD NAME|ADDRESS|NODE|WAYPOINT|PROTOCOL
shop|cart-1|10.0.1.2|n1|waypoint|HBONE`},
		{"workload", dumpFilter{address: "fd00::1"}, tableOptions{}, `NAMESPACE|POD NAME|ADDRESS|NODE|WAYPOINT|PROTOCOL
shop|front-1|10.0.1.1,fd00::1|n1|None|HBONE`},
		{"workload", dumpFilter{pod: podName{"shop", "nobody"}}, tableOptions{}, `NAMESPACE|POD NAME|ADDRESS|NODE|WAYPOINT|PROTOCOL`},
		{"service", dumpFilter{}, tableOptions{}, `NAMESPACE|SERVICE NAME|SERVICE VIP|WAYPOINT|ENDPOINTS
plain|outside|192.0.2.0/24|None|0/0
shop|cart|10.1.0.1|waypoint|1/2
shop|waypoint|10.1.0.9|None|0/0`},
		{"service", dumpFilter{serviceNamespace: "shop", svc: "cart"}, tableOptions{}, `NAMESPACE|SERVICE NAME|SERVICE VIP|WAYPOINT|ENDPOINTS
shop|cart|10.1.0.1|waypoint|1/2`},
		{"service", dumpFilter{pod: podName{"shop", "cart-1"}}, tableOptions{}, `NAMESPACE|SERVICE NAME|SERVICE VIP|WAYPOINT|ENDPOINTS
shop|cart|10.1.0.1|waypoint|1/2`},
		{"policy", dumpFilter{}, tableOptions{}, `NAMESPACE|POLICY NAME|ACTION|SCOPE
ambit-system|strict|Deny|Global
plain|deny-old|Deny|Namespace
shop|only-front|Allow|WorkloadSelector`},
		{"policy", dumpFilter{policyNamespace: "plain", pol: "deny-old"}, tableOptions{}, `NAMESPACE|POLICY NAME|ACTION|SCOPE
plain|deny-old|Deny|Namespace`},
		{"policy", dumpFilter{pod: podName{"shop", "cart-1"}}, tableOptions{}, `NAMESPACE|POLICY NAME|ACTION|SCOPE
ambit-system|strict|Deny|Global
shop|only-front|Allow|WorkloadSelector`},
		{"policy", dumpFilter{pod: podName{"plain", "old"}}, tableOptions{}, `NAMESPACE|POLICY NAME|ACTION|SCOPE
ambit-system|strict|Deny|Global
plain|deny-old|Deny|Namespace`},
		{"certificate", dumpFilter{}, tableOptions{now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)}, `CERTIFICATE NAME|TYPE|STATUS|VALID CERT|SERIAL NUMBER|NOT AFTER|NOT BEFORE
spiffe://cluster.local/ns/shop/sa/cart|Leaf|Available|true|ff|2026-01-02T00:00:00Z|2026-01-01T00:00:00Z
spiffe://cluster.local/ns/shop/sa/cart|Intermediate|Available|true|1000|2027-01-01T00:00:00Z|2026-01-01T00:00:00Z
spiffe://cluster.local/ns/shop/sa/cart|Root|Available|true|10000000000|2035-12-30T00:00:00Z|2026-01-01T00:00:00Z
spiffe://cluster.local/ns/shop/sa/front|NA|Unavailable: no CA answers|false|NA|NA|NA`},
		{"certificate", dumpFilter{pod: podName{"shop", "cart-1"}}, tableOptions{now: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)}, `CERTIFICATE NAME|TYPE|STATUS|VALID CERT|SERIAL NUMBER|NOT AFTER|NOT BEFORE
spiffe://cluster.local/ns/shop/sa/cart|Leaf|Available|false|ff|2026-01-02T00:00:00Z|2026-01-01T00:00:00Z
spiffe://cluster.local/ns/shop/sa/cart|Intermediate|Available|true|1000|2027-01-01T00:00:00Z|2026-01-01T00:00:00Z
spiffe://cluster.local/ns/shop/sa/cart|Root|Available|true|10000000000|2035-12-30T00:00:00Z|2026-01-01T00:00:00Z`},
		{"connections", dumpFilter{pod: front}, tableOptions{}, `WORKLOAD|DIRECTION|LOCAL|REMOTE|REMOTE TARGET|PROTOCOL
front-1.shop|Inbound|front-1.shop:8080|old.plain:50000|front-1.shop:8080|TCP
front-1.shop|Outbound|front-1.shop:40000|cart-1.shop:8080|cart.shop.svc.cluster.local:80|HBONE`},
		{"connections", dumpFilter{}, tableOptions{raw: true, direction: "outbound"}, `WORKLOAD|DIRECTION|LOCAL|REMOTE|REMOTE TARGET|PROTOCOL
front-1.shop|Outbound|10.0.1.1:40000|10.0.1.2:8080|10.1.0.1:80|HBONE`},
		{"connections", dumpFilter{workloadNamespace: "plain"}, tableOptions{}, `WORKLOAD|DIRECTION|LOCAL|REMOTE|REMOTE TARGET|PROTOCOL`},
		{"all", dumpFilter{pod: podName{"shop", "nobody"}}, tableOptions{headers: true}, `WORKLOAD INFO
NAMESPACE|POD NAME|ADDRESS|NODE|WAYPOINT|PROTOCOL

SERVICE INFO
NAMESPACE|SERVICE NAME|SERVICE VIP|WAYPOINT|ENDPOINTS

POLICY INFO
NAMESPACE|POLICY NAME|ACTION|SCOPE

SECRET INFO
CERTIFICATE NAME|TYPE|STATUS|VALID CERT|SERIAL NUMBER|NOT AFTER|NOT BEFORE

CONNECTIONS INFO
WORKLOAD|DIRECTION|LOCAL|REMOTE|REMOTE TARGET|PROTOCOL`},
	} {
		d := readSaved(t)
		v := dumpViews[slices.IndexFunc(dumpViews, func(v dumpView) bool { return v.name == tt.view })]
		var b bytes.Buffer
		if err := v.table(&b, d.filter(tt.f), namesOf(d), tt.o); err != nil {
			t.Fatal(err)
		}
		if got := cells(b.String()); got != tt.want {
			t.Errorf("%s %+v:\n%s\nwant\n%s", tt.view, tt.f, got, tt.want)
		}
	}
}

// runAmbit is the program itself.
func runAmbit(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

//ambit:feature cli-ztunnel-config
func TestDumpAsJSON(t *testing.T) {
	code, out, errs := runAmbit(t, "ztunnel-config", "workload", "--file", savedDump, "--workload", "cart-2", "-o", "json")
	var list []map[string]any
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 {
		t.Fatalf("%d %v %s", code, err, errs)
	}
	// Everything ztunnel said is there, not only what the tables need.
	if len(list) != 1 || list[0]["name"] != "cart-2" || list[0]["status"] != "Unhealthy" || list[0]["clusterId"] != "Kubernetes" {
		t.Errorf("%v", list)
	}
	if _, out, _ := runAmbit(t, "zc", "svc", "-f", savedDump, "--service", "nothing", "-o", "json"); out != "[]\n" {
		t.Errorf("none: %q", out)
	}
	if _, out, _ := runAmbit(t, "zc", "p", "-f", savedDump, "--policy", "strict", "-o", "yaml"); !strings.Contains(out, "scope: Global\n") {
		t.Errorf("yaml: %q", out)
	}
	// What all prints is a dump again.
	_, out, _ = runAmbit(t, "zc", "all", "-f", savedDump, "-o", "json")
	if d, err := parseDump([]byte(out)); err != nil || len(d.Workloads) != 4 || len(d.WorkloadState) != 1 {
		t.Errorf("all: %v", err)
	}
}

//ambit:feature cli-usage
func TestDumpUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"certificate"}, "ztunnel pod name or --node must be set"},
		{[]string{"connections"}, "ztunnel pod name or --node must be set"},
		{[]string{"workload", "a", "--node", "n"}, "at most one of POD, --node and --file"},
		{[]string{"workload", "--file", savedDump, "--node", "n"}, "at most one of POD, --node and --file"},
		{[]string{"workload", "--file", savedDump, "-o", "xml"}, "-o xml: want"},
		{[]string{"workload", "--file", t.TempDir() + "/none"}, "no such file"},
		{[]string{"connections", "--file", savedDump, "--direction", "up"}, "want inbound or outbound"},
		{[]string{"log", "--file", savedDump}, "has no log levels"},
		{[]string{"log", "--level", "loud"}, `"loud" is none of`},
		{[]string{"log", "--level", "info", "--reset"}, "at most one of --level and --reset"},
		{[]string{"workloud"}, "unknown command"},
	} {
		if code, out, errs := runAmbit(t, append([]string{"ztunnel-config"}, tt.args...)...); code != exitUnknown || !strings.Contains(errs, tt.want) || out != "" {
			t.Errorf("%q: %d %q %q, want %q", tt.args, code, out, errs, tt.want)
		}
	}
}

func TestParseDump(t *testing.T) {
	for in, want := range map[string]string{
		"": "not a config_dump", "null": "not a config_dump", "[]": "not a config_dump", "{}": "not a config_dump",
		`{"workloads":[],"services":{}}`:                       "",
		`{"workloads":{"b":{"name":"b"}},"services":[]}`:       "",
		`{"workloads":[{"workloadIps":"x"}],"services":[]}`:    "not a config_dump",
		`{"workloads":[null],"services":[],"policies":null}`:   "",
		`{"workloads":[],"services":[],"workloadState":["x"]}`: "not a config_dump",
	} {
		_, err := parseDump([]byte(in))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

// FuzzDump: a saved dump is a file from somebody else.
func FuzzDump(f *testing.F) {
	b, err := os.ReadFile(savedDump)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"workloads":[null],"services":{"a":null},"workloadState":{"a":null}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDump(b)
		if err != nil {
			return
		}
		var out bytes.Buffer
		for _, flt := range []dumpFilter{{}, {pod: podName{"shop", "cart-1"}}} {
			if err := allTables(&out, d.filter(flt), namesOf(d), tableOptions{headers: true}); err != nil {
				t.Error(err)
			}
			if err := encode(&out, "json", d.filter(flt)); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestPodArgument(t *testing.T) {
	for _, tt := range []struct {
		arg, namespace string
		want           podName
		ok             bool
	}{
		{"a", "", podName{"", "a"}, true},
		{"a", "ns", podName{"ns", "a"}, true},
		{"ns/a", "", podName{"ns", "a"}, true},
		{"ns/a.b", "", podName{"ns", "a.b"}, true},
		{"a.b.ns", "", podName{"ns", "a.b"}, true},
		{"a.b", "ns", podName{"ns", "a.b"}, true},
		{"", "", podName{}, false},
		{"/a", "", podName{}, false},
		{"a/", "", podName{}, false},
		{"a.", "", podName{}, false},
		{"a/b/c", "", podName{}, false},
	} {
		got, err := podArgument(tt.arg, tt.namespace)
		if (err == nil) != tt.ok || tt.ok && got != tt.want {
			t.Errorf("%q in %q: %v %v", tt.arg, tt.namespace, got, err)
		}
	}
}

func TestPickZtunnel(t *testing.T) {
	pod := func(name, node string, phase corev1.PodPhase, ready, leaving bool) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}}
		if ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		if leaving {
			p.DeletionTimestamp = &metav1.Time{}
		}
		return p
	}
	all := []corev1.Pod{
		pod("old", "n1", corev1.PodRunning, true, true), pod("new", "n1", corev1.PodRunning, true, false),
		pod("unready", "n2", corev1.PodRunning, false, false), pod("stuck", "n3", corev1.PodPending, false, false),
	}
	for node, want := range map[string]string{"n1": "new", "n2": "unready", "": "new"} {
		if got, err := pickZtunnel(all, node); got != want || err != nil {
			t.Errorf("%q: %q %v, want %q", node, got, err, want)
		}
	}
	for node, want := range map[string]string{"n3": "ztunnel stuck on node n3 does not run", "n4": "no ztunnel on node n4"} {
		if _, err := pickZtunnel(all, node); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", node, err, want)
		}
	}
	if _, err := pickZtunnel(nil, ""); err == nil || !strings.Contains(err.Error(), "is Ambit installed?") {
		t.Error(err)
	}
}

//ambit:feature cli-log-levels
func TestLoggingPath(t *testing.T) {
	for _, tt := range []struct {
		level string
		reset bool
		want  string
	}{
		{"", false, "/logging"},
		{"", true, "/logging?reset="},
		{"debug", false, "/logging?level=debug"},
		{"warning, access:critical", false, "/logging?level=warn%2Caccess%3Derror"},
		{"a::b=trace", false, "/logging?level=a%3A%3Ab%3Dtrace"},
		{"a::b:trace", false, "/logging?level=a%3A%3Ab%3Dtrace"},
		{"=info", false, ""},
		{"a=", false, ""},
		{"a", false, ""},
	} {
		got, err := loggingPath(tt.level, tt.reset)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: %q %v, want %q", tt.level, got, err, tt.want)
		}
	}
}
