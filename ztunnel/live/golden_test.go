package live

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
)

var update = flag.Bool("update", false, "write the golden files")

// stamp is what every line begins with; in JSON it is the field time.
var stamp = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z`)

// cases write a line or two each, with every kind of connection there is.
func cases(b *bench, title func(string)) {
	complete := func(what string, r Reporter, f Facts, err error) {
		title(what)
		c := b.table.Accept(b.pod, r)
		c.Open(f)
		c.Count(fixed{received: 67, sent: 490})
		b.now = b.now.Add(13 * time.Millisecond)
		c.End(err)
	}
	at := netip.MustParseAddrPort
	direct := facts()
	complete("out of a pod, through a tunnel", Source, direct, nil)
	complete("into a pod, through a tunnel", Destination, direct, nil)

	waypoint := &mesh.Workload{Name: "waypoint-5d9-x", Namespace: "prod", ServiceAccount: "waypoint", CanonicalName: "waypoint"}
	f := direct
	f.Destination, f.DestinationID, f.Authority, f.Dst = waypoint, waypoint.Identity(), "10.96.1.1:80", at("10.244.0.50:15008")
	complete("to a waypoint: the authority is what was dialled", Source, f, nil)
	f = direct
	f.Source, f.SourceID = waypoint, waypoint.Identity()
	complete("from a waypoint", Destination, f, nil)
	f.Client, f.ClientID = at("10.244.0.24:46238"), client.Identity()
	complete("from a waypoint that says for whom", Destination, f, nil)
	f = direct
	f.Double, f.Authority = true, "echo.prod.svc.cluster.local:80"
	f.Destination = ParseBaggage("k8s.cluster.name=west,k8s.namespace.name=prod,k8s.deployment.name=echo,service.name=echo").Record(server.Identity())
	f.Dst = at("192.0.2.7:15008")
	complete("to another network, through its gateway: who answers is what the answer says", Source, f, nil)

	plain := Facts{Src: direct.Src, Dst: at("10.244.0.42:8080"), Original: direct.Original, Source: client, Destination: server, Service: service}
	complete("out of a pod, in plaintext to a workload", Source, plain, nil)
	complete("into a pod, in plaintext", Destination, plain, nil)
	complete("to an address that nobody has", Source, Facts{Src: direct.Src, Dst: at("192.0.2.1:443"), Original: at("192.0.2.1:443"), Source: client}, nil)
	complete("from an address that nobody has", Destination, Facts{Src: at("192.0.2.1:5555"), Dst: at("10.244.0.42:8080"), Destination: server}, nil)
	f = plain
	f.Src, f.Dst = at("[fd00::1]:46238"), at("[fd00::2]:8080")
	f.Destination = &mesh.Workload{CanonicalName: "vm", Namespace: "prod"}
	complete("IPv6, to a workload that has no name", Source, f, nil)

	complete("refused by policy", Destination, direct, Errorf(PolicyDenied, "connection closed due to policy rejection: explicitly denied by: prod/deny-all"))
	complete("refused by the peer", Source, direct, Errorf(PeerDenied, "http status: 401 for 10.244.0.42:8080"))
	complete("port 15008 is blocked", Source, direct, Errorf(HBONETimeout, "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: i/o timeout"))
	complete("nothing to connect to", Source, plain, Errorf(NoHealthyUpstream, "no healthy upstream: 10.96.1.1:80"))
	complete("reset by the client, which is no error of ours", Source, direct, Errorf(ClientReset, "connection reset by peer"))
	complete("an error of several kinds of characters", Source, direct, Errorf(Internal, "a \"quoted\" \\ word,\ta tab,\na line, \x01 and ü \xff"))
	title("cut by a change of policy")
	c := b.table.Accept(b.pod, Destination)
	c.Open(direct)
	c.Cut(Errorf(PolicyChanged, "connection closed due to policy change: explicitly denied by: prod/deny-all"))
	c.End(fmt.Errorf("what the copy saw"))
	title("cut at the end of ztunnel")
	c = b.table.Accept(b.pod, Source)
	c.Open(direct)
	c.Cut(Errorf(Drained, "connection closed due to connection drain"))
	c.End(nil)
	title("refused before the parties were known")
	b.table.Accept(b.pod, Destination).Deny(direct.Src, direct.Dst, Errorf(AddressMismatch, "ip mismatch: 10.244.0.42 != 10.0.0.1"))
	title("refused before there was a socket of ours")
	b.table.Accept(b.pod, Destination).Deny(direct.Src, netip.AddrPort{}, Errorf(NotTLS, "handshake: first record does not look like a TLS handshake"))
	title("older than enrolment")
	b.table.Destroyed(b.pod, Facts{Src: direct.Src, Dst: at("10.244.0.42:8080"), Source: client, Destination: server},
		Errorf(OlderDenied, "connection closed due to policy rejection: explicitly denied by: istio-system/istio_converted_static_strict"))
	title("open for long, then complete")
	c = b.table.Accept(b.pod, Source)
	c.Open(direct)
	c.Count(fixed{received: 1 << 40, sent: 3})
	b.now = b.now.Add(59 * time.Second)
	b.table.report(b.now)
	b.now = b.now.Add(time.Second)
	b.table.report(b.now)
	b.table.report(b.now.Add(59 * time.Second))
	b.now = b.now.Add(61 * time.Second)
	b.table.report(b.now)
	c.End(nil)
	b.table.report(b.now.Add(time.Hour))
}

// TestAccessLogGolden: every kind of line there is, to the byte, as text and as JSON.
//
//ambit:feature telemetry-access-log telemetry-progress
func TestAccessLogGolden(t *testing.T) {
	for file, asJSON := range map[string]bool{"testdata/access.txt": false, "testdata/access.json.txt": true} {
		b := newBench(t, asJSON, "debug")
		b.table.limit = newLimiter(1000, 1000)
		b.table.progress = time.Minute
		b.pod.Name = "shell-1"
		var out strings.Builder
		flush := func() {
			for line := range strings.Lines(b.out.String()) {
				if n := len(stamp.FindAllString(line, -1)); n != 1 {
					t.Errorf("%d stamps in %q", n, line)
				}
				if asJSON && !json.Valid([]byte(line)) {
					t.Errorf("no JSON: %s", line)
				}
				out.WriteString(stamp.ReplaceAllString(line, "STAMP"))
			}
			b.out.Reset()
		}
		cases(b, func(title string) { flush(); fmt.Fprintf(&out, "# %s\n", title) })
		flush()
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, wants := strings.Split(out.String(), "\n"), strings.Split(string(want), "\n")
		for i := range max(len(got), len(wants)) {
			if i >= len(got) || i >= len(wants) || got[i] != wants[i] {
				t.Errorf("%s line %d differs (go test -update, then look)\n%s", file, i+1, strings.Join(got[min(i, len(got)-1):min(i+2, len(got))], "\n"))
				break
			}
		}
	}
}

// TestPolicyDecisionLog: what policy says is in the log at level debug, or info if
// asked for, with what dry-run policies would have said.
//
//ambit:feature policy-decision-log
func TestPolicyDecisionLog(t *testing.T) {
	dry := &mesh.Policy{Name: "dry", Namespace: "prod", Scope: mesh.ScopeNamespace, Action: mesh.Deny, DryRun: true, Rules: []mesh.Rule{{}}}
	bl := mesh.NewBuilder(nil)
	bl.Apply(mesh.Delta{Workloads: []*mesh.Workload{server}, Policies: []*mesh.Policy{dry}})
	s := bl.Build()
	check := &Check{Workload: server, Conn: authz.Conn{Peer: client.Identity(), Src: facts().Src, Dst: netip.MustParseAddrPort("10.244.0.42:8080")}}
	const conn = `src.addr=10.244.0.24:46238 src.identity="spiffe://cluster.local/ns/default/sa/default" dst.addr=10.244.0.42:8080 dst.workload="echo-1" dst.namespace="prod"`
	for _, tt := range []struct{ levels, want string }{{"info", ""}, {"policy=debug", "debug"}} {
		b := newBench(t, false, tt.levels)
		b.table.Decided(s, check)
		b.table.Decided(nil, check)
		got := strings.Join(b.lines(), "\n")
		want := ""
		if tt.want != "" {
			want = tt.want + "\tpolicy\tdry-run: deny policy match\tpolicy=\"prod/dry\" " + conn + "\n" + tt.want + "\tpolicy\tno allow policies, allow\t" + conn
		}
		if got != want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.levels, got, want)
		}
	}
	b := newBench(t, true, "info")
	b.table.policyLevel = slog.LevelInfo
	b.table.Decided(s, check)
	if l := b.out.String(); !strings.Contains(l, `"level":"info"`) || !strings.Contains(l, `"scope":"policy","message":"dry-run: deny policy match","policy":"prod/dry","src.addr":"10.244.0.24:46238"`) {
		t.Error(l)
	}
}

// TestProgressIsOff: without an interval an open connection has no line.
//
//ambit:feature telemetry-progress
func TestProgressIsOff(t *testing.T) {
	b := newBench(t, false, "info")
	c := b.table.Accept(b.pod, Source)
	c.Open(facts())
	b.table.report(b.now.Add(1000 * time.Hour))
	if l := b.lines(); len(l) > 0 {
		t.Errorf("%q", l)
	}
	c.End(nil)
}
