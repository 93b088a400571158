package live

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

type bench struct {
	out   bytes.Buffer
	reg   *prometheus.Registry
	table *Table
	store *mesh.Store
	now   time.Time
	pod   *Pod
}

// newBench has a clock that stands still unless a test moves it.
func newBench(t testing.TB, json bool, spec string) *bench {
	t.Helper()
	levels, err := NewLevels(spec)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{reg: prometheus.NewRegistry(), store: mesh.NewStore(), now: time.Unix(1700000000, 0),
		pod: &Pod{UID: "uid-1", Name: "shell-1", Namespace: "default", ServiceAccount: "default"}}
	b.table = New(Config{Store: b.store, Metrics: NewMetrics(b.reg), Registerer: b.reg,
		Logger: slog.New(NewLogHandler(&b.out, json, levels)), Now: func() time.Time { return b.now },
		LogBurst: 3, LogRate: 1})
	return b
}

// lines are the log without its time stamps.
func (b *bench) lines() []string {
	var out []string
	for l := range strings.Lines(b.out.String()) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(l, "\n"), "\t")
		out = append(out, rest)
	}
	b.out.Reset()
	return out
}

var (
	client = &mesh.Workload{UID: "c//Pod/default/shell-1", Name: "shell-1", Namespace: "default", ServiceAccount: "default",
		WorkloadName: "shell", CanonicalName: "shell", CanonicalRevision: "v1", Type: mesh.TypeDeployment}
	server = &mesh.Workload{UID: "c//Pod/prod/echo-1", Name: "echo-1", Namespace: "prod", ServiceAccount: "echo",
		WorkloadName: "echo", CanonicalName: "echo", CanonicalRevision: "v2", ClusterID: "c1",
		Locality: mesh.Locality{Region: "r", Zone: "z"}}
	service = &mesh.Service{Name: "echo", Namespace: "prod", Hostname: "echo.prod.svc.cluster.local"}
)

func facts() Facts {
	return Facts{
		Src: netip.MustParseAddrPort("10.244.0.24:46238"), Dst: netip.MustParseAddrPort("10.244.0.42:15008"),
		Original: netip.MustParseAddrPort("10.96.1.1:80"), Authority: "10.244.0.42:8080", HBONE: true,
		Source: client, Destination: server, SourceID: client.Identity(), DestinationID: server.Identity(), Service: service,
	}
}

type fixed struct{ received, sent uint64 }

func (f fixed) Received() uint64 { return f.received }
func (f fixed) Sent() uint64     { return f.sent }

const parties = `src.addr=10.244.0.24:46238 src.workload="shell-1" src.namespace="default" ` +
	`src.identity="spiffe://cluster.local/ns/default/sa/default" src.cluster="Kubernetes" ` +
	`dst.addr=10.244.0.42:15008 dst.hbone_addr=10.244.0.42:8080 dst.service="echo.prod.svc.cluster.local" ` +
	`dst.workload="echo-1" dst.namespace="prod" dst.identity="spiffe://cluster.local/ns/prod/sa/echo" dst.cluster="c1" `

func TestAccessLogText(t *testing.T) {
	b := newBench(t, false, "info")
	run := func(r Reporter, err error) string {
		c := b.table.Accept(b.pod, r)
		c.Open(facts())
		c.Count(fixed{received: 67, sent: 490})
		b.now = b.now.Add(13 * time.Millisecond)
		c.End(err)
		l := b.lines()
		if len(l) != 1 {
			t.Fatalf("%d lines: %q", len(l), l)
		}
		return l[0]
	}
	for _, tt := range []struct{ got, want string }{
		{run(Source, nil), "info\taccess\tconnection complete\t" + parties + `direction="outbound" bytes_sent=67 bytes_recv=490 duration="13ms"`},
		{run(Destination, nil), "info\taccess\tconnection complete\t" + parties + `direction="inbound" bytes_sent=490 bytes_recv=67 duration="13ms"`},
		{run(Source, Errorf(PeerDenied, "http status: %d", 401)),
			"error\taccess\tconnection complete\t" + parties + `direction="outbound" bytes_sent=67 bytes_recv=490 duration="13ms" error="http status: 401" reason="peer_denied"`},
		{run(Source, errors.New(`odd "thing"`)),
			"error\taccess\tconnection complete\t" + parties + `direction="outbound" bytes_sent=67 bytes_recv=490 duration="13ms" error="odd \"thing\"" reason="internal"`},
	} {
		if tt.got != tt.want {
			t.Errorf("got  %s\nwant %s", tt.got, tt.want)
		}
	}
	c := b.table.Accept(b.pod, Destination)
	c.Deny(facts().Src, facts().Dst, Errorf(NoCertificate, "handshake: none"))
	want := "warn\taccess\tconnection failed\tsrc.addr=10.244.0.24:46238 dst.addr=10.244.0.42:15008 direction=\"inbound\" error=\"handshake: none\" reason=\"no_certificate\""
	if l := b.lines(); len(l) != 1 || l[0] != want {
		t.Errorf("got  %q\nwant %q", l, want)
	}
}

