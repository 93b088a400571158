package netns_test

import (
	"bufio"
	"bytes"
	wire "encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
)

// Connections go to waypoints, however these are named and whatever they are of;
// what the waypoint is asked for, and what the log says, is what Istio's ztunnel
// asks for and says.
//
//ambit:feature waypoint-workload waypoint-service waypoint-service-host-name waypoint-host-name waypoint-unknown security-tunnels-apart
func TestWaypoints(t *testing.T) { each(t, waypoints, onlyIPv4, dual) }

func waypoints(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server, way := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.b, "way")
	server.listen(8080, echo)
	hb := way.serveHBONE(15008, answer)
	w.enrol(client, server)
	// 15010 is where the waypoint's service has its tunnels.
	wayService := w.service("way.example", 90, []mesh.Port{{ServicePort: 15010, TargetPort: 15008}}, func(s *mesh.Service) {
		s.SubjectAltNames = []string{"spiffe://cluster.local/ns/far/sa/way"}
	})
	w.tells(way, member("way.example"))
	named := w.newPod(w.b, "named") // known by a host name of its own
	hbNamed := named.serveHBONE(15008, answer)
	w.tells(named, func(rec *mesh.Workload) { rec.Hostname = "named.example" })

	port80 := []mesh.Port{{ServicePort: 80, TargetPort: 8080}}
	svc := func(n int, g *mesh.GatewayAddress) *mesh.Service {
		return w.service(fmt.Sprintf("web%d.demo.svc.cluster.local", n), n, port80, func(s *mesh.Service) { s.Waypoint = g })
	}
	services := []*mesh.Service{wayService, svc(1, gatewayOf(way, 15008)), svc(2, gatewayNamed("way.example", 15010)),
		svc(3, gatewayNamed("named.example", 15008)), svc(4, gatewayNamed("nobody.example", 15008)), svc(5, nil)}
	w.control.apply(mesh.Delta{Services: services})
	server.change = func(rec *mesh.Workload) {
		member("web1.demo.svc.cluster.local", "web2.demo.svc.cluster.local", "web3.demo.svc.cluster.local", "web4.demo.svc.cluster.local",
			"web5.demo.svc.cluster.local")(rec)
		rec.Waypoint = gatewayOf(way, 15008)
	}
	w.announce(server, true)
	w.control.settled(t)

	for _, c := range []struct {
		name, to, service string
		server            *hboneServer
	}{
		{"of a workload, by address", server.at(8080), "", hb},
		{"of a service, by address", f.vipAt(1, 80), "web1.demo.svc.cluster.local", hb},
		{"of a service, by the host name of a service", f.vipAt(2, 80), "web2.demo.svc.cluster.local", hb},
		{"of a service, by the host name of a workload", f.vipAt(3, 80), "web3.demo.svc.cluster.local", hbNamed},
	} {
		t.Run(c.name, func(t *testing.T) {
			client.hello(t, c.to, c.name)
			r := c.server.last()
			if r.Authority != c.to {
				t.Errorf("asked for %s, not %s", r.Authority, c.to)
			}
			wantHeader(t, r, "baggage", "k8s.cluster.name=test,k8s.namespace.name=demo,k8s.pod.name=client,service.name=client,service.version=v1")
			if len(r.Header) != 3 || !strings.HasPrefix(r.Get("forwarded"), `for="`+strings.TrimSuffix(client.at(0), "0")) || len(r.Get("traceparent")) != 55 {
				t.Errorf("headers %v", r.Header)
			}
			line := []string{"connection complete", `src.identity="` + client.id().String() + `"`, "dst.addr=" + c.server.pod.at(15008),
				"dst.hbone_addr=" + c.to, `dst.identity="` + c.server.pod.id().String() + `"`, `direction="outbound"`,
				fmt.Sprintf("bytes_sent=%d bytes_recv=%d", len(c.name), len("waypoint\n"+c.name))}
			if c.service != "" {
				if !strings.HasSuffix(r.Get("forwarded"), ";host="+c.service) {
					t.Errorf("forwarded %q", r.Get("forwarded"))
				}
				line = append(line, `dst.service="`+c.service+`"`)
			}
			w.a.zt.wantLog(t, line...)
		})
	}
	t.Run("tunnels are shared by what wants the same server", func(t *testing.T) {
		client.hello(t, f.vipAt(1, 80), "one")
		one := hb.lastTunnel()
		client.hello(t, server.at(8080), "two")
		two := hb.lastTunnel()
		client.hello(t, f.vipAt(2, 80), "three") // which may be somebody else as well
		if three := hb.lastTunnel(); one != two || two == three {
			t.Errorf("tunnels %s, %s, %s", one, two, three)
		}
	})
	t.Run("not of a workload for what goes to a service", func(t *testing.T) {
		before := hb.count()
		c := client.mustDial(t, f.vipAt(5, 80))
		pingPong(t, c, "direct")
		if hb.count() != before {
			t.Error("the workload's waypoint was asked")
		}
		w.a.zt.wantLog(t, "pod is served") // the world is as it was
	})
	t.Run("unknown", func(t *testing.T) {
		refused(t, client, f.vipAt(4, 80))
		w.a.zt.wantLog(t, "connection complete", `error="unknown waypoint: demo/nobody.example"`, `reason="unknown_waypoint"`)
	})
	t.Run("that does not answer", func(t *testing.T) {
		dead := w.newPod(w.b, "dead")
		w.tells(dead, func(*mesh.Workload) {})
		deaf := svc(7, gatewayOf(dead, 15008))
		server.change = func(rec *mesh.Workload) { member("web7.demo.svc.cluster.local")(rec) }
		w.control.apply(mesh.Delta{Services: []*mesh.Service{deaf}, Workloads: []*mesh.Workload{server.record(true)}})
		w.control.settled(t)
		refused(t, client, f.vipAt(7, 80)) // although there is an endpoint that would
		w.a.zt.wantLog(t, "connection complete", "dst.addr="+dead.at(15008), "dst.hbone_addr="+f.vipAt(7, 80), `reason="connect_refused"`)
	})
	t.Run("that is not who it should be", func(t *testing.T) {
		other := w.newPod(w.b, "other")
		other.serveHBONE(15008, answer)
		w.tells(other, func(rec *mesh.Workload) { rec.ServiceAccount = "somebody-else" })
		w.control.apply(mesh.Delta{Services: []*mesh.Service{svc(6, gatewayOf(other, 15008))}})
		w.control.settled(t)
		refused(t, client, f.vipAt(6, 80))
		w.a.zt.wantLog(t, "connection complete", "dst.addr="+other.at(15008), `reason="unexpected_identity"`)
	})
}

