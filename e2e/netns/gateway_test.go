package netns_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/vishvananda/netlink"
)

// What is in another network is reached through the gateway of that network: the
// gateway sees a tunnel for a service by its name, and in it one that only the
// server can read. The logs of both ztunnels know who is at the other end.
//
//ambit:feature gateway-double-hbone gateway-failover
func TestDoubleHBONE(t *testing.T) { each(t, doubleHBONE, onlyIPv4, dual) }

func doubleHBONE(t *testing.T, f families) {
	w := newWorldOf(t, f)
	in := func(network string) func(*mesh.Workload) { return func(rec *mesh.Workload) { rec.Network = network } }
	client, local, server := w.newPod(w.a, "client"), w.newPod(w.a, "local"), w.newPod(w.b, "server")
	client.change, local.change = in("near"), in("near")
	gateway, lame := w.newPod(w.b, "gateway"), w.newPod(w.b, "lame")
	say := func(who string) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			io.WriteString(c, who+"\n")
			io.Copy(c, c)
			c.CloseWrite()
		}
	}
	server.listen(8080, say("far"))
	local.listen(8080, say("near"))
	hb := gateway.serveHBONE(15008, gatewayTo(server))
	w.tells(gateway, func(rec *mesh.Workload) { in("far")(rec); member("gw.example")(rec) })
	w.tells(lame, in("far")) // nobody serves there

	atNear := func(s *mesh.Service) {
		for i := range s.Addresses {
			s.Addresses[i].Network = "near"
		}
		s.SubjectAltNames = []string{server.id().String()}
	}
	ports := []mesh.Port{{ServicePort: 80, TargetPort: 8080}}
	svc := func(n int, change func(*mesh.Service)) *mesh.Service {
		return w.service(fmt.Sprintf("web%d.example", n), n, ports, func(s *mesh.Service) {
			atNear(s)
			if change != nil {
				change(s)
			}
		})
	}
	byAddress := gatewayOf(gateway, 15008)
	byAddress.Address.Network = "far"
	lost := gatewayOf(lame, 15008)
	lost.Address.Network = "far"
	failover := func(s *mesh.Service) {
		s.LoadBalancing = mesh.LoadBalancing{Mode: mesh.ModeFailover, Preference: []mesh.Scope{mesh.ScopeNetwork}}
	}
	// What clusters tell each other: one workload for all of a service in a network.
	split := func(name, host string, g *mesh.GatewayAddress) *mesh.Workload {
		return &mesh.Workload{UID: "far/SplitHorizonWorkload/" + name, Name: name, Namespace: "demo", Network: "far", Protocol: mesh.ProtocolHBONE,
			NetworkGateway: g, Services: map[string][]mesh.Port{"demo/" + host: nil}}
	}
	apart := split("apart", "web6.example", nil)
	apart.Addresses = server.addrs // in a network to which no gateway leads
	w.control.apply(mesh.Delta{
		Services: []*mesh.Service{w.service("gw.example", 90, []mesh.Port{{ServicePort: 15009, TargetPort: 15008}}, nil),
			svc(1, nil), svc(2, nil), svc(3, failover), svc(4, failover), svc(5, func(s *mesh.Service) { s.SubjectAltNames = []string{local.id().String()} }), svc(6, nil)},
		Workloads: []*mesh.Workload{
			split("split1", "web1.example", byAddress), split("split2", "web2.example", gatewayNamed("gw.example", 15009)),
			split("split3", "web3.example", byAddress), split("split4a", "web4.example", lost), split("split4b", "web4.example", byAddress),
			split("split5", "web5.example", byAddress), apart,
		},
	})
	local.change = func(rec *mesh.Workload) { in("near")(rec); member("web3.example")(rec) }
	server.change = func(rec *mesh.Workload) {
		in("far")(rec)
		// The far cluster's services are of the same names; how its pods serve them is
		// for its own ztunnel to know.
		rec.Services = map[string][]mesh.Port{}
		for i := range 6 {
			rec.Services[fmt.Sprintf("demo/web%d.example", i+1)] = []mesh.Port{{ServicePort: 80, TargetPort: 8080}}
		}
		rec.Capacity = new(uint32) // and the near cluster does not know it
	}
	w.enrol(client, local, server)

	// A gateway with a waypoint behind it, both in one process.
	double := w.newPod(w.b, "double")
	inner := &hboneServer{t: t, pod: double, src: w.control.source(t, double.id())}
	outer := double.serveHBONE(15008, inner.inside)
	w.tells(double, in("far"))
	byDouble := gatewayOf(double, 15008)
	byDouble.Address.Network = "far"
	w.control.apply(mesh.Delta{
		Services: []*mesh.Service{svc(7, func(s *mesh.Service) { s.Waypoint = gatewayNamed("farway.example", 15008) }),
			w.service("farway.example", 91, []mesh.Port{{ServicePort: 15008, TargetPort: 15008}},
				func(s *mesh.Service) { s.SubjectAltNames = []string{double.id().String()} })},
		Workloads: []*mesh.Workload{split("farway", "farway.example", byDouble)},
	})
	w.control.settled(t)

	talk := func(t *testing.T, to, who string) {
		t.Helper()
		c := client.mustDial(t, to)
		io.WriteString(c, "hello")
		c.CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != who+"\nhello" {
			t.Fatalf("%q, %v", got, err)
		}
		c.Close()
	}
	for n, name := range map[int]string{1: "gateway by address", 2: "gateway by host name, on the port its service maps"} {
		t.Run(name, func(t *testing.T) {
			host := fmt.Sprintf("web%d.example:80", n)
			talk(t, f.vipAt(n, 80), "far")
			if r := hb.last(); r.Authority != host || r.Get("x-forwarded-network") != "" || !strings.HasSuffix(r.Get("forwarded"), ";host="+strings.TrimSuffix(host, ":80")) {
				t.Errorf("the gateway was asked %+v", r)
			}
			w.a.zt.wantLog(t, "connection complete", "dst.addr="+gateway.at(15008), "dst.hbone_addr="+host, `dst.workload="server"`,
				`dst.identity="`+server.id().String()+`"`, `dst.cluster="test"`, `direction="outbound"`)
			w.b.zt.wantLog(t, "connection complete", `src.workload="client"`, `src.identity="`+client.id().String()+`"`,
				"dst.addr="+server.at(15008), "dst.hbone_addr="+host, `direction="inbound"`)
		})
	}
	t.Run("waypoint in the other network", func(t *testing.T) {
		client.hello(t, f.vipAt(7, 80), "behind two")
		before, after := outer.last(), inner.last()
		if before.Authority != "web7.example:80" || after.Authority != before.Authority {
			t.Errorf("asked %s and %s", before.Authority, after.Authority)
		}
		wantHeader(t, before, "x-forwarded-network", "")
		wantHeader(t, after, "x-forwarded-network", "near")
		for _, h := range []string{"baggage", "forwarded", "traceparent"} {
			wantHeader(t, after, h, before.Get(h))
		}
		w.a.zt.wantLog(t, "connection complete", "dst.addr="+double.at(15008), "dst.hbone_addr=web7.example:80", `dst.workload="double"`,
			`dst.identity="`+double.id().String()+`"`)
	})
	t.Run("metrics have the workloads of both networks", func(t *testing.T) {
		for _, n := range []struct {
			node     *node
			reporter string
		}{{w.a, "source"}, {w.b, "destination"}} {
			eventually(t, n.reporter, func() error {
				if got := n.node.metric(t, "istio_tcp_connections_opened_total", `reporter="`+n.reporter+`"`, `source_workload="client"`,
					`destination_workload="server"`, `destination_principal="`+server.id().String()+`"`, `connection_security_policy="mutual_tls"`); got != 2 {
					return fmt.Errorf("%v connections", got)
				}
				return nil
			})
		}
	})
	t.Run("the own network first", func(t *testing.T) {
		talk(t, f.vipAt(3, 80), "near")
		local.change = func(rec *mesh.Workload) {
			in("near")(rec)
			member("web3.example")(rec)
			rec.Health = mesh.Unhealthy
		}
		w.announce(local, true)
		w.control.settled(t)
		talk(t, f.vipAt(3, 80), "far")
	})
	t.Run("another gateway when one does not answer", func(t *testing.T) {
		for range 8 { // half of them choose the one where nobody is
			talk(t, f.vipAt(4, 80), "far")
		}
	})
	t.Run("the server must be who the service says", func(t *testing.T) {
		refused(t, client, f.vipAt(5, 80))
		w.a.zt.wantLog(t, "connection complete", "dst.hbone_addr=web5.example:80", "inner tunnel", `reason="unexpected_identity"`)
	})
	t.Run("no gateway", func(t *testing.T) {
		refused(t, client, f.vipAt(6, 80))
		w.a.zt.wantLog(t, "connection complete", `network \"far\", which has no gateway`, `reason="unknown_gateway"`)
	})
	t.Run("ends are passed on", func(t *testing.T) {
		c := client.mustDial(t, f.vipAt(1, 80))
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if dump, err := w.a.get("127.0.0.1:15000", "/config_dump"); err != nil || strings.Count(dump, `"DOUBLEHBONE"`) != 1 {
			t.Errorf("the dump has %d such connections: %v", strings.Count(dump, `"DOUBLEHBONE"`), err)
		}
		w.control.apply(mesh.Delta{Policies: []*mesh.Policy{{Name: "nobody", Namespace: "demo", Scope: mesh.ScopeNamespace, Action: mesh.Deny,
			Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{DestinationPorts: []uint16{8080}}}}}}}}}})
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the far ztunnel's reset came as %v", err)
		}
		w.b.zt.wantLog(t, "connection complete", `src.workload="client"`, `reason="policy_changed"`)
	})
}