func TestAccessLogJSON(t *testing.T) {
	b := newBench(t, true, "debug")
	c := b.table.Accept(b.pod, Source)
	c.Open(facts())
	c.End(Errorf(NoHealthyUpstream, "no \"healthy\"\nupstream\x01"))
	lines := strings.Split(strings.TrimSpace(b.out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%q", lines)
	}
	var opened, complete map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &opened); err != nil {
		t.Fatalf("%v: %s", err, lines[0])
	}
	if err := json.Unmarshal([]byte(lines[1]), &complete); err != nil {
		t.Fatalf("%v: %s", err, lines[1])
	}
	if opened["message"] != "connection opened" || opened["level"] != "debug" {
		t.Errorf("%v", opened)
	}
	for k, v := range map[string]any{
		"level": "error", "scope": "access", "message": "connection complete", "src.addr": "10.244.0.24:46238",
		"dst.hbone_addr": "10.244.0.42:8080", "bytes_sent": 0.0, "duration": "0ms", "direction": "outbound",
		"error": "no \"healthy\"\nupstream\x01", "reason": "no_healthy_upstream",
	} {
		if complete[k] != v {
			t.Errorf("%s is %v, want %v", k, complete[k], v)
		}
	}
}

//ambit:feature telemetry-traffic-metrics
func TestTrafficMetrics(t *testing.T) {
	b := newBench(t, false, "off")
	c := b.table.Accept(b.pod, Source)
	c.Open(facts())
	c.Count(fixed{received: 67, sent: 490})
	labels := func(flag string) string {
		return `{connection_security_policy="mutual_tls",destination_app="echo",destination_canonical_revision="v2",` +
			`destination_canonical_service="echo",destination_cluster="c1",destination_principal="spiffe://cluster.local/ns/prod/sa/echo",` +
			`destination_region="r",destination_service="echo.prod.svc.cluster.local",destination_service_name="echo",` +
			`destination_service_namespace="prod",destination_version="v2",destination_workload="echo",` +
			`destination_workload_namespace="prod",destination_zone="z",reporter="source",request_protocol="tcp",` +
			`response_flags="` + flag + `",source_app="shell",source_canonical_revision="v1",source_canonical_service="shell",` +
			`source_cluster="Kubernetes",source_principal="spiffe://cluster.local/ns/default/sa/default",source_region="unknown",` +
			`source_version="v1",source_workload="shell",source_workload_namespace="default",source_zone="unknown"}`
	}
	expect := func(name, sample string) {
		t.Helper()
		all := gather(t, b.reg)
		if !strings.Contains(all, sample+"\n") {
			t.Errorf("%s: no sample %s in\n%s", name, sample, all)
		}
	}
	b.table.Flush() // bytes of a running connection are there before its end
	expect("open", "istio_tcp_received_bytes_total"+labels("-")+" 67")
	expect("open", "istio_tcp_sent_bytes_total"+labels("-")+" 490")
	expect("open", `ambit_connections_open{reporter="source"} 1`)
	c.End(nil)
	c.End(errors.New("a second end counts nothing"))
	expect("closed", "istio_tcp_connections_closed_total"+labels("-")+" 1")
	expect("closed", "istio_tcp_received_bytes_total"+labels("-")+" 67")

	c = b.table.Accept(b.pod, Source)
	c.Open(facts())
	c.End(Errorf(HBONETimeout, "slow"))
	expect("failed", "istio_tcp_connections_failed_total"+labels("NETWORK_POLICY")+" 1")
	expect("failed", "istio_tcp_connections_closed_total"+labels("NETWORK_POLICY")+" 1")
	expect("failed", "istio_tcp_connections_opened_total"+labels("-")+" 2")
	expect("failed", `ambit_connections_failed_total{reason="hbone_timeout",reporter="source"} 1`)

	// Plaintext to a workload: its principal is the record's, the source's unknown.
	f := facts()
	f.HBONE, f.Authority, f.SourceID, f.DestinationID = false, "", identity.ID{}, identity.ID{}
	c = b.table.Accept(b.pod, Source)
	c.Open(f)
	c.End(nil)
	plain := strings.NewReplacer(`"mutual_tls"`, `"unknown"`, `source_principal="spiffe://cluster.local/ns/default/sa/default"`, `source_principal="unknown"`)
	expect("plaintext", "istio_tcp_connections_opened_total"+plain.Replace(labels("-"))+" 1")
}

