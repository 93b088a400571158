package netns_test

import (
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Pods of one family and of both behind one dual-stack service: the family that
// was dialled is kept as long as somebody has it; a pod of one family is found
// through either address of the service; and policy sees each connection's own
// address.
func TestFamiliesMeet(t *testing.T) {
	w := newWorldOf(t, dual)
	client := w.newPod(w.a, "client")
	both, old, fresh := w.newPod(w.b, "both"), w.newPodOf(w.b, "old", onlyIPv4), w.newPodOf(w.b, "fresh", onlyIPv6)
	for _, p := range []*pod{both, old, fresh} {
		p.serveHTTP(8080)
	}
	w.enrol(client, both, old, fresh)
	all, lone := dual.vip(30), dual.vip(31)
	w.serviceAt("all", all, 80, 8080, both, old, fresh)
	w.serviceAt("lone", lone, 80, 8080, fresh)
	wire := capturing(t, w.a.ns, "wire0")
	for i := range dual {
		to := netip.AddrPortFrom(all[i], 80).String()
		for range 20 {
			if body := client.mustCurl(t, to, "token-by-family"); !sentFrom(body, client.addrs[i]) {
				t.Errorf("%s: the server sees %q, want %s", to, body, client.addrs[i])
			}
		}
		to = netip.AddrPortFrom(lone[i], 80).String()
		if body := client.mustCurl(t, to, "token-lone"); !sentFrom(body, client.addrs[1]) {
			t.Errorf("%s: %q, want the family the server has, %s", to, body, client.addrs[1])
		}
	}
	if wire.contains("token-") {
		t.Error("plaintext between the nodes")
	}

	// Refused by its IPv6 address, the client is served under the other.
	both.change = func(rec *mesh.Workload) { rec.Policies = []string{"demo/no-six"} }
	w.control.apply(mesh.Delta{Policies: []*mesh.Policy{{Name: "no-six", Namespace: "demo", Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			SourceIPs: []netip.Prefix{netip.MustParsePrefix("fd77:0:0:1::/64")}}}}}}}}}})
	w.announce(both, true)
	w.control.settled(t)
	client.mustCurl(t, netip.AddrPortFrom(both.addrs[0], 8080).String(), "over-IPv4")
	if body, err := client.curl(netip.AddrPortFrom(both.addrs[1], 8080).String(), "over-IPv6"); err == nil {
		t.Errorf("answered over IPv6: %q", body)
	}
	w.b.zt.wantLog(t, "connection complete", "src.addr="+client.host(), `reason="policy_denied"`)
}