// A connection of a service with weighted waypoints goes to each by its weight.
//
//ambit:feature waypoint-weighted
func TestWeightedWaypoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client, one, two, none := w.newPod(w.a, "client"), w.newPod(w.b, "one"), w.newPod(w.b, "two"), w.newPod(w.b, "none")
	servers := map[*pod]*hboneServer{}
	svc := w.service("web.example", 1, []mesh.Port{{ServicePort: 80}}, nil)
	for p, weight := range map[*pod]uint32{one: 3, two: 1, none: 0} {
		servers[p] = p.serveHBONE(15008, answer)
		svc.Weighted = append(svc.Weighted, mesh.WeightedWaypoint{Destination: *gatewayOf(p, 15008), Weight: weight})
		w.announce(p, true)
	}
	w.enrol(client)
	w.control.apply(mesh.Delta{Services: []*mesh.Service{svc}})
	w.control.settled(t)
	const n = 120
	for range n {
		client.hello(t, w.families.vipAt(1, 80), "x")
	}
	// Both, and none: 120 tries at 3 to 1 leave 30 ± 5; one in 10^9 runs is outside 60.
	if a, b, c := servers[one].count(), servers[two].count(), servers[none].count(); a+b != n || b == 0 || b > 60 || c != 0 {
		t.Errorf("%d, %d and %d of %d", a, b, c, n)
	}
}

// A waypoint that is itself captured ("sandwiched") gets connections through its
// ztunnel: as they are, or with the PROXY protocol in front, at its loopback
// address.
//
//ambit:feature waypoint-sandwich waypoint-proxy-protocol waypoint-hairpin
func TestSandwichedWaypoint(t *testing.T) { each(t, sandwiched, onlyIPv4, dual) }

