package netns_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// source has a certificate of the mesh for id, which lives long enough for a test.
func (c *control) source(t testing.TB, id identity.ID) identity.Source {
	t.Helper()
	now := time.Now()
	cert := c.forged(t, id, now.Add(-time.Hour), now.Add(time.Hour))
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(c.root)
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("the mesh's root: %v", err)
	}
	return hbonetest.Source{Trust: roots, Certs: map[identity.ID]*tls.Certificate{id: &cert}}
}

// hboneServer is a process with HBONE of its own, as a waypoint or a gateway is. It
// lives as long as the test.
type hboneServer struct {
	t   testing.TB
	pod *pod
	src identity.Source

	mu       sync.Mutex
	requests []hbone.Request  // guarded by mu
	tunnels  []netip.AddrPort // guarded by mu; each request's client
}

// serveHBONE makes p serve HBONE with the identity of its pod.
func (p *pod) serveHBONE(port uint16, handle func(*hboneServer, *hbone.Incoming)) *hboneServer {
	t := p.node.w.t
	t.Helper()
	s := &hboneServer{t: t, pod: p, src: p.node.w.control.source(t, p.id())}
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	srv := &hbone.Server{TLS: identity.ServerConfig(s.src, p.id()), Handler: func(in *hbone.Incoming) {
		s.mu.Lock()
		s.requests, s.tunnels = append(s.requests, in.Request), append(s.tunnels, in.RemoteAddr())
		s.mu.Unlock()
		handle(s, in)
	}}
	p.listen(port, func(c *net.TCPConn) { _ = srv.Serve(ctx, c) })
	return s
}

// last is the newest request.
func (s *hboneServer) last() hbone.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) == 0 {
		s.t.Fatalf("%s was never asked", s.pod.name)
	}
	return s.requests[len(s.requests)-1]
}

// lastTunnel is where that came from.
func (s *hboneServer) lastTunnel() netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tunnels[len(s.tunnels)-1]
}

func (s *hboneServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

// answer says that it is the waypoint, and then says everything again.
func answer(s *hboneServer, in *hbone.Incoming) {
	st, err := in.Accept(hbone.Header{Name: "baggage", Value: "k8s.namespace.name=demo,k8s.pod.name=" + s.pod.name + ",service.name=" + s.pod.name})
	if err != nil {
		return
	}
	io.WriteString(st, "waypoint\n")
	io.Copy(st, st)
	st.Close()
}

// dialHBONE connects to a server of HBONE as the pod itself.
func (s *hboneServer) dialHBONE(ctx context.Context, to netip.AddrPort, expect identity.ID) (*hbone.Conn, error) {
	nc, err := s.pod.ns.DialTCP(ctx, netip.AddrPort{}, to, netns.SocketOptions{})
	if err != nil {
		return nil, err
	}
	return hbone.NewClient(ctx, nc, identity.ClientConfig(s.src, s.pod.id(), []identity.ID{expect}), hbone.Config{})
}

// passOn makes a waypoint's handler: it passes on to server what it is asked for,
// and says for whom if asserts, and the server reads it.
func passOn(server *pod, port uint16, asserts bool) func(*hboneServer, *hbone.Incoming) {
	return func(s *hboneServer, in *hbone.Incoming) {
		ctx, cancel := context.WithTimeout(in.Context(), patience)
		defer cancel()
		c, err := s.dialHBONE(ctx, netip.AddrPortFrom(server.addr, 15008), server.id())
		if err != nil {
			in.Reject(503)
			return
		}
		defer c.Close()
		r := hbone.Request{Authority: server.at(port)}
		if asserts {
			reads, err := c.ReadsClient(ctx)
			if err != nil || !reads {
				s.t.Errorf("the server reads for whom a waypoint connects: %v, %v", reads, err)
			}
			r.Header = []hbone.Header{{Name: hbone.ClientHeader, Value: in.Peer().String()}, {Name: "forwarded", Value: in.Get("forwarded")}}
		}
		up, err := c.Open(ctx, r)
		if err != nil {
			in.Reject(503)
			return
		}
		down, err := in.Accept()
		if err != nil {
			up.Cancel()
			return
		}
		splice(down, up)
	}
}

// inside serves HBONE in what a stream of HBONE carries, and answers there.
func (s *hboneServer) inside(_ *hboneServer, in *hbone.Incoming) {
	st, err := in.Accept()
	if err != nil {
		return
	}
	srv := &hbone.Server{TLS: identity.ServerConfig(s.src, s.pod.id()), Handler: func(in *hbone.Incoming) {
		s.mu.Lock()
		s.requests, s.tunnels = append(s.requests, in.Request), append(s.tunnels, in.RemoteAddr())
		s.mu.Unlock()
		answer(s, in)
	}}
	_ = srv.Serve(in.Context(), st)
}

// splice copies both ways until both have ended, resets included.
func splice(a, b *hbone.Stream) {
	var wg sync.WaitGroup
	for _, way := range [][2]*hbone.Stream{{a, b}, {b, a}} {
		wg.Go(func() {
			if _, err := io.Copy(way[0], way[1]); err != nil {
				way[0].Reset()
				return
			}
			way[0].CloseWrite()
		})
	}
	wg.Wait()
}

// gatewayTo makes a gateway's handler: it knows which pod a service's name leads
// to, and passes on what it cannot read.
func gatewayTo(server *pod) func(*hboneServer, *hbone.Incoming) {
	return func(s *hboneServer, in *hbone.Incoming) {
		ctx, cancel := context.WithTimeout(in.Context(), patience)
		defer cancel()
		c, err := s.pod.ns.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(server.addr, 15008), netns.SocketOptions{})
		if err != nil {
			in.Reject(503)
			return
		}
		st, err := in.Accept()
		if err != nil {
			c.Close()
			return
		}
		_ = st.Relay(c)
	}
}