// A pod of a meshed network reads ztunnel's metrics through the mesh: mutual TLS,
// with ztunnel's own identity, and under policy. Nothing of ztunnel that is not for
// others is reached so.
//
//ambit:feature own-metrics
func TestOwnMetrics(t *testing.T) { each(t, ownMetrics, onlyIPv4) }

func ownMetrics(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, stranger := w.newPod(w.a, "client"), w.newPod(w.a, "stranger")
	at := netip.MustParseAddr(f.used().wireAddr(2))
	zt := &mesh.Workload{UID: "test//Pod/ambit-system/ztunnel-node-b", Name: "ztunnel-node-b", Namespace: "ambit-system", ServiceAccount: "ztunnel",
		Node: "node-b", Addresses: []netip.Addr{at}, Protocol: mesh.ProtocolHBONE, NativeTunnel: true, WorkloadName: "ztunnel", ClusterID: "test"}
	w.control.apply(mesh.Delta{Workloads: []*mesh.Workload{zt}, Policies: []*mesh.Policy{{Name: "readers", Namespace: "ambit-system",
		Scope: mesh.ScopeNamespace, Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			Principals: []mesh.StringMatch{{Kind: mesh.Exact, Value: client.id().Principal()}}, DestinationPorts: []uint16{15000, 15006, 15020}}}}}}}}}})
	w.enrol(client, stranger)

	to := netip.AddrPortFrom(at, 15020).String()
	body, err := client.page(to, "/metrics")
	if err != nil || !strings.Contains(body, "istio_build{") || !strings.HasSuffix(body, "# EOF\n") {
		t.Fatalf("%.200q, %v", body, err)
	}
	w.a.zt.wantLog(t, "connection complete", "dst.addr="+netip.AddrPortFrom(at, 15008).String(), "dst.hbone_addr="+to, `direction="outbound"`)
	w.b.zt.wantLog(t, "connection complete", `src.identity="`+client.id().String()+`"`, `dst.workload="ztunnel-node-b"`,
		`dst.identity="spiffe://cluster.local/ns/ambit-system/sa/ztunnel"`, "dst.hbone_addr="+to, `direction="inbound"`)
	if n := w.b.metric(t, "istio_tcp_connections_opened_total", `reporter="destination"`, `connection_security_policy="mutual_tls"`,
		`destination_principal="spiffe://cluster.local/ns/ambit-system/sa/ztunnel"`); n != 1 {
		t.Errorf("%v connections", n)
	}
	for port, reason := range map[uint16]string{15000: "connect_refused", 15006: "self_call"} { // admin is on loopback
		at := netip.AddrPortFrom(at, port).String()
		refused(t, client, at)
		w.b.zt.wantLog(t, `reason="`+reason+`"`, `direction="inbound"`)
	}
	refused(t, stranger, to)
	w.b.zt.wantLog(t, `src.identity="`+stranger.id().String()+`"`, `dst.workload="ztunnel-node-b"`, `reason="policy_denied"`)
}

