package netns_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
)

// foreignWorld is a world whose nodes have somebody else's agents.
type foreignWorld struct {
	*world
	agents map[*node]*foreignAgent
}

func newForeignWorld(t testing.TB, f families, env ...string) *foreignWorld {
	t.Helper()
	w, ctrl := newWires(t, f)
	w.control = newControl(t, ctrl)
	fw := &foreignWorld{world: w, agents: map[*node]*foreignAgent{}}
	for _, n := range []*node{w.a, w.b} {
		fw.agents[n] = newForeignAgent(t, n)
		n.zt = n.startZtunnel(env)
	}
	w.waitReady(w.a, w.b)
	return fw
}

func (w *foreignWorld) enrol(pods ...*pod) {
	w.t.Helper()
	for _, p := range pods {
		w.agents[p.node].enrol(p)
		w.announce(p, true)
	}
	w.control.settled(w.t)
}

// A ztunnel of ours under Istio's agent: it makes its listeners by itself, and
// NAT redirects to them. Original destinations are conntrack's, sources are
// kept, tunnels are tunnels, and probes from the agent's address go by.
//
//ambit:feature dialect-foreign-agent dialect-foreign-agent-dns
func TestUnderForeignAgent(t *testing.T) { each(t, underForeignAgent) }

func underForeignAgent(t *testing.T, f families) {
	w := newForeignWorld(t, f)
	client, server, beside := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.a, "beside")
	outside := w.newPod(w.b, "outside")
	for _, p := range []*pod{server, beside, outside} {
		p.serveHTTP(8080)
	}
	server.listen(9000, echo)
	w.enrol(client, server, beside)
	vips := f.vip(7)
	svc := &mesh.Service{Name: "svc", Namespace: "demo", Hostname: "svc.demo.svc.cluster.local", Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}}}
	for _, ip := range vips {
		svc.Addresses = append(svc.Addresses, mesh.NetworkAddress{Prefix: netip.PrefixFrom(ip, ip.BitLen())})
	}
	server.change = func(rec *mesh.Workload) { rec.Services = map[string][]mesh.Port{svc.Key(): nil} }
	w.control.apply(mesh.Delta{Services: []*mesh.Service{svc}, Workloads: []*mesh.Workload{server.record(true)}})
	w.control.settled(t)

	wire := capturing(t, w.a.ns, "wire0")
	for _, to := range []string{server.at(8080), beside.at(8080), f.vipAt(7, 80)} {
		if body := client.mustCurl(t, to, "secret-token"); !client.sent(body) {
			t.Errorf("%s sees %q, want the client's address", to, body)
		}
	}
	w.b.zt.wantLog(t, `src.identity="`+client.id().String()+`"`, `direction="inbound"`)
	if wire.contains("secret-token") {
		t.Error("plaintext between the nodes")
	}
	// Plaintext from and to who is not in the mesh.
	if body := outside.mustCurl(t, server.at(8080), "from-outside"); !outside.sent(body) {
		t.Errorf("from outside: %q", body)
	}
	client.mustCurl(t, outside.at(8080), "to-outside")
	// The pod to itself is nobody's business.
	server.mustCurl(t, server.at(8080), "to-itself")

	// Questions go to a resolver that nobody has; the agent redirects them.
	for _, network := range []string{"udp", "tcp"} {
		addrs, err := client.resolve(t.Context(), network, netip.AddrPortFrom(f.vip(53)[len(vips)-1], 53), svc.Hostname+".")
		if err != nil || len(addrs) != len(vips) {
			t.Errorf("%s over %s: %v, %v", svc.Hostname, network, addrs, err)
		}
	}

	// A probe comes from the node under the agent's address and past ztunnel.
	probe := netip.MustParseAddr(f.used().pick("169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"))
	configure(t, w.b.ns, "lo", link{prefixes: []string{single(probe)}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := w.b.ns.DialTCP(ctx, netip.AddrPortFrom(probe, 0), netip.MustParseAddrPort(server.at(9000)), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pingPong(t, c, "a probe")
	c.Close()
	if w.b.zt.count(probe.String()) > 0 {
		t.Error("a probe went through ztunnel")
	}
}

// resolve asks a resolver from the pod.
func (p *pod) resolve(ctx context.Context, network string, server netip.AddrPort, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if network == "udp" {
			return p.ns.DialUDP(server, netns.SocketOptions{})
		}
		return p.ns.DialTCP(ctx, netip.AddrPort{}, server, netns.SocketOptions{})
	}}
	return r.LookupNetIP(ctx, "ip", name)
}

// Restarts, kills and a new agent, under Istio's agent.
//
//ambit:feature dialect-foreign-agent-restart
func TestRestartsUnderForeignAgent(t *testing.T) {
	each(t, restartsUnderForeignAgent, onlyIPv4, onlyIPv6)
}

func restartsUnderForeignAgent(t *testing.T, f families) {
	w := newForeignWorld(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	server.listen(9000, echo)
	w.enrol(client, server)
	wire := capturing(t, w.a.ns, "wire0")
	open := client.mustDial(t, server.at(9000))
	pingPong(t, open, "token-open")

	// A successor with both of them there: what is open goes on.
	agent := w.agents[w.b]
	old := w.b.surge(t)
	ended := make(chan struct{})
	go func() { defer close(ended); old.terminate() }()
	old.wantLog(t, "draining")
	for range 30 {
		client.mustCurl(t, server.at(8080), "token-during-the-drain")
	}
	pingPong(t, open, "token-during-the-drain")
	open.Close()
	<-ended

	// A new agent says it all again; one pod it can only keep.
	open = client.mustDial(t, server.at(9000))
	pingPong(t, open, "token-agent")
	agent.stop()
	pingPong(t, open, "token-no-agent")
	client.mustCurl(t, server.at(8080), "token-no-agent")
	agent.lose(server)
	agent.start()
	eventually(t, "the agent's snapshot", func() error {
		if n := agent.connected(); n != 1 {
			return fmt.Errorf("%d ztunnels", n)
		}
		return nil
	})
	pingPong(t, open, "token-another-agent")
	client.mustCurl(t, server.at(8080), "token-another-agent")

	// Killed: calls fail until the next is there, and none goes past.
	w.a.zt.kill()
	if _, err := client.curl(server.at(8080), "token-nobody"); err == nil {
		t.Error("answered without a ztunnel")
	}
	w.a.zt = w.a.startZtunnel(nil)
	w.waitReady(w.a)
	client.mustCurl(t, server.at(8080), "token-after-the-kill")

	// Deleted: its listeners go, and its connections with them.
	open = client.mustDial(t, server.at(9000))
	pingPong(t, open, "token-last")
	w.agents[w.a].remove(client)
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived the pod's deletion")
	}
	if c, err := client.dial(server.at(8080)); err == nil {
		c.Close()
		t.Error("a deleted pod is served")
	}
	if wire.contains("token-") {
		t.Error("plaintext between the nodes")
	}
}