func gather(t *testing.T, g prometheus.Gatherer) string {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// Log lines are limited, metrics are not.
// TestCutBeforeOpen: a connection that waits for its configuration when its pod
// goes is not refused for want of configuration.
func TestCutBeforeOpen(t *testing.T) {
	b := newBench(t, false, "info")
	c := b.table.Accept(b.pod, Source)
	b.table.CutPod(b.pod, Errorf(PodRemoved, "gone"))
	c.Deny(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), Errorf(UnknownWorkload, "after 5s"))
	if l := b.lines(); len(l) != 1 || !strings.Contains(l[0], `reason="pod_removed"`) {
		t.Errorf("log %q", l)
	}
}

func TestLimit(t *testing.T) {
	b := newBench(t, false, "info")
	fail := func(r Reason) {
		b.table.Accept(b.pod, Source).Deny(facts().Src, facts().Dst, Errorf(r, "x"))
	}
	for range 10 {
		fail(SelfCall)
	}
	fail(NotTLS) // another reason has its own allowance
	if n := len(b.lines()); n != 4 {
		t.Errorf("%d lines", n)
	}
	b.now = b.now.Add(time.Second)
	fail(SelfCall)
	if l := b.lines(); len(l) != 1 || !strings.HasSuffix(l[0], "suppressed=7") {
		t.Errorf("%q", l)
	}
	fail(SelfCall)
	b.now = b.now.Add(time.Minute)
	left := b.table.limit.sweep(b.now)
	if len(left) != 1 || left[0].suppressed != 1 || left[0].reason != SelfCall {
		t.Errorf("%+v", left)
	}
	if all := gather(t, b.reg); !strings.Contains(all, `ambit_connections_failed_total{reason="self_call",reporter="source"} 12`+"\n") {
		t.Errorf("not 12 in\n%s", all)
	}
}

// Policy changes cut what they deny, nothing else, and never for a policy that
// has not arrived.
func TestRecheck(t *testing.T) {
	b := newBench(t, false, "info")
	swap := func(d mesh.Delta) *mesh.Snapshot {
		bl := mesh.NewBuilder(b.store.Load())
		bl.Apply(d)
		b.store.Swap(bl.Build())
		return b.store.Load()
	}
	swap(mesh.Delta{Workloads: []*mesh.Workload{server}})
	open := func(peer identity.ID) (*Conn, *error) {
		c := b.table.Accept(b.pod, Destination)
		f := facts()
		f.Check = &Check{Workload: server, Conn: authz.Conn{Peer: peer, Src: f.Src, Dst: f.Dst}}
		c.Open(f)
		var cut error
		c.OnCut(func(err error) { cut = err })
		return c, &cut
	}
	good, goodCut := open(client.Identity())
	plain, plainCut := open(identity.ID{})

	named := *server
	named.Policies = []string{"prod/strict"}
	b.table.Recheck(swap(mesh.Delta{Workloads: []*mesh.Workload{&named}}))
	if *goodCut != nil || *plainCut != nil {
		t.Fatalf("cut for a policy that is not here: %v, %v", *goodCut, *plainCut)
	}
	strict := &mesh.Policy{Name: "strict", Namespace: "prod", Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{NotPrincipals: []mesh.StringMatch{{Kind: mesh.Presence}}}}}}}}}
	b.table.Recheck(swap(mesh.Delta{Policies: []*mesh.Policy{strict}}))
	if *goodCut != nil {
		t.Errorf("cut: %v", *goodCut)
	}
	var e *Error
	if !errors.As(*plainCut, &e) || e.Reason != PolicyChanged {
		t.Errorf("not cut: %v", *plainCut)
	}
	plain.End(errors.New("what the copy saw"))
	if l := b.lines(); len(l) != 1 || !strings.Contains(l[0], `reason="policy_changed"`) || !strings.Contains(l[0], "closed due to policy change") {
		t.Errorf("%q", l)
	}
	good.End(nil)

	// A connection that opens while its pod is being cut is cut too.
	b.table.CutPod(b.pod, Errorf(Drained, "drain"))
	_, cut := open(client.Identity())
	if !errors.As(*cut, &e) || e.Reason != Drained {
		t.Errorf("not cut: %v", *cut)
	}
}