// hello talks to a server that says it is a waypoint.
func (p *pod) hello(t testing.TB, to, say string) {
	t.Helper()
	c := p.mustDial(t, to)
	if _, err := io.WriteString(c, say); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if want := "waypoint\n" + say; err != nil || string(got) != want {
		t.Fatalf("%s says %q to %s: %q, %v", p.name, say, to, got, err)
	}
	c.Close()
}

// tells makes the mesh know p as a server of HBONE, captured or not, as change has it.
func (w *world) tells(p *pod, change func(*mesh.Workload)) {
	before := p.change
	p.change = func(rec *mesh.Workload) {
		if before != nil {
			before(rec)
		}
		change(rec)
	}
	w.announce(p, true)
}

// member is a change that makes a pod part of services.
func member(hosts ...string) func(*mesh.Workload) {
	return func(rec *mesh.Workload) {
		if rec.Services == nil {
			rec.Services = map[string][]mesh.Port{}
		}
		for _, h := range hosts {
			rec.Services["demo/"+h] = nil
		}
	}
}

// service is one of the namespace, at the nth virtual address.
func (w *world) service(host string, n int, ports []mesh.Port, change func(*mesh.Service)) *mesh.Service {
	svc := &mesh.Service{Name: host, Namespace: "demo", Hostname: host, Ports: ports}
	for _, a := range w.vip(n) {
		svc.Addresses = append(svc.Addresses, mesh.NetworkAddress{Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	if change != nil {
		change(svc)
	}
	return svc
}

// gatewayOf names a gateway by the address of a pod.
func gatewayOf(p *pod, port uint16) *mesh.GatewayAddress {
	return &mesh.GatewayAddress{Address: mesh.NetworkAddress{Prefix: netip.PrefixFrom(p.addr, p.addr.BitLen())}, HBONEPort: port}
}

// gatewayNamed names one by host name.
func gatewayNamed(host string, port uint16) *mesh.GatewayAddress {
	return &mesh.GatewayAddress{Namespace: "demo", Hostname: host, HBONEPort: port}
}

// wantHeader checks one header of a request.
func wantHeader(t testing.TB, r hbone.Request, name, want string) {
	t.Helper()
	if got := r.Get(name); got != want {
		t.Errorf("%s of %s: %q, want %q", name, r.Authority, got, want)
	}
}
