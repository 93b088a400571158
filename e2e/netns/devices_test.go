package netns_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// late is an address of the pod's network that the cluster knows nothing of.
func (f family) late(p *pod) netip.Addr { return f.pod(p.node.number, 200) }

// addAddress gives a running pod one more address, and its node the way there.
func (w *world) addAddress(t testing.TB, p *pod, host string, a netip.Addr) {
	t.Helper()
	within(t, p.ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(single(a))
		if err != nil {
			return err
		}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		return netlink.AddrAdd(l, addr)
	})
	configure(t, p.node.ns, host, link{routes: []route{{single(a), ""}}})
}

// checked waits until the agent has the pod as it should be.
func (a *agent) checked(t testing.TB, p *pod) {
	t.Helper()
	a.mu.Lock()
	e := a.pods[p.uid]
	a.mu.Unlock()
	eventually(t, p.name+" is captured on all its devices", func() error { return a.r.Check(e.cfg) })
}

// denyAll refuses whoever has no identity.
var denyAll = &mesh.Policy{Name: "identities", Namespace: "demo", Scope: mesh.ScopeNamespace,
	Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
		Principals: []mesh.StringMatch{{Kind: mesh.Presence}}}}}}}}}

// An address that a running pod gets is captured from its first packet on,
// before anybody can have told the programs about it.
func TestLateAddress(t *testing.T) { each(t, lateAddress) }

func lateAddress(t *testing.T, f families) {
	w := newWorldOf(t, f)
	server, stranger := w.newPod(w.b, "server"), w.newPod(w.a, "stranger")
	client := w.newPod(w.a, "client")
	server.serveHTTP(8080)
	w.enrol(server, client)
	addr := f.used().late(server)
	to := netip.AddrPortFrom(addr, 8080).String()
	w.addAddress(t, server, "veth1", addr)
	body := stranger.mustCurl(t, to, "from-a-stranger")
	if !stranger.sent(body) {
		t.Errorf("the server sees %q, not %s", body, stranger.addr)
	}
	w.b.zt.wantLog(t, "connection complete", `direction="inbound"`, "src.addr="+stranger.host(), "dst.addr="+to)
	// The mesh does not know whose it is, so a client cannot be meshed to it;
	// it is served as by anybody.
	client.mustCurl(t, to, "from-the-mesh")
	w.b.zt.wantLog(t, "connection complete", `direction="inbound"`, "src.addr="+client.host(), "dst.addr="+to)
	w.b.agent.checked(t, server)
	stranger.mustCurl(t, to, "known-by-now")

	// Nor is it a way around policy.
	w.control.apply(mesh.Delta{Policies: []*mesh.Policy{denyAll}})
	w.control.settled(t)
	client.mustCurl(t, server.at(8080), "with-an-identity")
	if body, err := stranger.curl(to, "refused"); err == nil {
		t.Errorf("a stranger was answered at the late address: %q", body)
	}
	w.b.zt.wantLog(t, "connection complete", "src.addr="+stranger.host(), "dst.addr="+to, `reason="policy_denied"`)
}

// A second device of a running pod carries no plaintext of the pod and lets
// none in, once the agent has seen it.
func TestLateDevice(t *testing.T) { each(t, lateDevice) }

func lateDevice(t *testing.T, f families) {
	w := newWorldOf(t, f)
	server, stranger := w.newPod(w.b, "server"), w.newPod(w.a, "stranger")
	client := w.newPod(w.a, "client")
	server.serveHTTP(8080)
	client.serveHTTP(8080)
	w.enrol(server, client)
	addr := f.used().late(server)
	to := netip.AddrPortFrom(addr, 8080).String()
	w.plug(server, "second", "eth1", []netip.Addr{addr}, 2, func(family) string { return single(client.addr) })
	w.b.agent.checked(t, server)
	second := capturing(t, w.b.ns, "second")
	wire := capturing(t, w.a.ns, "wire0")

	// In over the second device: captured, so it can be refused.
	stranger.mustCurl(t, to, "in-over-eth1")
	w.b.zt.wantLog(t, "connection complete", `direction="inbound"`, "src.addr="+stranger.host(), "dst.addr="+to)

	// Out over it: the peer is meshed, so nothing may be readable.
	body := server.mustCurl(t, client.at(8080), "token-out-over-eth1")
	if !strings.Contains(body, "to client") {
		t.Errorf("answer %q", body)
	}
	w.a.zt.wantLog(t, "connection complete", `direction="inbound"`, `src.identity="`+server.id().String()+`"`, "dst.hbone_addr="+client.at(8080))
	if second.size() == 0 {
		t.Error("nothing went over the second device")
	}
	if second.contains("token-") || wire.contains("token-") {
		t.Error("plaintext of a meshed pod on the second device or the wire")
	}

	w.control.apply(mesh.Delta{Policies: []*mesh.Policy{denyAll}})
	w.control.settled(t)
	server.mustCurl(t, client.at(8080), "token-with-an-identity")
	if body, err := stranger.curl(to, "refused"); err == nil {
		t.Errorf("a stranger was answered over the second device: %q", body)
	}
}
