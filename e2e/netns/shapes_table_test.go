package netns_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// cast is who takes part in the traffic table.
type cast struct {
	w *world
	// Meshed: a client and its neighbour on node a, a server on node b.
	client, near, server *pod
	// Not meshed: on the node of the client, and on that of the server.
	stranger, outside *pod
	vips              map[family]netip.Addr
}

const (
	probePort = 8080 // also of the application
	otherPort = 9090
	echoPort  = 9000
)

// newCast is a world of that shape with everybody in it.
func newCast(t *testing.T, settings ...func(*world)) *cast {
	w := newWorldOf(t, dual, settings...)
	c := &cast{w: w, client: w.newPod(w.a, "client"), near: w.newPod(w.a, "near"), server: w.newPod(w.b, "server"),
		stranger: w.newPod(w.a, "stranger"), outside: w.newPod(w.b, "outside"), vips: map[family]netip.Addr{}}
	for _, p := range c.all() {
		p.serveHTTP(probePort)
		p.serveHTTP(otherPort)
		p.listen(echoPort, echo)
		p.probes = []uint16{probePort}
	}
	w.enrol(c.client, c.near, c.server)
	vips := w.vip(10)
	w.serviceAt("web", vips, 80, otherPort, c.server)
	w.serviceAt("self", w.vip(11), 80, otherPort, c.near)
	for _, v := range vips {
		c.vips[familyOf(v)] = v
	}
	return c
}

func (c *cast) all() []*pod { return []*pod{c.client, c.near, c.server, c.stranger, c.outside} }

// run is the table: one call for each way traffic can take, in each family.
func (c *cast) run(t *testing.T) {
	for i, f := range dual {
		t.Run(families{f}.String(), func(t *testing.T) {
			for _, p := range c.all() {
				p.addr = p.addrs[i]
			}
			c.traffic(t, f)
		})
	}
}

func (c *cast) traffic(t *testing.T, f family) {
	w := c.w
	secret := func(what string) string { return "token-" + f.pick("4-", "6-") + what }
	wires := []*capture{capturing(t, w.a.ns, "wire0"), capturing(t, w.b.ns, "wire0")}
	call := func(from *pod, to, token string) string {
		t.Helper()
		body := from.mustCurl(t, to, token)
		if !from.sent(body) {
			t.Errorf("%s calls %s: the server sees %q, not the client's address %s", from.name, to, body, from.addr)
		}
		return body
	}
	meshed := func(n *node, direction string, from, to *pod) {
		t.Helper()
		n.zt.wantLog(t, "connection complete", `direction="`+direction+`"`, "src.addr="+from.host(),
			`src.identity="`+from.id().String()+`"`, `dst.identity="`+to.id().String()+`"`)
	}

	call(c.client, c.server.at(otherPort), secret("meshed"))
	meshed(w.a, "outbound", c.client, c.server)
	meshed(w.b, "inbound", c.client, c.server)
	call(c.server, c.client.at(otherPort), secret("meshed-back"))
	meshed(w.b, "outbound", c.server, c.client)
	meshed(w.a, "inbound", c.server, c.client)
	call(c.client, c.near.at(otherPort), secret("same-node"))
	meshed(w.a, "inbound", c.client, c.near)

	call(c.client, netip.AddrPortFrom(c.vips[f], 80).String(), secret("vip"))
	w.a.zt.wantLog(t, "connection complete", `dst.service="web.demo.svc.cluster.local"`, "dst.hbone_addr="+c.server.at(otherPort), `direction="outbound"`)
	own := netip.MustParseAddr(f.pick("10.96.0.11", "fd96::b"))
	call(c.near, netip.AddrPortFrom(own, 80).String(), secret("own-service"))
	w.a.zt.wantLog(t, "connection complete", `dst.service="self.demo.svc.cluster.local"`, `src.workload="near"`, `dst.workload="near"`)

	// A pod to itself stays inside, and nobody logs it.
	call(c.client, c.client.at(otherPort), secret("itself"))
	if line, ok := w.a.zt.log("connection complete", "src.addr="+c.client.host(), "dst.addr="+c.client.at(otherPort)); ok {
		t.Errorf("a pod's connection to itself was captured: %s", line)
	}
	c.bulk(t, c.client, c.server)
	c.bulk(t, c.client, c.near)

	for _, wire := range wires {
		if wire.size() == 0 || wire.contains("token-") {
			t.Error("nothing on the wire, or plaintext of meshed pods")
		}
		if n := wire.lost(t); n > 0 {
			t.Errorf("the recording lost %d frames", n)
		}
		wire.stop()
	}

	for _, to := range []*pod{c.server, c.near} {
		call(c.stranger, to.at(otherPort), secret("from-a-stranger"))
		line := to.node.zt.wantLog(t, "connection complete", `direction="inbound"`, "src.addr="+c.stranger.host(), "dst.addr="+to.at(otherPort))
		if strings.Contains(line, "src.identity") {
			t.Errorf("a plaintext client has an identity: %s", line)
		}
		c.bulk(t, c.stranger, to)
	}
	for _, to := range []*pod{c.outside, c.stranger} {
		call(c.client, to.at(otherPort), secret("to-the-outside"))
		w.a.zt.wantLog(t, "connection complete", `direction="outbound"`, "dst.addr="+to.at(otherPort))
		c.bulk(t, c.client, to)
	}
	c.probe(t, c.near)
	c.probe(t, c.server)
}

