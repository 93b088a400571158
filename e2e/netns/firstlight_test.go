package netns_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/cni/redirect"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

func TestProofConstantsAgree(t *testing.T) {
	if live.ProofAddr4 != redirect.ProofAddr4 || live.ProofAddr6 != redirect.ProofAddr6 || live.ProofPort != redirect.ProofPort {
		t.Errorf("ztunnel has %s, %s, %d; the agent %s, %s, %d", live.ProofAddr4, live.ProofAddr6, live.ProofPort,
			redirect.ProofAddr4, redirect.ProofAddr6, redirect.ProofPort)
	}
}

// HTTP between pods on two nodes and on one, by address and by virtual
// address: plaintext before the pods are meshed, never after.
//
//ambit:feature traffic-meshed
func TestFirstLight(t *testing.T) { each(t, firstLight) }

func firstLight(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server, near := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.a, "near")
	server.serveHTTP(8080)
	near.serveHTTP(8080)
	w.control.settled(t)

	wire := capturing(t, w.a.ns, "wire0")
	client.mustCurl(t, server.at(8080), "token-before-the-mesh")
	eventually(t, "plaintext on the wire before the mesh", func() error {
		if !wire.contains("token-before-the-mesh") {
			return errors.New("not captured")
		}
		return nil
	})

	w.enrol(client, server, near)
	vips := f.vip(10)
	w.serviceAt("web", vips, 80, 8080, server)

	t.Run("two nodes", func(t *testing.T) {
		body := client.mustCurl(t, server.at(8080), "token-of-two-nodes")
		if !client.sent(body) {
			t.Errorf("the server sees %q, not the client's address %s", body, client.addr)
		}
		for _, z := range []*process{w.a.zt, w.b.zt} {
			z.wantLog(t, "connection complete", "src.addr="+client.host(), `src.identity="`+client.id().String()+`"`,
				`dst.identity="`+server.id().String()+`"`, "dst.addr="+server.at(15008), "dst.hbone_addr="+server.at(8080))
		}
	})
	t.Run("one node", func(t *testing.T) {
		body := client.mustCurl(t, near.at(8080), "token-of-one-node")
		if !client.sent(body) {
			t.Errorf("the server sees %q, not the client's address %s", body, client.addr)
		}
		w.a.zt.wantLog(t, "connection complete", `dst.workload="near"`, `direction="inbound"`, `src.identity="`+client.id().String()+`"`)
		w.a.zt.wantLog(t, "connection complete", `dst.workload="near"`, `direction="outbound"`)
	})
	t.Run("virtual address", func(t *testing.T) {
		client.mustCurl(t, netip.AddrPortFrom(vips[len(vips)-1], 80).String(), "token-of-the-service")
		w.a.zt.wantLog(t, "connection complete", `dst.service="web.demo.svc.cluster.local"`, "dst.hbone_addr="+server.at(8080), `direction="outbound"`)
		w.b.zt.wantLog(t, "connection complete", `dst.service="web.demo.svc.cluster.local"`, `direction="inbound"`)
	})
	t.Run("metrics", func(t *testing.T) {
		eventually(t, "both sides have counted the connections", func() error {
			for _, c := range []struct {
				n                *node
				reporter, policy string
				want             float64
			}{
				{w.a, `reporter="source"`, "mutual_tls", 3},
				{w.b, `reporter="destination"`, "mutual_tls", 2},
			} {
				for _, name := range []string{"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"} {
					if got := c.n.metric(t, name, c.reporter, `connection_security_policy="`+c.policy+`"`, `response_flags="-"`); got != c.want {
						return errors.New(name + " is not yet what it should be on " + c.n.name)
					}
				}
			}
			return nil
		})
		sent := w.b.metric(t, "istio_tcp_sent_bytes_total", `reporter="destination"`)
		if there := w.a.metric(t, "istio_tcp_sent_bytes_total", `reporter="source"`, `destination_workload="server"`); there != sent || sent == 0 {
			t.Errorf("bytes: the source's ztunnel counted %v, the destination's %v", there, sent)
		}
	})
	if wire.contains("token-of") {
		t.Error("plaintext between the nodes after both pods were meshed")
	}
	if n := wire.lost(t); n > 0 {
		t.Errorf("the capture lost %d frames", n)
	}
}

//ambit:feature traffic-unmeshed
func TestMeshedAndUnmeshed(t *testing.T) { each(t, meshedAndUnmeshed) }