// An address that now has another pod is no way into it: a server that is not who
// was meant gets nothing, and where others serve they do.
//
//ambit:feature address-reuse
func TestAddressOfAnother(t *testing.T) { each(t, addressOfAnother, onlyIPv4) }

func addressOfAnother(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, heir, other := w.newPod(w.a, "client"), w.newPod(w.b, "heir"), w.newPod(w.b, "other")
	heirSaw := make(chan struct{}, 100)
	heir.listen(8080, func(*net.TCPConn) { heirSaw <- struct{}{} })
	other.listen(8080, echo)
	w.enrol(client, heir, other)
	w.serviceAt("web", f.vip(1), 80, 8080, other)
	// The pod that had the address before is gone; its record is still there.
	gone := &mesh.Workload{UID: "test//Pod/demo/gone", Name: "gone", Namespace: "demo", ServiceAccount: "gone", Addresses: heir.addrs,
		Protocol: mesh.ProtocolHBONE, Node: "node-b", ClusterID: "test", Services: map[string][]mesh.Port{"demo/web.demo.svc.cluster.local": nil}}
	w.control.apply(mesh.Delta{Workloads: []*mesh.Workload{gone}})
	w.control.settled(t)
	for range 12 {
		c := client.mustDial(t, f.vipAt(1, 80))
		pingPong(t, c, "whoever serves")
		c.Close()
	}
	refused(t, client, heir.at(8080))
	w.a.zt.wantLog(t, "connection complete", "dst.hbone_addr="+heir.at(8080), `dst.workload="gone"`, `reason="unexpected_identity"`)
	select {
	case <-heirSaw:
		t.Error("the pod that has the address now was connected to")
	default:
	}
}

