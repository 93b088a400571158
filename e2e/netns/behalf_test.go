package netns_test

import (
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
)

// A waypoint in front of a workload changes nothing that policies say of clients:
// it passes on for whom it connects, and the workload's ztunnel judges that
// client, at the start and at every change. Nobody else is believed.
//
//ambit:feature waypoint-original-client waypoint-required
func TestOriginalClient(t *testing.T) { each(t, originalClient, onlyIPv4, dual) }

func originalClient(t *testing.T, f families) {
	w := newWorldOf(t, f)
	good, bad, server := w.newPod(w.a, "good"), w.newPod(w.a, "bad"), w.newPod(w.b, "server")
	way, mute, liar := w.newPod(w.b, "way"), w.newPod(w.b, "mute"), w.newPod(w.a, "liar")
	server.listen(8080, echo)
	way.serveHBONE(15008, passOn(server, 8080, true))
	mute.serveHBONE(15008, passOn(server, 8080, false)) // as of another make
	w.announce(way, true)
	w.announce(mute, true)
	w.enrol(good, bad, server)
	svc := func(n int, host string, through *pod) *mesh.Service {
		return w.service(host, n, []mesh.Port{{ServicePort: 80, TargetPort: 8080}}, func(s *mesh.Service) { s.Waypoint = gatewayOf(through, 15008) })
	}
	w.control.apply(mesh.Delta{Services: []*mesh.Service{svc(1, "web.example", way), svc(2, "mute.example", mute)}})
	policies := []string{}
	server.change = func(rec *mesh.Workload) { member("web.example", "mute.example")(rec); rec.Policies = policies }
	w.announce(server, true)
	exact := func(ids ...string) (out []mesh.StringMatch) {
		for _, id := range ids {
			out = append(out, mesh.StringMatch{Kind: mesh.Exact, Value: id})
		}
		return out
	}
	policy := func(name string, action mesh.Action, m mesh.Match) *mesh.Policy {
		return &mesh.Policy{Name: name, Namespace: "demo", Scope: mesh.ScopeWorkloadSelector, Action: action,
			Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{m}}}}}}
	}
	attach := func(ps ...*mesh.Policy) {
		policies = nil
		for _, p := range ps {
			policies = append(policies, p.Key())
		}
		w.control.apply(mesh.Delta{Policies: ps, Workloads: []*mesh.Workload{server.record(true)}})
		w.control.settled(t)
	}
	byWay, byMute := f.vipAt(1, 80), f.vipAt(2, 80)
	served := func(t *testing.T, p *pod, to string) {
		t.Helper()
		c := p.mustDial(t, to)
		pingPong(t, c, "hello")
		c.Close()
	}

	t.Run("the client that policy names", func(t *testing.T) {
		attach(policy("only-good", mesh.Allow, mesh.Match{Principals: exact(good.id().Principal()), SourceIPs: prefixesOf(good)}))
		served(t, good, byWay)
		served(t, good, server.at(8080))
		w.b.zt.wantLog(t, "connection complete", `src.identity="`+way.id().String()+`"`, "client.addr="+good.host(),
			`client.identity="`+good.id().String()+`"`, `dst.workload="server"`, `direction="inbound"`)
	})
	t.Run("another client", func(t *testing.T) {
		refused(t, bad, byWay)
		w.b.zt.wantLog(t, "connection complete", `src.identity="`+way.id().String()+`"`, `client.identity="`+bad.id().String()+`"`, `reason="policy_denied"`)
		w.a.zt.wantLog(t, `src.workload="bad"`, `reason="peer_unavailable"`)
	})
	t.Run("a waypoint that does not say for whom is itself the client", func(t *testing.T) {
		refused(t, good, byMute)
		w.b.zt.wantLog(t, "connection complete", `src.identity="`+mute.id().String()+`"`, `reason="policy_denied"`)
	})
	t.Run("who is no waypoint is not believed", func(t *testing.T) {
		hb := &hboneServer{t: t, pod: liar, src: w.control.source(t, liar.id())}
		c, err := hb.dialHBONE(t.Context(), netip.AddrPortFrom(server.addr, 15008), server.id())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Open(t.Context(), hbone.Request{Authority: server.at(8080), Header: []hbone.Header{
			{Name: hbone.ClientHeader, Value: good.id().String()}, {Name: "forwarded", Value: `for="` + good.at(1) + `"`}}})
		wantStatus(t, err, 401)
		line := w.b.zt.wantLog(t, "connection complete", `src.identity="`+liar.id().String()+`"`, `reason="policy_denied"`)
		if strings.Contains(line, "client.identity") {
			t.Errorf("the log believes it: %s", line)
		}
	})
	t.Run("a policy that names the waypoint means it", func(t *testing.T) {
		attach(policy("only-way", mesh.Allow, mesh.Match{Principals: exact(way.id().Principal(), mute.id().Principal())}))
		served(t, bad, byWay)
		served(t, bad, byMute)
		refused(t, bad, server.at(8080))
	})
	t.Run("open connections are judged again by their client", func(t *testing.T) {
		attach()
		of := map[*pod]io.ReadWriteCloser{}
		for _, p := range []*pod{good, bad} {
			c := p.mustDial(t, byWay)
			pingPong(t, c, "before")
			of[p] = c
		}
		attach(policy("not-bad", mesh.Deny, mesh.Match{Principals: exact(bad.id().Principal())}))
		if _, err := of[bad].Read(make([]byte, 1)); err == nil {
			t.Error("the connection of the denied client goes on")
		}
		w.b.zt.wantLog(t, "connection complete", `client.identity="`+bad.id().String()+`"`, "demo/not-bad", `reason="policy_changed"`)
		if _, err := io.WriteString(of[good], "x"); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(of[good], make([]byte, 1)); err != nil {
			t.Errorf("the other client's connection: %v", err)
		}
	})
	t.Run("a waypoint that is required", func(t *testing.T) {
		attach(policy(mesh.RequireWaypointPrefix+"web", mesh.Deny, mesh.Match{NotPrincipals: exact(way.id().Principal())}))
		served(t, bad, byWay)
		refused(t, good, byMute)
		refused(t, good, server.at(8080))
		w.b.zt.wantLog(t, "connection complete", `src.identity="`+good.id().String()+`"`, `reason="waypoint_required"`)
		plain := w.newPod(w.a, "plain")
		w.control.settled(t)
		refused(t, plain, server.at(8080))
		w.b.zt.wantLog(t, "connection complete", "src.addr="+plain.host(), `reason="waypoint_required"`)
	})
}

func prefixesOf(p *pod) (out []netip.Prefix) {
	for _, a := range p.addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}
