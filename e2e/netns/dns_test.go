package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/miekg/dns"
)

func askOn(c *dns.Conn, q *dns.Msg) (*dns.Msg, error) {
	c.SetDeadline(time.Now().Add(patience))
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	return c.ReadMsg()
}

// entry is a service of a host name of somebody's choice.
func entry(host string, vips ...netip.Addr) *mesh.Service {
	s := &mesh.Service{Name: strings.Trim(host, "*."), Namespace: "demo", Hostname: host, Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}}}
	for _, a := range vips {
		s.Addresses = append(s.Addresses, mesh.NetworkAddress{Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	return s
}

// dnsWorld is a captured client whose questions are captured too, a server and a
// resolver outside the mesh.
func dnsWorld(t testing.TB) (w *world, client *pod, r *resolver, vips []netip.Addr) {
	w = newWorldOf(t, dual)
	client = w.newPod(w.a, "client")
	client.dns = true
	server, outside := w.newPod(w.b, "server"), w.newPod(w.b, "resolver")
	server.serveHTTP(8080)
	r = newResolver(t, outside)
	w.enrol(client, server)
	vips = w.vip(10)
	w.serviceAt("web", vips, 80, 8080, server)
	headless := entry("pods.demo.svc.cluster.local")
	w.control.apply(mesh.Delta{Services: []*mesh.Service{
		entry("api.example.com", w.vip(20)...), entry("*.wild.example.com", w.vip(21)...), entry("only4.example.com", w.vip(22)[0]), headless,
	}})
	before := server.change
	server.change = func(rec *mesh.Workload) { before(rec); rec.Services[headless.Key()] = nil }
	w.announce(server, true)
	w.control.settled(t)
	return w, client, r, vips
}

// Questions of a captured pod: what the mesh knows is answered by ztunnel in the
// resolver's name, all else by the resolver as if nobody were in between.
//
//ambit:feature dns-capture dns-services dns-forward dns-types dns-edns dns-truncation dns-tcp dns-upstream-down dns-loop dns-port-in-use dns-own-server dns-metrics
func TestDNS(t *testing.T) {
	t.Parallel()
	w, client, r, vips := dnsWorld(t)
	must := func(t *testing.T, network string, q *dns.Msg) *dns.Msg {
		t.Helper()
		m, err := client.ask(network, r.at, q)
		if err != nil {
			t.Fatalf("%s %s: %v", network, q.Question[0].String(), err)
		}
		if m.Id != q.Id {
			t.Fatalf("id %d for %d", m.Id, q.Id)
		}
		return m
	}
	both := func(t *testing.T, f func(t *testing.T, network string)) {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(network, func(t *testing.T) { f(t, network) })
		}
	}
	t.Run("the mesh's names", func(t *testing.T) {
		both(t, func(t *testing.T, network string) {
			for name, want := range map[string]string{
				"web.demo.svc.cluster.local. A":    "NOERROR web.demo.svc.cluster.local. A " + vips[0].String(),
				"WEB.demo.svc.Cluster.Local. AAAA": "NOERROR WEB.demo.svc.Cluster.Local. AAAA " + vips[1].String(),
				"web.demo. A":                      "NOERROR web.demo. A " + vips[0].String(),
				"web. A":                           "NOERROR web. A " + vips[0].String(),
				"web.demo.demo.svc.cluster.local. A": "NOERROR web.demo.demo.svc.cluster.local. CNAME web.demo., web.demo. A " +
					vips[0].String(),
				"api.example.com. A":             "NOERROR api.example.com. A " + w.vip(20)[0].String(),
				"api.example.com. AAAA":          "NOERROR api.example.com. AAAA " + w.vip(20)[1].String(),
				"a.b.wild.example.com. A":        "NOERROR a.b.wild.example.com. A " + w.vip(21)[0].String(),
				"only4.example.com. AAAA":        "NOERROR ",
				"pods.demo.svc.cluster.local. A": "NOERROR pods.demo.svc.cluster.local. A " + four.pod(2, 12).String(),
			} {
				host, kind, _ := strings.Cut(name, " ")
				m := must(t, network, question(host, dns.StringToType[kind]))
				if got := records(m); got != want || !m.Authoritative || !m.RecursionAvailable {
					t.Errorf("%s: %s\n%s, want %s", name, m, got, want)
				}
				if n := r.has(network + " " + kind + " " + host); n != 0 {
					t.Errorf("%s was forwarded %d times", name, n)
				}
			}
		})
	})
	t.Run("names and types of others", func(t *testing.T) {
		both(t, func(t *testing.T, network string) {
			for name, want := range map[string]string{
				"outside.example.org. A":                        "NOERROR outside.example.org. A 192.0.2.7",
				"outside.example.org. AAAA":                     "NOERROR outside.example.org. AAAA 2001:db8::7",
				"outside.example.org. TXT":                      `NOERROR outside.example.org. TXT "hello"`,
				"outside.example.org. MX":                       "NOERROR outside.example.org. MX 10 mail.example.org.",
				"outside.example.org. HTTPS":                    `NOERROR outside.example.org. HTTPS 1 . alpn="h2"`,
				"external.demo.svc.cluster.local. A":            "NOERROR external.demo.svc.cluster.local. CNAME outside.example.org., outside.example.org. A 192.0.2.7",
				"_http._tcp.web.demo.svc.cluster.local. SRV":    "NOERROR _http._tcp.web.demo.svc.cluster.local. SRV 0 100 80 web.demo.svc.cluster.local.",
				"web.demo.svc.cluster.local. TXT":               "NXDOMAIN ",
				"missing.example.org. A":                        "NXDOMAIN ",
				"1.0.0.10.in-addr.arpa. PTR":                    "NXDOMAIN ",
				"outside.example.org.demo.svc.cluster.local. A": "NXDOMAIN ",
			} {
				host, kind, _ := strings.Cut(name, " ")
				if got := records(must(t, network, question(host, dns.StringToType[kind]))); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
				if n := r.has(network + " " + kind + " " + host); n != 1 {
					t.Errorf("%s was forwarded %d times", name, n)
				}
			}
			if got := must(t, network, question("outside.example.org.", 65280)); len(got.Answer) != 1 {
				t.Errorf("a type nobody knows: %s", got)
			}
			update := new(dns.Msg)
			update.SetUpdate("example.org.")
			if got := must(t, network, update); got.Rcode != dns.RcodeSuccess || got.Opcode != dns.OpcodeUpdate {
				t.Errorf("update: %s", got)
			}
		})
	})
	t.Run("EDNS", func(t *testing.T) {
		for _, name := range []string{"api.example.com.", "outside.example.org."} {
			q := question(name, dns.TypeA)
			q.SetEdns0(1400, true)
			o := q.IsEdns0()
			o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"})
			m := must(t, "udp", q)
			if o := m.IsEdns0(); o == nil || !o.Do() || o.UDPSize() < 1232 {
				t.Errorf("%s: %s", name, m)
			} else if name == "outside.example.org." && (len(o.Option) != 1 || !strings.HasPrefix(o.Option[0].String(), "0123456789abcdef01020304")) {
				t.Errorf("cookie: %s", m)
			}
			if m := must(t, "udp", question(name, dns.TypeA)); m.IsEdns0() != nil {
				t.Errorf("EDNS that was not asked for: %s", m)
			}
		}
	})
	t.Run("long answers", func(t *testing.T) {
		var many []netip.Addr
		for i := range 100 {
			many = append(many, netip.AddrFrom4([4]byte{10, 97, 0, byte(i + 1)}))
		}
		w.control.apply(mesh.Delta{Services: []*mesh.Service{entry("many.example.com", many...)}})
		w.control.settled(t)
		for name, n := range map[string]int{"many.example.com.": 100, "big.example.org.": 200} {
			if m := must(t, "udp", question(name, dns.TypeA)); !m.Truncated || len(m.Answer) > 31 {
				t.Errorf("%s over UDP: truncated %t, %d records", name, m.Truncated, len(m.Answer))
			}
			if m := must(t, "tcp", question(name, dns.TypeA)); m.Truncated || len(m.Answer) != n {
				t.Errorf("%s over TCP: truncated %t, %d records", name, m.Truncated, len(m.Answer))
			}
			q := question(name, dns.TypeA)
			q.SetEdns0(8192, false)
			if m := must(t, "udp", q); m.Truncated || len(m.Answer) != n {
				t.Errorf("%s over UDP with 8192 bytes: truncated %t, %d records", name, m.Truncated, len(m.Answer))
			}
		}
	})
	t.Run("pipelining", func(t *testing.T) { pipelining(t, client, r) })
	t.Run("zone transfer", func(t *testing.T) {
		c, err := client.line("tcp", r.at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		tr := &dns.Transfer{Conn: c, ReadTimeout: patience}
		q := new(dns.Msg)
		q.SetAxfr("example.org.")
		parts, err := tr.In(q, "")
		if err != nil {
			t.Fatal(err)
		}
		var rrs []dns.RR
		for p := range parts {
			if p.Error != nil {
				t.Fatal(p.Error)
			}
			rrs = append(rrs, p.RR...)
		}
		if len(rrs) != 3 {
			t.Errorf("%v", rrs)
		}
	})
	t.Run("the answer comes from whom was asked", func(t *testing.T) {
		f, err := client.ns.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), 0), netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.FilePacketConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		for _, server := range []netip.AddrPort{netip.MustParseAddrPort("10.96.0.53:53"), netip.MustParseAddrPort("[fd96::53]:53")} { // nobody has them
			q, _ := question("api.example.com.", dns.TypeA).Pack()
			if _, err := pc.(*net.UDPConn).WriteToUDPAddrPort(q, server); err != nil {
				t.Fatal(err)
			}
			pc.SetDeadline(time.Now().Add(patience))
			_, from, err := pc.(*net.UDPConn).ReadFromUDPAddrPort(make([]byte, 512))
			if err != nil || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != server {
				t.Errorf("answer from %s, %v; want %s", from, err, server)
			}
		}
	})
	t.Run("a process of the pod has port 53", func(t *testing.T) {
		f, err := client.ns.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), 53), netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, host := range []string{"api.example.com.", "outside.example.org."} {
			if m := must(t, "udp", question(host, dns.TypeA)); len(m.Answer) != 1 {
				t.Errorf("%s", m)
			}
		}
	})
	t.Run("an answer of the pod's own name server", func(t *testing.T) {
		other := w.newPod(w.b, "asker")
		open := func(p *pod) *net.UDPConn {
			f, err := p.ns.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), 53), netns.SocketOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			pc, err := net.FilePacketConn(f)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { pc.Close() })
			return pc.(*net.UDPConn)
		}
		server, asker := open(client), open(other)
		m := question("client.example.org.", dns.TypeA)
		m.Response = true
		b, _ := m.Pack()
		for i, to := range other.addrs {
			if _, err := server.WriteToUDPAddrPort(b, netip.AddrPortFrom(to, 53)); err != nil {
				t.Fatal(err)
			}
			asker.SetReadDeadline(time.Now().Add(patience))
			buf := make([]byte, 512)
			n, from, err := asker.ReadFromUDPAddrPort(buf)
			if err != nil || from.Addr().Unmap() != client.addrs[i] || from.Port() != 53 || string(buf[:n]) != string(b) {
				t.Errorf("to %s: %d bytes from %s, %v", to, n, from, err)
			}
		}
	})
	t.Run("asking ztunnel by its own port", func(t *testing.T) {
		var wg sync.WaitGroup
		for network, a := range map[string]netip.Addr{"udp": client.addrs[0], "tcp": netip.MustParseAddr("127.0.0.1")} {
			wg.Go(func() {
				m, err := client.ask(network, netip.AddrPortFrom(a, 15053), question("outside.example.org.", dns.TypeA))
				if err != nil || m.Rcode != dns.RcodeServerFailure {
					// The tests' machine may have resolvers, but the pod has no way to them.
					t.Errorf("%s to %s: %v %v, want SERVFAIL and no loop", network, a, m, err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("a resolver that is down", func(t *testing.T) {
		gone := netip.AddrPortFrom(w.newPod(w.b, "gone").addr, 53)
		both(t, func(t *testing.T, network string) {
			m, err := client.ask(network, gone, question("outside.example.org.", dns.TypeA))
			if err != nil || m.Rcode != dns.RcodeServerFailure {
				t.Errorf("refused: %v %v", m, err)
			}
			if m, err = client.ask(network, gone, question("api.example.com.", dns.TypeA)); err != nil || len(m.Answer) != 1 {
				t.Errorf("a name of the mesh: %v %v", m, err)
			}
		})
		r.before(func(dns.ResponseWriter, *dns.Msg) bool { return true })
		defer r.before(nil)
		var wg sync.WaitGroup
		for network, want := range map[string]int{"udp": 2, "tcp": 1} {
			wg.Go(func() {
				m, err := client.ask(network, r.at, question("silent.example.org.", dns.TypeA))
				if err != nil || m.Rcode != dns.RcodeServerFailure {
					t.Errorf("silent: %v %v", m, err)
				}
				if n := r.has(network + " A silent.example.org."); n != want {
					t.Errorf("%s: asked %d times, want %d", network, n, want)
				}
			})
		}
		wg.Wait()
	})
	t.Run("a lost datagram", func(t *testing.T) {
		var n atomic.Int32
		r.before(func(dns.ResponseWriter, *dns.Msg) bool { return n.Add(1) == 1 })
		defer r.before(nil)
		if got := records(must(t, "udp", question("outside.example.org.", dns.TypeA))); got != "NOERROR outside.example.org. A 192.0.2.7" {
			t.Error(got)
		}
	})
	t.Run("system resolver", func(t *testing.T) { systemResolver(t, client, r, vips) })
	t.Run("metrics", func(t *testing.T) {
		before := w.a.metric(t, "istio_dns_requests_total", `request_query_type="txt"`, `request_protocol="udp"`, `source_canonical_service="client"`)
		upstream := w.a.metric(t, "istio_dns_upstream_requests_total", `request_query_type="txt"`)
		must(t, "udp", question("outside.example.org.", dns.TypeTXT))
		if n := w.a.metric(t, "istio_dns_requests_total", `request_query_type="txt"`, `request_protocol="udp"`, `source_canonical_service="client"`); n != before+1 {
			t.Errorf("requests: %v, before %v", n, before)
		}
		if n := w.a.metric(t, "istio_dns_upstream_requests_total", `request_query_type="txt"`); n != upstream+1 {
			t.Errorf("upstream requests: %v, before %v", n, upstream)
		}
		eventually(t, "the duration is counted", func() error {
			if n := w.a.metric(t, "istio_dns_upstream_request_duration_seconds_count", `request_query_type="txt"`); n != upstream+1 {
				return fmt.Errorf("%v of %v", n, upstream+1)
			}
			return nil
		})
		if n := w.a.metric(t, "istio_dns_upstream_failures_total"); n == 0 {
			t.Error("no failure is counted")
		}
	})
}

// pipelining asks many questions on one connection at once, of which the first is
// answered last.
func pipelining(t *testing.T, client *pod, r *resolver) {
	hold := make(chan struct{})
	r.before(func(_ dns.ResponseWriter, q *dns.Msg) bool {
		if q.Question[0].Name == "outside.example.org." && q.Question[0].Qtype == dns.TypeTXT {
			<-hold
		}
		return false
	})
	defer r.before(nil)
	c, err := client.line("tcp", r.at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	ids := map[uint16]bool{}
	first := question("outside.example.org.", dns.TypeTXT)
	for i := range 20 {
		q := first
		switch {
		case i > 0 && i%2 == 0:
			q = question("outside.example.org.", dns.TypeA)
		case i > 0:
			q = question("api.example.com.", dns.TypeA)
		}
		for i > 0 && (ids[q.Id] || q.Id == first.Id) {
			q.Id++
		}
		ids[q.Id] = true
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		if i == 19 {
			close(hold)
		}
		m, err := c.ReadMsg()
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if !ids[m.Id] || len(m.Answer) != 1 || (m.Id == first.Id) != (i == 19) {
			t.Fatalf("answer %d: %s", i, m)
		}
		delete(ids, m.Id)
	}
}

// systemResolver looks names up as programs do: the C library's resolver and Go's,
// with the search list that Kubernetes gives to pods.
func systemResolver(t *testing.T, client *pod, r *resolver, vips []netip.Addr) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	text := fmt.Sprintf("nameserver %s\nsearch demo.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", r.at.Addr())
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	getent, err := exec.LookPath("getent")
	if err != nil {
		t.Skip("getent is not there")
	}
	for host, want := range map[string][]string{
		"web": {vips[0].String(), vips[1].String()}, "web.demo": {vips[0].String(), vips[1].String()},
		"api.example.com": {client.node.w.vip(20)[0].String(), client.node.w.vip(20)[1].String()}, "outside.example.org": {"192.0.2.7", "2001:db8::7"},
		"only4.example.com": {client.node.w.vip(22)[0].String()}, "missing.example.org": nil,
	} {
		cmd := exec.Command("sh", "-c", `mount --bind "$1" /etc/resolv.conf && exec "$2" ahosts "$3"`, "sh", conf, getent, host)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		var out []byte
		// What is not found is an exit code.
		if err := client.ns.Do(func() error { out, _ = cmd.CombinedOutput(); return nil }); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 1 && f[1] == "STREAM" {
				got = append(got, f[0])
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("getent ahosts %s: %v, want %v\n%s", host, got, want, out)
		}
	}
	// Go's resolver asks for both families at once on one name.
	res := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		c, err := client.line("udp", r.at)
		if err != nil {
			return nil, err
		}
		return c.Conn, nil
	}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ips, err := res.LookupNetIP(ctx, "ip", "web.demo.svc.cluster.local.")
	if err != nil || len(ips) != 2 {
		t.Errorf("Go's resolver: %v, %v", ips, err)
	}
}

// Names go on being answered while one ztunnel ends and the next begins: a
// question waits in the socket. No answer is ever that a name is not there.
//
//ambit:feature dns-restart
func TestDNSAcrossRestart(t *testing.T) {
	t.Parallel()
	w, client, r, _ := dnsWorld(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var answered, late atomic.Int64
	for i := range 8 {
		host := []string{"api.example.com.", "outside.example.org.", "web.demo.svc.cluster.local.", "a.wild.example.com."}[i%4]
		network := []string{"udp", "udp", "udp", "tcp"}[i/2]
		wg.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				<-tick.C
				c, err := client.line(network, r.at)
				if err != nil {
					if network == "udp" {
						t.Error(err)
						return
					}
					continue
				}
				c.SetDeadline(time.Now().Add(5 * time.Second)) // what resolver libraries wait
				err = c.WriteMsg(question(host, dns.TypeA))
				var m *dns.Msg
				if err == nil {
					m, err = c.ReadMsg()
				}
				c.Close()
				switch {
				case errors.Is(err, os.ErrDeadlineExceeded) || err != nil && network == "tcp":
					late.Add(1) // it asks again
				case err != nil:
					t.Errorf("%s %s: %v", network, host, err)
					return
				case m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1:
					t.Errorf("%s %s: a negative answer: %s", network, host, m)
					return
				default:
					answered.Add(1)
				}
			}
		})
	}
	begun := time.Now()
	more := func(what string) {
		defer func() { t.Logf("%s: %s", what, time.Since(begun)) }()
		before := answered.Load()
		eventually(t, what, func() error {
			if n := answered.Load() - before; n < 200 {
				return fmt.Errorf("%d answers", n)
			}
			return nil
		})
	}
	more("questions are answered")
	w.a.zt.kill()
	w.a.zt = w.a.startZtunnel(nil)
	more("questions are answered after a kill")
	w.a.zt.terminate()
	w.a.zt = w.a.startZtunnel(nil)
	w.waitReady(w.a)
	more("questions are answered after an orderly end")
	cancel()
	wg.Wait()
	t.Logf("%d answers, %d asked again", answered.Load(), late.Load())
}

// BenchmarkDNS asks a resolver from a pod whose questions are not captured, through
// ztunnel, and for names of the mesh; one question at a time, and from 32 clients.
func BenchmarkDNS(b *testing.B) {
	w, client, r, _ := dnsWorld(b)
	plain := w.newPod(w.a, "plain")
	for _, c := range []struct {
		name string
		pod  *pod
		host string
	}{{"direct", plain, "outside.example.org."}, {"forwarded", client, "outside.example.org."}, {"mesh", client, "api.example.com."}} {
		for _, clients := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/%d", c.name, clients), func(b *testing.B) {
				q, err := question(c.host, dns.TypeA).Pack()
				if err != nil {
					b.Fatal(err)
				}
				var wg sync.WaitGroup
				took := make([][]time.Duration, clients)
				each := b.N/clients + 1
				b.ResetTimer()
				start := time.Now()
				for i := range clients {
					line, err := c.pod.line("udp", r.at)
					if err != nil {
						b.Fatal(err)
					}
					wg.Go(func() {
						defer line.Close()
						buf := make([]byte, 512)
						for range each {
							at := time.Now()
							line.SetDeadline(at.Add(patience))
							if _, err := line.Conn.Write(q); err != nil {
								b.Error(err)
								return
							}
							if _, err := line.Conn.Read(buf); err != nil {
								b.Error(err)
								return
							}
							took[i] = append(took[i], time.Since(at))
						}
					})
				}
				wg.Wait()
				all := slices.Concat(took...)
				slices.Sort(all)
				b.ReportMetric(float64(len(all))/time.Since(start).Seconds(), "questions/s")
				b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
			})
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.a.zt.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "VmHWM") {
			b.Log(strings.TrimSpace(line))
		}
	}
}
