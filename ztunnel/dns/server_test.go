package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// here opens sockets in the test's own namespace. Answers go out of the socket
// that the questions came in at, since anything else needs privileges.
type here struct{}

func (here) DialUDP(remote netip.AddrPort, _ netns.SocketOptions) (*net.UDPConn, error) {
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(remote))
}

func (here) DialTCP(ctx context.Context, _, remote netip.AddrPort, _ netns.SocketOptions) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", remote.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (here) Impostor(v6 bool, _ uint32) (*netns.Impostor, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return ns.Impostor(v6, 0)
}

const patience = time.Minute

// rig is a Server between a test and a resolver.
type rig struct {
	*Server
	udp, tcp netip.AddrPort // where it is asked
	upstream netip.AddrPort
	stop     func() // closes the listeners
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	cfg      Config
}

// newRig starts one whose resolver is up, of which none answers if up is nil.
func newRig(t testing.TB, s *mesh.Snapshot, up wire.HandlerFunc, change func(*Config)) *rig {
	t.Helper()
	loopback := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	conn, err := net.ListenUDP("udp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{udp: conn.LocalAddr().(*net.UDPAddr).AddrPort(), tcp: ln.Addr().(*net.TCPAddr).AddrPort()}
	if up != nil {
		r.upstream = resolver(t, up)
	}
	store := mesh.NewStore()
	if s != nil {
		store.Swap(s)
	}
	cfg := Config{
		Pod: &live.Pod{UID: "uid", Name: "client", Namespace: "ns1", ServiceAccount: "default"}, Namespace: here{}, Store: store,
		Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler), Rewritten: true,
		Settings: Settings{Resolvers: []netip.AddrPort{r.upstream}},
		Original: func(*net.TCPConn) netip.AddrPort { return r.upstream },
	}
	if change != nil {
		change(&cfg)
	}
	r.Server, r.cfg = New(cfg), cfg
	r.Server.cfg.Resolvers = cfg.Resolvers // those of this test are on the loopback
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Go(func() {
		if err := r.ServeUDP(ctx, conn); err != nil {
			t.Error(err)
		}
	})
	r.wg.Go(func() {
		if err := r.ServeTCP(ctx, ln, nil); err != nil {
			t.Error(err)
		}
	})
	r.stop = func() { conn.Close(); ln.Close() }
	t.Cleanup(func() {
		r.stop()
		r.cancel()
		r.wg.Wait()
		r.Server.Close()
	})
	return r
}

func resolver(t testing.TB, h wire.HandlerFunc) netip.AddrPort {
	t.Helper()
	// UDP and TCP on one port, as they are.
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err != nil {
			ln.Close()
			continue
		}
		for _, s := range []*wire.Server{{PacketConn: pc}, {Listener: ln}} {
			started, done := make(chan struct{}), make(chan struct{})
			s.Handler, s.NotifyStartedFunc = h, func() { close(started) }
			go func() { defer close(done); s.ActivateAndServe() }()
			<-started
			t.Cleanup(func() { s.Shutdown(); <-done })
		}
		return ln.Addr().(*net.TCPAddr).AddrPort()
	}
	t.Fatal("no port for both")
	return netip.AddrPort{}
}

// outside answers every question for addresses with 192.0.2.1.
func outside(w wire.ResponseWriter, q *wire.Msg) {
	m := new(wire.Msg)
	m.SetReply(q)
	rr, _ := wire.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.1")
	m.Answer = append(m.Answer, rr)
	w.WriteMsg(m)
}

// self is the client's own record.
func self() *mesh.Workload {
	return &mesh.Workload{UID: "c//Pod/ns1/client", Name: "client", Namespace: "ns1", CanonicalName: "client", CanonicalRevision: "v1"}
}

func ask(t testing.TB, network string, at netip.AddrPort, name string) *wire.Msg {
	t.Helper()
	c := wire.Client{Net: network, Timeout: patience}
	m := new(wire.Msg)
	m.SetQuestion(name, wire.TypeA)
	a, _, err := c.Exchange(m, at.String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return a
}

func (r *rig) at(network string) netip.AddrPort {
	if network == "udp" {
		return r.udp
	}
	return r.tcp
}

func TestServer(t *testing.T) {
	r := newRig(t, snapshot(self(), service("ns1/web.ns1.svc.cluster.local", nil, "10.1.0.1")), outside, nil)
	for _, network := range []string{"udp", "tcp"} {
		if m := ask(t, network, r.at(network), "web."); len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "10.1.0.1") {
			t.Errorf("%s: %s", network, m)
		}
		if m := ask(t, network, r.at(network), "www.example.com."); len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "192.0.2.1") {
			t.Errorf("%s: %s", network, m)
		}
	}
}

