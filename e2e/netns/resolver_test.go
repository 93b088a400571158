package netns_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/miekg/dns"
)

// resolver is a name server of the world outside the mesh, in a pod.
type resolver struct {
	at netip.AddrPort

	mu    sync.Mutex
	asked []string                                // "<protocol> <type> <name>", guarded by mu
	hook  func(dns.ResponseWriter, *dns.Msg) bool // guarded by mu; true: it has answered
}

// newResolver serves DNS on port 53 of p.
func newResolver(t testing.TB, p *pod) *resolver {
	t.Helper()
	r := &resolver{at: netip.AddrPortFrom(p.addr, 53)}
	any := netip.AddrPortFrom(netip.IPv6Unspecified(), 53)
	uf, err := p.ns.ListenUDP(any, netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.FilePacketConn(uf)
	uf.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc}, {Listener: p.listener(53)}} {
		started := make(chan struct{})
		done := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
		s.Handler = dns.HandlerFunc(r.serve)
		go func() { defer close(done); s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return r
}

// before is asked about every message before it is answered.
func (r *resolver) before(hook func(dns.ResponseWriter, *dns.Msg) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = hook
}

// has reports how often a question has arrived.
func (r *resolver) has(question string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.asked {
		if q == question {
			n++
		}
	}
	return n
}

var transfers atomic.Int32

func (r *resolver) serve(w dns.ResponseWriter, q *dns.Msg) {
	protocol := w.LocalAddr().Network()
	name, kind := q.Question[0].Name, q.Question[0].Qtype
	r.mu.Lock()
	r.asked = append(r.asked, fmt.Sprintf("%s %s %s", protocol, dns.TypeToString[kind], name))
	hook := r.hook
	r.mu.Unlock()
	if hook != nil && hook(w, q) {
		return
	}
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(4096, o.Do())
		for _, opt := range o.Option {
			if c, ok := opt.(*dns.EDNS0_COOKIE); ok {
				m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: c.Cookie + "0102030405060708"})
			}
		}
	}
	add := func(format string, args ...any) {
		rr, err := dns.NewRR(fmt.Sprintf(format, args...))
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	switch host := strings.ToLower(name); {
	case kind == dns.TypeAXFR:
		soa, _ := dns.NewRR(name + " 60 IN SOA ns. me. 1 2 3 4 5")
		for i := range 3 { // three messages
			part := new(dns.Msg)
			part.SetReply(q)
			if i != 1 {
				part.Answer = append(part.Answer, soa)
			} else {
				a, _ := dns.NewRR("host." + name + " 60 IN A 192.0.2.9")
				part.Answer = append(part.Answer, a)
			}
			w.WriteMsg(part)
		}
		transfers.Add(1)
		return
	case q.Opcode == dns.OpcodeUpdate:
	case host == "outside.example.org.":
		switch kind {
		case dns.TypeA:
			add("%s 60 IN A 192.0.2.7", name)
		case dns.TypeAAAA:
			add("%s 60 IN AAAA 2001:db8::7", name)
		case dns.TypeTXT:
			add(`%s 60 IN TXT "hello"`, name)
		case dns.TypeMX:
			add("%s 60 IN MX 10 mail.example.org.", name)
		case dns.TypeHTTPS:
			add("%s 60 IN HTTPS 1 . alpn=h2", name)
		case dns.TypeNone, 65280: // private use
			m.Answer = append(m.Answer, &dns.RFC3597{Hdr: dns.RR_Header{Name: name, Rrtype: 65280, Class: dns.ClassINET, Ttl: 1}, Rdata: "0102"})
		}
	case host == "external.demo.svc.cluster.local." && kind == dns.TypeA: // an ExternalName service
		add("%s 5 IN CNAME outside.example.org.", name)
		add("outside.example.org. 60 IN A 192.0.2.7")
	case kind == dns.TypeSRV && host == "_http._tcp.web.demo.svc.cluster.local.":
		add("%s 5 IN SRV 0 100 80 web.demo.svc.cluster.local.", name)
	case host == "big.example.org.":
		for i := range 200 {
			add("%s 60 IN A 192.0.%d.%d", name, i/250, i%250+1)
		}
		if protocol == "udp" {
			size := dns.MinMsgSize
			if o := q.IsEdns0(); o != nil {
				size = int(o.UDPSize())
			}
			m.Truncate(size)
		}
	default:
		m.Rcode = dns.RcodeNameError
	}
	w.WriteMsg(m)
}

// ask puts one message to a server from the pod, as a resolver library does.
func (p *pod) ask(network string, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	c, err := p.line(network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return askOn(c, q)
}

// line is a connection to a server for messages.
func (p *pod) line(network string, server netip.AddrPort) (*dns.Conn, error) {
	var c net.Conn
	err := p.ns.Do(func() (err error) {
		if network == "udp" {
			c, err = net.Dial("udp", server.String())
		}
		return err
	})
	if network == "tcp" {
		c, err = p.dial(server.String())
	}
	if err != nil {
		return nil, err
	}
	return &dns.Conn{Conn: c, UDPSize: 65535}, nil
}

func question(name string, kind uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	return m
}

// records are the answer's in one line.
func records(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		h := rr.Header()
		data := strings.Join(strings.Fields(strings.TrimPrefix(rr.String(), h.String())), " ")
		out = append(out, fmt.Sprintf("%s %s %s", h.Name, dns.TypeToString[h.Rrtype], data))
	}
	return fmt.Sprintf("%s %s", dns.RcodeToString[m.Rcode], strings.Join(out, ", "))
}