func meshedAndUnmeshed(t *testing.T, f families) {
	w := newWorldOf(t, f)
	in, out := w.newPod(w.a, "in"), w.newPod(w.b, "out")
	in.serveHTTP(8080)
	out.serveHTTP(8080)
	w.enrol(in)

	in.mustCurl(t, out.at(8080), "to-the-unmeshed")
	w.a.zt.wantLog(t, "connection complete", "dst.addr="+out.at(8080), `direction="outbound"`)
	out.mustCurl(t, in.at(8080), "from-the-unmeshed")
	line := w.a.zt.wantLog(t, "connection complete", "src.addr="+out.host(), "dst.addr="+in.at(8080), `direction="inbound"`)
	if strings.Contains(line, "src.identity") {
		t.Errorf("a plaintext client has an identity: %s", line)
	}

	// Into the mesh and out of it again: a call works at every stage.
	w.enrol(out)
	in.mustCurl(t, out.at(8080), "both-meshed")
	w.a.zt.wantLog(t, "connection complete", `dst.identity="`+out.id().String()+`"`)
	w.release(out)
	in.mustCurl(t, out.at(8080), "unmeshed-again")
	out.mustCurl(t, in.at(8080), "unmeshed-again")
	w.release(in)
	in.mustCurl(t, out.at(8080), "nobody-meshed")
}

//ambit:feature policy-refuses
func TestPolicyDenies(t *testing.T) { each(t, policyDenies) }

func policyDenies(t *testing.T, f families) {
	w := newWorldOf(t, f)
	good, bad, server := w.newPod(w.a, "good"), w.newPod(w.a, "bad"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	w.enrol(good, bad, server)
	good.mustCurl(t, server.at(8080), "before-the-policy")
	bad.mustCurl(t, server.at(8080), "before-the-policy")
	w.b.zt.wantLog(t, "connection complete", `src.workload="bad"`) // it is not the policy that ends it

	w.control.apply(mesh.Delta{Policies: []*mesh.Policy{{Name: "only-good", Namespace: "demo", Scope: mesh.ScopeNamespace,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			Principals: []mesh.StringMatch{{Kind: mesh.Exact, Value: good.id().Principal()}}}}}}}}}}})
	w.control.settled(t)

	good.mustCurl(t, server.at(8080), "after-the-policy")
	if body, err := bad.curl(server.at(8080), "after-the-policy"); err == nil {
		t.Fatalf("denied client was answered: %q", body)
	}
	w.b.zt.wantLog(t, "connection complete", `src.workload="bad"`,
		`error="connection closed due to policy rejection: allow policies exist, but none allowed"`, `reason="policy_denied"`)
	w.a.zt.wantLog(t, "connection complete", `src.workload="bad"`, `error="http status: 401`, `reason="peer_denied"`)
	if n := w.b.metric(t, "ambit_connections_failed_total", `reporter="destination"`, `reason="policy_denied"`); n != 1 {
		t.Errorf("ambit_connections_failed_total is %v", n)
	}
	if n := w.b.metric(t, "istio_tcp_connections_failed_total", `reporter="destination"`, `response_flags="DENY"`); n != 1 {
		t.Errorf("istio_tcp_connections_failed_total is %v", n)
	}
}

// A policy that comes while a connection is open closes it, also when it
// reaches the workload by selector.
//
//ambit:feature policy-live
func TestPolicyClosesLiveConnections(t *testing.T) { each(t, policyClosesLiveConnections) }

func policyClosesLiveConnections(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.listen(9000, echo)
	w.enrol(client, server)
	c := client.mustDial(t, server.at(9000))
	pingPong(t, c, "hello")

	server.change = func(rec *mesh.Workload) { rec.Policies = []string{"demo/no-client"} }
	// First the workload alone: a policy that has not come closes nothing.
	w.announce(server, true)
	w.control.settled(t)
	pingPong(t, c, "still here")
	w.control.apply(mesh.Delta{Policies: []*mesh.Policy{{Name: "no-client", Namespace: "demo", Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			SourceIPs: []netip.Prefix{netip.PrefixFrom(client.addr, client.addr.BitLen())}}}}}}}}}})
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("connection goes on")
	}
	w.b.zt.wantLog(t, "connection complete", "connection closed due to policy change", "demo/no-client", `reason="policy_changed"`)
}