// A pod that died without a word, and one of the same name and address in its
// place, as a StatefulSet has it: the tunnel to the dead one is found out by the
// first that wants to use it, who is served by the new one all the same.
//
//ambit:feature tunnel-dead-pod
func TestSuccessorAtTheAddress(t *testing.T) { each(t, successorAtTheAddress, onlyIPv4) }

func successorAtTheAddress(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, first := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	first.listen(9000, echo)
	w.enrol(client, first)
	open := client.mustDial(t, first.at(9000))
	pingPong(t, open, "hello")

	within(t, w.b.ns, func() error {
		l, err := netlink.LinkByName(first.device)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	w.b.agent.release(first)
	w.pods-- // the next one gets what this one had
	second := w.newPod(w.b, "server")
	if second.addr != first.addr || second.meshUID() != first.meshUID() {
		t.Fatalf("%s is not at %s", second.addr, first.addr)
	}
	second.listen(9000, echo)
	w.enrol(second)

	c := client.mustDial(t, second.at(9000))
	pingPong(t, c, "hello, successor")
	if _, err := open.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection to the dead pod: %v, not a reset", err)
	}
	w.a.zt.wantLog(t, "connection complete", "dst.hbone_addr="+first.at(9000), `reason="tunnel_lost"`)
}