// bulk is more than fits into any buffer on the way, in both directions at once:
// full-size segments have to find their way.
func (c *cast) bulk(t *testing.T, from, to *pod) {
	t.Helper()
	conn := from.mustDial(t, to.at(echoPort))
	defer conn.Close()
	const size = 4 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(conn, &counting{}, size)
		if err == nil {
			err = conn.CloseWrite()
		}
		sent <- err
	}()
	got, err := io.Copy(&counting{t: t}, conn)
	if serr := <-sent; serr != nil || err != nil || got != size {
		t.Errorf("%s to %s: %d of %d bytes came back: %v, %v", from.name, to.name, got, size, serr, err)
	}
}

// counting is a sequence of bytes whose place can be told.
type counting struct {
	t   *testing.T
	at  int
	bad bool
}

func (p *counting) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at*31 + p.at>>8)
		p.at++
	}
	return len(b), nil
}

func (p *counting) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != byte(p.at*31+p.at>>8) && !p.bad {
			p.bad = true
			p.t.Errorf("byte %d came back changed", p.at)
		}
		p.at++
	}
	return len(b), nil
}

// probe dials the pod from its node as the kubelet does: past ztunnel on the
// probe port alone. Where the node cannot reach its pods there is nothing to try.
func (c *cast) probe(t *testing.T, p *pod) {
	t.Helper()
	if _, isolated := c.w.shape.(childShape); isolated {
		return
	}
	for _, port := range []uint16{probePort, otherPort} {
		token := fmt.Sprintf("probe-%d-%s", port, p.addr)
		node := &pod{node: p.node, ns: p.node.ns, name: p.node.name}
		body := node.mustCurl(t, p.at(port), token)
		asker, _, err := net.SplitHostPort(body[:strings.Index(body, " to ")])
		if err != nil {
			t.Fatalf("answer %q: %v", body, err)
		}
		from := strings.TrimSuffix(netip.AddrPortFrom(netip.MustParseAddr(asker), 0).String(), ":0")
		if port == otherPort {
			p.node.zt.wantLog(t, "connection complete", `direction="inbound"`, "src.addr="+from, "dst.addr="+p.at(port))
		} else if line, ok := p.node.zt.log("src.addr="+from, "dst.addr="+p.at(port)); ok {
			t.Errorf("a probe went through ztunnel: %s", line)
		}
	}
}

// prefixes are the node's addresses, as the agent takes them for the sources of
// probes that cannot be stamped.
func (n *node) prefixes(t testing.TB) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	within(t, n.ns, func() error {
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
				out = append(out, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
			}
		}
		return err
	})
	return out
}