// TestOff: a pod whose questions are captured is served even if nothing is answered.
//
//ambit:feature dns-off
func TestOff(t *testing.T) {
	r := newRig(t, snapshot(service("ns1/web.ns1.svc.cluster.local", nil, "10.1.0.1")), outside, func(c *Config) { c.Off = true })
	for _, network := range []string{"udp", "tcp"} {
		if m := ask(t, network, r.at(network), "web.ns1.svc.cluster.local."); len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "192.0.2.1") {
			t.Errorf("%s: %s", network, m)
		}
	}
}

// TestUnknownClient: who is not known yet waits, and is answered as soon as the
// control plane has told of it.
//
//ambit:feature dns-new-pod
func TestUnknownClient(t *testing.T) {
	r := newRig(t, snapshot(service("ns1/web.ns1.svc.cluster.local", nil, "10.1.0.1")), outside, nil)
	m := new(wire.Msg)
	m.SetQuestion("web.", wire.TypeA)
	c, err := wire.Dial("udp", r.udp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	// A type that is forwarded anyway does not wait.
	other := m.Copy()
	other.Id++
	other.Question[0].Qtype = wire.TypeSRV
	if err := c.WriteMsg(other); err != nil {
		t.Fatal(err)
	}
	if a, err := c.ReadMsg(); err != nil || a.Id != other.Id || a.Rcode != 0 {
		t.Fatalf("%v, %v", a, err)
	}
	if err := c.WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	b := mesh.NewBuilder(r.cfg.Store.Load())
	b.Apply(mesh.Delta{Workloads: []*mesh.Workload{self()}})
	r.cfg.Store.Swap(b.Build())
	if a, err := c.ReadMsg(); err != nil || a.Id != m.Id || len(a.Answer) != 1 || !strings.HasSuffix(a.Answer[0].String(), "10.1.0.1") {
		t.Fatalf("%v, %v", a, err)
	}
}

// TestForgedAnswers: an answer that is not to the question is waited past, whoever
// sends it.
//
//ambit:feature dns-spoofing
func TestForgedAnswers(t *testing.T) {
	ports := map[string]bool{}
	ids := map[uint16]bool{}
	var mu sync.Mutex
	r := newRig(t, snapshot(self()), func(w wire.ResponseWriter, q *wire.Msg) {
		mu.Lock()
		ports[w.RemoteAddr().String()], ids[q.Id] = true, true
		mu.Unlock()
		for i := range 20 { // a resolver that is very wrong before it is right
			m := new(wire.Msg)
			m.SetReply(q)
			m.Rcode = wire.RcodeNameError
			if i%2 == 0 {
				m.Id += uint16(i + 1)
			} else {
				m.Question[0].Name = "evil.example.com."
			}
			w.WriteMsg(m)
		}
		outside(w, q)
	}, nil)
	for range 20 {
		if m := ask(t, "udp", r.udp, "www.example.com."); m.Rcode != 0 || len(m.Answer) != 1 {
			t.Fatal(m)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ports) < 15 || len(ids) < 15 {
		t.Errorf("20 questions from %d ports with %d ids", len(ports), len(ids))
	}
}

// TestTooManyWaiting: questions that a resolver does not answer take no more than
// their share, and the mesh's names go on being answered.
//
//ambit:feature dns-limit
func TestTooManyWaiting(t *testing.T) {
	hold := make(chan struct{})
	q := live.NewQuota(live.Limits{Node: 1 << 20, Pod: 1 << 20}, nil)
	share := q.Share()
	r := newRig(t, snapshot(self(), service("ns1/web.ns1.svc.cluster.local", nil, "10.1.0.1")), func(wire.ResponseWriter, *wire.Msg) { <-hold }, func(c *Config) { c.Share = share })
	defer close(hold)
	for range maxWaiting {
		r.waiting <- struct{}{}
	}
	c, err := wire.Dial("udp", r.udp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	other, own := new(wire.Msg), new(wire.Msg)
	other.SetQuestion("www.example.com.", wire.TypeA)
	own.SetQuestion("web.", wire.TypeA)
	if err := c.WriteMsg(other); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteMsg(own); err != nil {
		t.Fatal(err)
	}
	if a, err := c.ReadMsg(); err != nil || a.Id != own.Id {
		t.Errorf("%v, %v", a, err)
	}
	for range maxWaiting {
		<-r.waiting
	}
}

// silence is a resolver that never answers, and a way to wait until it has been
// asked so often in all.
func silence(t testing.TB) (at netip.AddrPort, heard func(n int)) {
	var asked atomic.Int64
	at = resolver(t, func(wire.ResponseWriter, *wire.Msg) { asked.Add(1) })
	return at, func(n int) {
		t.Helper()
		for deadline := time.Now().Add(patience); asked.Load() < int64(n); runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("the resolver was asked %d times, not %d", asked.Load(), n)
			}
		}
	}
}

// TestNothingIsLeft: questions in every state, and their end.
func TestNothingIsLeft(t *testing.T) {
	fds := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(d)
	}
	first, heardFirst := silence(t)
	second, heardSecond := silence(t)
	goroutines, files := runtime.NumGoroutine(), fds()
	for _, hard := range []bool{true, false} {
		silent, heard := first, heardFirst
		if hard {
			silent, heard = second, heardSecond
		}
		r := newRig(t, snapshot(self()), nil, func(c *Config) {
			c.Resolvers = []netip.AddrPort{silent}
			c.Original = func(*net.TCPConn) netip.AddrPort { return silent }
		})
		var wg sync.WaitGroup
		var conns []*wire.Conn
		for i := range 20 {
			network := []string{"udp", "tcp"}[i%2]
			c, err := wire.Dial(network, r.at(network).String())
			if err != nil {
				t.Fatal(err)
			}
			m := new(wire.Msg)
			m.SetQuestion(fmt.Sprintf("h%d.example.com.", i), wire.TypeA)
			if err := c.WriteMsg(m); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			c.SetDeadline(time.Now().Add(patience))
			if network == "udp" && os.Geteuid() != 0 {
				c.SetDeadline(time.Now().Add(2 * upstreamTimeout)) // a late answer needs a raw socket
			}
			wg.Go(func() {
				a, err := c.ReadMsg()
				if !hard && (network == "tcp" || os.Geteuid() == 0) && (err != nil || a.Rcode != wire.RcodeServerFailure) {
					t.Errorf("%v, %v", a, err) // in an orderly end they are answered
				}
				c.Close()
			})
			if i == 19 {
				heard(20) // all have been taken up
			}
		}
		r.stop()
		if hard {
			r.cancel()
		}
		r.wg.Wait()
		r.Server.Close()
		if hard { // clients over UDP learn nothing
			for _, c := range conns {
				c.SetDeadline(time.Unix(1, 0))
			}
		}
		wg.Wait()
	}
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > goroutines || fds() > files {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines of %d, %d descriptors of %d\n%s", runtime.NumGoroutine(), goroutines, fds(), files, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

func TestResolversOnLoopbackAreThePodItself(t *testing.T) {
	s := New(Config{Settings: Settings{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53"), netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("[::1]:53")}},
		Logger: slog.New(slog.DiscardHandler)})
	if got := s.resolvers(&exchange{}); len(got) != 1 || got[0].String() != "10.0.0.1:53" {
		t.Error(got)
	}
	if got := s.resolvers(&exchange{server: netip.MustParseAddrPort("10.0.0.2:53")}); len(got) != 1 || got[0].String() != "10.0.0.2:53" {
		t.Error(got)
	}
}

func TestHosts(t *testing.T) {
	good := resolver(t, func(w wire.ResponseWriter, q *wire.Msg) {
		m := new(wire.Msg)
		m.SetReply(q)
		add := func(s string) {
			rr, _ := wire.NewRR(s)
			m.Answer = append(m.Answer, rr)
		}
		name, kind := q.Question[0].Name, q.Question[0].Qtype
		switch {
		case name == "alias.example.com." && kind == wire.TypeA:
			add("alias.example.com. 300 IN CNAME real.example.com.")
			add("real.example.com. 20 IN A 192.0.2.1")
		case name == "alias.example.com.":
			add("alias.example.com. 300 IN CNAME real.example.com.")
		case name == "both.example.com." && kind == wire.TypeA:
			add("both.example.com. 60 IN A 192.0.2.1")
		case name == "both.example.com.":
			add("both.example.com. 40 IN AAAA 2001:db8::1")
		case name == "many.example.com." && kind == wire.TypeA:
			for i := range 200 {
				add(fmt.Sprintf("many.example.com. 60 IN A 192.0.2.%d", i))
			}
			if w.LocalAddr().Network() == "udp" {
				m.Truncate(1232)
			}
		case name == "missing.example.com.":
			m.Rcode = wire.RcodeNameError
		}
		w.WriteMsg(m)
	})
	broken := resolver(t, func(w wire.ResponseWriter, q *wire.Msg) {
		m := new(wire.Msg)
		m.SetRcode(q, wire.RcodeServerFailure)
		w.WriteMsg(m)
	})
	for _, c := range []struct {
		servers []netip.AddrPort
		name    string
		noIPv6  bool
		n       int
		ttl     time.Duration
		err     string
	}{
		{[]netip.AddrPort{good}, "alias.example.com", false, 1, 20 * time.Second, ""},
		{[]netip.AddrPort{good}, "both.example.com", false, 2, 40 * time.Second, ""},
		{[]netip.AddrPort{good}, "both.example.com", true, 1, 60 * time.Second, ""},
		{[]netip.AddrPort{good}, "many.example.com", false, 200, 60 * time.Second, ""},
		{[]netip.AddrPort{broken, good}, "both.example.com", false, 2, 40 * time.Second, ""},
		{[]netip.AddrPort{good}, "missing.example.com", false, 0, 0, "no address"},
		{[]netip.AddrPort{broken}, "both.example.com", false, 0, 0, "SERVFAIL"},
		{nil, "both.example.com", false, 0, 0, "no resolver"},
	} {
		addrs, ttl, err := NewHosts(c.servers, c.noIPv6).Lookup(context.Background(), c.name)
		if len(addrs) != c.n || ttl != c.ttl || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s (no IPv6: %t): %d addresses for %s, %v", c.name, c.noIPv6, len(addrs), ttl, err)
		}
	}
	conf := t.TempDir() + "/resolv.conf"
	os.WriteFile(conf, []byte("nameserver 10.0.0.1\nnameserver fd00::1\nsearch x.y\n"), 0o600)
	if got, err := Resolvers(conf); err != nil || fmt.Sprint(got) != "[10.0.0.1:53 [fd00::1]:53]" {
		t.Error(got, err)
	}
	if _, err := Resolvers(conf + "x"); err == nil {
		t.Error("no file is no error")
	}
}

// BenchmarkServer is one client's questions over UDP, one after the other: to a
// resolver directly, through a Server, and about a name of the mesh.
func BenchmarkServer(b *testing.B) {
	r := newRig(b, snapshot(self(), service("ns1/web.ns1.svc.cluster.local", nil, "10.1.0.1")), outside, nil)
	for name, c := range map[string]struct {
		at   netip.AddrPort
		host string
	}{"direct": {r.upstream, "www.example.com."}, "forwarded": {r.udp, "www.example.com."}, "mesh": {r.udp, "web.ns1.svc.cluster.local."}} {
		b.Run(name, func(b *testing.B) {
			conn, err := net.Dial("udp", c.at.String())
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			q := asked(b, c.host, wire.TypeA, nil)
			buf := make([]byte, 512)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(q); err != nil {
					b.Fatal(err)
				}
				if _, err := conn.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestWaitingIsCheap: what questions to a resolver that is away hold, and
// connections that promise long messages and send none.
//
//ambit:feature dns-limit
func TestWaitingIsCheap(t *testing.T) {
	silent, heard := silence(t)
	r := newRig(t, snapshot(self()), nil, func(c *Config) { c.Resolvers = []netip.AddrPort{silent} })
	inUse := func() uint64 {
		runtime.GC()
		runtime.GC() // pools give up what they have at the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := inUse()
	const n = 300
	c, err := net.Dial("udp", r.udp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range n {
		if _, err := c.Write(asked(t, fmt.Sprintf("h%d.example.com.", i), wire.TypeA, nil)); err != nil {
			t.Fatal(err)
		}
		heard(i + 1) // one after the other: none is lost
	}
	var conns []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", r.tcp.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte{0xff, 0xff, 0}); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if held := int64(inUse()) - int64(before); held > (n+100)*20<<10 {
		t.Errorf("%d questions and %d connections hold %d bytes", n, len(conns), held)
	}
}