func TestReasons(t *testing.T) {
	seen := map[Reason]bool{}
	for _, m := range Reasons() {
		if seen[m.Reason] || m.Reason == "" || m.Text == "" || m.Flag == "" {
			t.Errorf("%+v", m)
		}
		seen[m.Reason] = true
		if m.Reason.Flag() != m.Flag {
			t.Errorf("%s: flag %s", m.Reason, m.Reason.Flag())
		}
	}
	if Reason("").Flag() != FlagNone {
		t.Error("success has a flag")
	}
}

func TestLevels(t *testing.T) {
	l, err := NewLevels("warn,access=debug")
	if err != nil {
		t.Fatal(err)
	}
	for scope, want := range map[string]slog.Level{"access": slog.LevelDebug, "access::inner": slog.LevelDebug, "xds": slog.LevelWarn} {
		if got := l.level(scope); got != want {
			t.Errorf("%s: %v", scope, got)
		}
	}
	if err := l.Add("xds=trace,off"); err != nil || l.String() != "access=debug,xds=trace,off" {
		t.Errorf("%v %s", err, l)
	}
	if err := l.Add("verbose"); err == nil {
		t.Error("a bare target is not a directive")
	}
	if err := l.Reset(); err != nil || l.String() != "access=debug,warn" {
		t.Errorf("%v %s", err, l)
	}
}

func TestBaggage(t *testing.T) {
	want := "k8s.cluster.name=c1,k8s.namespace.name=prod,k8s.deployment.name=echo,service.name=echo,service.version=v2,cloud.region=r,cloud.availability_zone=z"
	if got := Baggage(server); got != want {
		t.Errorf("got %s", got)
	}
	if Baggage(nil) != "" {
		t.Error("nobody has baggage")
	}
	if got := ParseBaggage(want); got != (Metadata{"c1", "prod", "echo", "echo", "v2", "r", "z", mesh.TypeDeployment}) {
		t.Errorf("%+v", got)
	}
	if got := ParseBaggage("x=y,service.name=a=b,service.name=c,cloud.region"); got != (Metadata{Service: "c"}) {
		t.Errorf("%+v", got)
	}
	for name, headers := range map[string][]string{
		"not ASCII": {"service.name=a", "service.name=\xff"}, "a long value": {"cloud.region=r,service.name=" + strings.Repeat("x", maxValue+1)},
		"long in all": {"service.name=a," + strings.Repeat("y", maxBaggage/2), strings.Repeat("y", maxBaggage/2)},
	} {
		if got := ParseBaggage(headers...); got != (Metadata{}) || got.Record(server.Identity()) != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	several := ParseBaggage("service.name=a,k8s.job.name=j", "service.name=b")
	w := several.Record(server.Identity())
	if w == nil || w.CanonicalName != "b" || w.WorkloadName != "j" || w.Type != mesh.TypeJob || w.Identity() != server.Identity() {
		t.Errorf("%+v", w)
	}
}

//ambit:feature wire-fuzzed
func FuzzParseBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=c1,k8s.namespace.name=ns,service.name=a")
	f.Add(",,=,==,a=b=c")
	f.Fuzz(func(t *testing.T, s string) { ParseBaggage(s) })
}

//ambit:feature model-cost
func TestEndAllocations(t *testing.T) {
	b := newBench(t, false, "off")
	f := facts()
	n := testing.AllocsPerRun(100, func() {
		c := b.table.Accept(b.pod, Source)
		c.Open(f)
		c.End(nil)
	})
	if n > 3 { // the record, its place in the table, the cause
		t.Errorf("%v allocations per connection", n)
	}
}
