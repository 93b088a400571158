package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
)

// nat loads rules into a namespace, as kube-proxy does on a node.
func nat(t testing.TB, ns *netns.NS, rules string) {
	t.Helper()
	program, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not there")
	}
	within(t, ns, func() error {
		cmd := exec.Command(program, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
}

// nodePort sends a port of the node to a pod. With the policy Cluster the pod
// sees the node's address instead of the client's.
func (n *node) nodePort(t testing.TB, port int, to netip.AddrPort, local bool) {
	t.Helper()
	family := familyOf(to.Addr()).pick("ip", "ip6")
	mark := "meta mark set 0x4000"
	if local {
		mark = ""
	}
	rules := fmt.Sprintf(`
table %[1]s port%[2]d {
	chain in { type nat hook prerouting priority dstnat; fib daddr type local tcp dport %[2]d %[4]s dnat to %[3]s; }
`, family, port, to, mark)
	if !local {
		rules += "	chain out { type nat hook postrouting priority srcnat; meta mark 0x4000 masquerade; }\n"
	}
	nat(t, n.ns, rules+"}\n")
}

// A client outside the cluster reaches a meshed pod through a port of a node, the
// pod's own node and another: in plaintext, as a stranger, under the address that
// the Service's externalTrafficPolicy lets the pod see. A policy that wants an
// identity refuses it. A meshed client that goes this way gets no identity either.
//
//ambit:feature traffic-node-port
func TestNodePort(t *testing.T) { each(t, nodePort) }

func nodePort(t *testing.T, f families) {
	w := newWorldOf(t, f)
	near, far, client := w.newPod(w.a, "near"), w.newPod(w.b, "far"), w.newPod(w.b, "client")
	ext := w.outside(t)
	near.serveHTTP(8080)
	far.serveHTTP(8080)
	w.enrol(near, far, client)
	used := f.used()
	gateway, wire := used.pod(1, 1), netip.MustParseAddr(used.wireAddr(1))
	ports := []struct {
		name  string
		port  uint16
		to    *pod
		local bool
		from  netip.Addr
	}{
		{"Cluster, own node", 30080, near, false, gateway},
		{"Cluster, other node", 30081, far, false, wire},
		{"Local, own node", 30082, near, true, ext.addr},
	}
	for _, p := range ports {
		w.a.nodePort(t, int(p.port), netip.MustParseAddrPort(p.to.at(8080)), p.local)
		t.Run(p.name, func(t *testing.T) {
			at := netip.AddrPortFrom(used.beyond(1), p.port).String()
			body := ext.mustCurl(t, at, "from-outside")
			if !sentFrom(body, p.from) || !strings.Contains(body, "to "+p.to.name) {
				t.Errorf("%q, want a call of %s", body, p.from)
			}
			from := &pod{addr: p.from}
			line := p.to.node.zt.wantLog(t, "connection complete", `direction="inbound"`, "src.addr="+from.host(), "dst.addr="+p.to.at(8080))
			if strings.Contains(line, "src.identity") {
				t.Errorf("a client outside has an identity: %s", line)
			}
		})
	}
	t.Run("meshed client", func(t *testing.T) {
		at := netip.AddrPortFrom(wire, 30082).String()
		if body := client.mustCurl(t, at, "by-the-node"); !client.sent(body) {
			t.Errorf("%q, want a call of %s", body, client.addr)
		}
		line := w.a.zt.wantLog(t, "connection complete", `direction="inbound"`, "src.addr="+client.host(), "dst.addr="+near.at(8080))
		if strings.Contains(line, "src.identity") {
			t.Errorf("a client that came through NAT has an identity: %s", line)
		}
	})
	t.Run("refused without an identity", func(t *testing.T) {
		w.control.apply(mesh.Delta{Policies: []*mesh.Policy{denyAll}})
		w.control.settled(t)
		for _, p := range ports {
			at := netip.AddrPortFrom(used.beyond(1), p.port).String()
			if body, err := ext.curl(at, "refused"); err == nil {
				t.Errorf("%s: answered: %q", p.name, body)
			}
			from := &pod{addr: p.from}
			p.to.node.zt.wantLog(t, "connection complete", "src.addr="+from.host(), `reason="policy_denied"`)
		}
		client.mustCurl(t, near.at(8080), "with-an-identity")
	})
}

// What runs behind NAT in a captured pod, such as a virtual machine or a container
// engine of its own, does not get out: after capture the kernel's connection
// tracking in the pod finds two connections where there is one. It does not get
// past capture either. Named, the device it is behind makes it the pod's.
//
//ambit:feature traffic-behind-nat enrol-reroute
func TestBehindTheNATOfAPod(t *testing.T) { each(t, behindTheNAT, onlyIPv4, onlyIPv6) }

func behindTheNAT(t *testing.T, f families) {
	w := newWorldOf(t, f)
	host, server := w.newPod(w.a, "host"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	inner := &pod{node: w.a, ns: newNS(t), name: "machine"}
	used := f.used()
	door, bits := netip.MustParseAddr(used.pick("172.16.0.1", "fd16::1")), 24
	inner.addr = netip.MustParseAddr(used.pick("172.16.0.2", "fd16::2"))
	if used.v6 {
		bits = 64
	}
	join(t, host.ns, "machine0", inner.ns, "eth0")
	configure(t, host.ns, "machine0", link{prefixes: []string{netip.PrefixFrom(door, bits).String(), router(1)}})
	configure(t, host.ns, "eth0", link{prefixes: []string{router(2)}})
	configure(t, inner.ns, "eth0", link{prefixes: []string{netip.PrefixFrom(inner.addr, bits).String()}, routes: []route{{used.everything(), door.String()}}})
	forward(t, host.ns)
	nat(t, host.ns, fmt.Sprintf(`
table %s machine {
	chain out { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
}
`, used.pick("ip", "ip6")))
	wire := capturing(t, w.a.ns, "wire0")
	if body := inner.mustCurl(t, server.at(8080), "token-without-a-mesh"); !host.sent(body) {
		t.Errorf("the server sees %q, want %s", body, host.addr)
	}
	eventually(t, "plaintext on the wire before the mesh", func() error {
		if !wire.contains("token-without-a-mesh") {
			return errors.New("not seen")
		}
		return nil
	})
	w.enrol(host, server)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if c, err := inner.ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(server.at(8080)), netns.SocketOptions{}); err == nil {
		c.SetDeadline(time.Now().Add(time.Second))
		if err := exchange(c, "token-in-the-mesh"); err == nil {
			t.Error("answered")
		}
		c.Close()
	}
	host.mustCurl(t, server.at(8080), "of-the-pod-itself")
	if wire.contains("token-in-the-mesh") {
		t.Error("what is behind NAT got past capture")
	}
	// Named as a device behind which others live, it is the pod's: under the
	// strictest reverse path filter too.
	within(t, host.ns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0o644)
	})
	w.a.agent.reroute(host, "machine0")
	inner.mustCurl(t, server.at(8080), "token-behind-the-device")
	w.b.zt.wantLog(t, `direction="inbound"`, `src.identity="`+host.id().String()+`"`)
	if wire.contains("token-behind-the-device") {
		t.Error("what is behind the device got past capture")
	}
	host.mustCurl(t, server.at(8080), "of-the-pod-itself")
}