func sandwiched(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, plain, proxied := w.newPod(w.a, "client"), w.newPod(w.b, "plain"), w.newPod(w.b, "proxied")
	say := func(c *net.TCPConn) {
		io.WriteString(c, "waypoint\n")
		io.Copy(c, c)
		c.CloseWrite()
	}
	plain.listen(80, say)
	headers := make(chan []byte, 10)
	proxied.listenAt(netip.AddrPortFrom(netip.MustParseAddr(f.used().loopback()), 15088), func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		h := make([]byte, 16)
		if _, err := io.ReadFull(r, h); err != nil {
			return
		}
		h = append(h, make([]byte, wire.BigEndian.Uint16(h[14:]))...)
		if _, err := io.ReadFull(r, h[16:]); err != nil {
			return
		}
		headers <- h
		io.WriteString(c, "waypoint\n")
		io.Copy(c, r)
		c.CloseWrite()
	})
	plain.change = func(rec *mesh.Workload) { member("plain.example")(rec); rec.AppTunnel = &mesh.AppTunnel{} }
	proxied.change = func(rec *mesh.Workload) {
		member("proxied.example")(rec)
		rec.AppTunnel = &mesh.AppTunnel{Proxy: true, Port: 15088}
	}
	server := w.newPod(w.a, "server")
	server.listen(8080, echo)
	server.change = func(rec *mesh.Workload) { rec.Waypoint = gatewayNamed("plain.example", 15008) }
	w.enrol(client, plain, proxied, server)
	fronted := func(n int, host string) *mesh.Service {
		return w.service(fmt.Sprintf("web%d.demo.svc.cluster.local", n), n, []mesh.Port{{ServicePort: 80, TargetPort: 8080}},
			func(s *mesh.Service) { s.Waypoint = gatewayNamed(host, 15008) })
	}
	w.control.apply(mesh.Delta{Services: []*mesh.Service{
		// The waypoints' services have no ports: a tunnel is all that they need.
		w.service("plain.example", 91, []mesh.Port{{ServicePort: 15008, TargetPort: 15008}}, nil), w.service("proxied.example", 92, nil, nil),
		fronted(1, "plain.example"), fronted(2, "proxied.example")}})
	w.control.settled(t)

	t.Run("as they are", func(t *testing.T) {
		client.hello(t, f.vipAt(1, 80), "plain")
		w.a.zt.wantLog(t, "connection complete", "dst.addr="+plain.at(15008), "dst.hbone_addr="+f.vipAt(1, 80), `direction="outbound"`)
		w.b.zt.wantLog(t, "connection complete", "dst.addr="+plain.at(15008), "dst.hbone_addr="+f.vipAt(1, 80),
			`src.identity="`+client.id().String()+`"`, `dst.workload="plain"`, `direction="inbound"`)
	})
	t.Run("and what it dials itself goes direct", func(t *testing.T) {
		c := plain.mustDial(t, server.at(8080))
		pingPong(t, c, "from the waypoint")
		c.Close()
		w.b.zt.wantLog(t, "connection complete", `src.workload="plain"`, "dst.addr="+server.at(15008), "dst.hbone_addr="+server.at(8080), `direction="outbound"`)
	})
	t.Run("with the PROXY protocol", func(t *testing.T) {
		client.hello(t, f.vipAt(2, 80), "proxied")
		h := <-headers
		if !bytes.Equal(h[:12], []byte("\r\n\r\n\x00\r\nQUIT\n")) || h[12] != 0x21 {
			t.Fatalf("%x", h)
		}
		size := client.addr.BitLen() / 8
		src, _ := netip.AddrFromSlice(h[16 : 16+size])
		dst, _ := netip.AddrFromSlice(h[16+size : 16+2*size])
		port := wire.BigEndian.Uint16(h[16+2*size+2:])
		tlv := h[16+2*size+4:]
		if src != client.addr || netip.AddrPortFrom(dst, port).String() != f.vipAt(2, 80) {
			t.Errorf("from %s to %s port %d", src, dst, port)
		}
		if tlv[0] != 0xd0 || string(tlv[3:]) != client.id().String() {
			t.Errorf("TLV %x %q", tlv[0], tlv[3:])
		}
		w.b.zt.wantLog(t, "connection complete", "dst.addr="+proxied.at(15008), "dst.hbone_addr="+f.vipAt(2, 80), `dst.workload="proxied"`, `direction="inbound"`)
	})
}

// A CONNECT may name a service instead of an address: the port is the service's,
// and leads to the pod's own, whether that is a number or a name.
//
//ambit:feature waypoint-authority
func TestAuthorityByHostname(t *testing.T) { each(t, authorityByHostname, onlyIPv4) }

func authorityByHostname(t *testing.T, f families) {
	w := newWorldOf(t, f)
	server, peer := w.newPod(w.b, "server"), w.newPod(w.a, "peer")
	server.listen(8080, echo)
	server.change = func(rec *mesh.Workload) {
		rec.Services = map[string][]mesh.Port{"demo/web.example": {{ServicePort: 81, TargetPort: 8080}}}
	}
	w.enrol(server)
	w.control.apply(mesh.Delta{Services: []*mesh.Service{w.service("web.example", 1, []mesh.Port{
		{ServicePort: 80, TargetPort: 8080}, {ServicePort: 81}, {ServicePort: 82}}, nil)}})
	w.control.settled(t)
	hb := &hboneServer{t: t, pod: peer, src: w.control.source(t, peer.id())}
	c, err := hb.dialHBONE(t.Context(), netip.AddrPortFrom(server.addr, 15008), server.id())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for authority, status := range map[string]int{
		"web.example:80": 200, "web.example:81": 200, "web.example:82": 503, "web.example:99": 503, "nobody.example:80": 503,
		server.at(8080): 200, peer.at(8080): 400, f.vipAt(1, 80): 400, server.at(9999): 503,
	} {
		s, err := c.Open(t.Context(), hbone.Request{Authority: authority})
		if status != 200 {
			wantStatus(t, err, status)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", authority, err)
			continue
		}
		if got := s.ResponseHeader("baggage"); got != "k8s.cluster.name=test,k8s.namespace.name=demo,k8s.pod.name=server,service.name=server,service.version=v1" {
			t.Errorf("%s: baggage %q", authority, got)
		}
		pingPong(t, s, authority)
		s.Close()
	}
	w.b.zt.wantLog(t, "connection complete", "dst.hbone_addr=web.example:81", `dst.service="web.example"`, `direction="inbound"`)
}

// listenAt is listen at one address alone.
func (p *pod) listenAt(at netip.AddrPort, serve func(*net.TCPConn)) {
	t := p.node.w.t
	t.Helper()
	f, err := p.ns.ListenTCP(at, netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	p.serve(ln, serve)
}
