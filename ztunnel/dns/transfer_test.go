package dns

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// part is one message of an answer to q, of records in the form of zone files.
func part(t testing.TB, q *wire.Msg, records ...string) *wire.Msg {
	t.Helper()
	m := new(wire.Msg)
	m.SetReply(q)
	for _, r := range records {
		rr, err := wire.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

// soa is that of version n, a that of an address.
func soa(n int) string {
	return fmt.Sprintf("example.org. 60 IN SOA ns.example.org. me. %d 2 3 4 5", n)
}

const a = "host.example.org. 60 IN A 192.0.2.9"

// TestTransferEnds: where a zone ends, which only its records tell.
func TestTransferEnds(t *testing.T) {
	axfr, ixfr, unsaid := new(wire.Msg), new(wire.Msg), new(wire.Msg)
	axfr.SetAxfr("example.org.")
	ixfr.SetIxfr("example.org.", 7, "ns.", "me.")
	unsaid.SetQuestion("example.org.", wire.TypeIXFR)
	type records = []string
	for _, c := range []struct {
		name  string
		query *wire.Msg
		parts []records
		ends  int // with which message; 0: not at all
	}{
		{"one message", axfr, []records{{soa(9), a, soa(9)}}, 1},
		{"many", axfr, []records{{soa(9)}, {a, a}, {a}, {a, soa(9)}}, 4},
		{"a record in each", axfr, []records{{soa(9)}, {a}, {soa(9)}}, 3},
		{"no end", axfr, []records{{soa(9), a}, {a}}, 0},
		{"an answer that is no zone", axfr, []records{{a}}, 1},
		{"an empty answer", axfr, []records{{}}, 1},
		{"nothing new", ixfr, []records{{soa(7)}}, 1},
		{"an older version", ixfr, []records{{soa(6)}}, 1},
		{"it is not known what is new", unsaid, []records{{soa(7)}, {soa(6), a, soa(7), a, soa(7)}}, 2},
		{"one change", ixfr, []records{{soa(9), soa(7), a, soa(9), a, soa(9)}}, 1},
		{"two changes", ixfr, []records{{soa(9), soa(7), a}, {soa(8), a, soa(8)}, {a, soa(9)}, {a}, {soa(9)}}, 5},
		{"a change that only takes away", ixfr, []records{{soa(9), soa(7), a, soa(9)}, {soa(9)}}, 2},
		{"a whole zone", ixfr, []records{{soa(9), a, a}, {soa(9)}}, 2},
		{"a whole zone, a record in each", ixfr, []records{{soa(9)}, {a}, {soa(9)}}, 3},
	} {
		raw, err := c.query.Pack()
		if err != nil {
			t.Fatal(err)
		}
		for _, bare := range []bool{false, true} { // RFC 5936 2.2.1: later messages may have no question
			x := &exchange{question: read(raw), raw: raw}
			if !x.transfer() {
				t.Fatal("no transfer")
			}
			p, ends := x.progress(), 0
			for i, r := range c.parts {
				m := part(t, c.query, r...)
				m.Compress = true
				if bare && i > 0 {
					m.Question = nil
				}
				b, err := m.Pack()
				if err != nil {
					t.Fatal(err)
				}
				done, err := p.take(b)
				if err != nil {
					t.Fatalf("%s: message %d: %v", c.name, i+1, err)
				}
				if done {
					ends = i + 1
					break
				}
			}
			if ends != c.ends {
				t.Errorf("%s (later ones without a question: %t): ends with message %d, not %d", c.name, bare, ends, c.ends)
			}
		}
	}
}

// TestTransferTakesDNSAlone: what is no part of the answer ends a transfer.
func TestTransferTakesDNSAlone(t *testing.T) {
	q := new(wire.Msg)
	q.SetAxfr("example.org.")
	raw, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	pack := func(change func(*wire.Msg)) []byte {
		m := part(t, q, soa(9), a)
		change(m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := pack(func(*wire.Msg) {})
	for name, m := range map[string][]byte{
		"nothing":           {},
		"half a message":    good[:len(good)-3],
		"more than one":     append(slices.Clone(good), "more"...),
		"another protocol":  []byte("SSH-2.0-OpenSSH_9.9 and more of it"),
		"another id":        pack(func(m *wire.Msg) { m.Id++ }),
		"another name":      pack(func(m *wire.Msg) { m.Question[0].Name = "example.net." }),
		"another type":      pack(func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeTXT }),
		"another operation": pack(func(m *wire.Msg) { m.Opcode = wire.OpcodeUpdate }),
		"a question":        pack(func(m *wire.Msg) { m.Response = false }),
	} {
		if done, err := (&exchange{question: read(raw), raw: raw}).progress().take(m); err == nil || done {
			t.Errorf("%s: end %t, %v", name, done, err)
		}
	}
	refused := pack(func(m *wire.Msg) { m.Rcode, m.Answer = wire.RcodeRefused, nil })
	if done, err := (&exchange{question: read(raw), raw: raw}).progress().take(refused); err != nil || !done {
		t.Errorf("refused: end %t, %v", done, err)
	}
}

// FuzzTransfer: whatever a server of a zone sends.
func FuzzTransfer(f *testing.F) {
	q := new(wire.Msg)
	q.SetIxfr("example.org.", 7, "ns.", "me.")
	raw, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range [][]string{{soa(9), soa(7), a, soa(9), a, soa(9)}, {soa(7)}, {soa(9), a}, nil} {
		b, err := part(f, q, r...).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 2 { // or hardly anything gets past the id
			copy(b, raw[:2])
		}
		x := &exchange{question: read(raw), raw: raw}
		p := x.progress()
		if _, err := p.take(b); err != nil {
			return
		}
		var m wire.Msg
		if m.Unpack(b) != nil || len(m.Answer) == 0 {
			return
		}
		if first, ok := m.Answer[0].(*wire.SOA); ok && p.seen && first.Serial != p.serial {
			t.Fatalf("serial %d, read as %d", first.Serial, p.serial)
		}
	})
}

// zoneServer gives the connection that a transfer is asked for on, and what it
// was asked.
func zoneServer(t *testing.T, serve func(c *net.TCPConn, q *wire.Msg)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			if b, err := readFrame(c); err == nil {
				q := new(wire.Msg)
				if err := q.Unpack(b); err != nil {
					t.Error(err)
				}
				serve(c.(*net.TCPConn), q)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// asking has a rig's clients ask up.
func asking(up netip.AddrPort) func(*Config) {
	return func(c *Config) { c.Original = func(*net.TCPConn) netip.AddrPort { return up } }
}

// send sends a message as it is.
func send(t *testing.T, c net.Conn, m *wire.Msg) {
	t.Helper()
	b, err := m.Pack()
	if err == nil {
		err = writeFrame(c, b)
	}
	if err != nil {
		t.Error(err)
	}
}

// TestTransferIsNoPipe: a question for a zone opens no way for anything else, in
// either direction.
//
//ambit:feature dns-transfer
func TestTransferIsNoPipe(t *testing.T) {
	const words = "SSH-2.0-OpenSSH_9.9\r\n"
	heard := make(chan string, 1)
	up := zoneServer(t, func(c *net.TCPConn, q *wire.Msg) {
		send(t, c, part(t, q, soa(9)))
		_, _ = io.WriteString(c, words)
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		heard <- string(b)
	})
	r := newRig(t, snapshot(self()), nil, asking(up))
	c, err := net.Dial("tcp", r.tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	q := new(wire.Msg)
	q.SetAxfr("example.org.")
	send(t, c, q)
	if _, err := io.WriteString(c, words); err != nil {
		t.Fatal(err)
	}
	if b, err := readFrame(c); err != nil || part(t, q, soa(9)).Id != uint16(b[0])<<8|uint16(b[1]) {
		t.Fatalf("%x, %v", b, err)
	}
	if b, _ := io.ReadAll(c); len(b) > 0 { // and then the connection ends, in whatever way
		t.Errorf("the client received %q", b)
	}
	if got := <-heard; got != "" {
		t.Errorf("the server received %q", got)
	}
}

// TestTransferAndOthers: a zone comes whole, nothing comes behind it, and the
// connection goes on for other questions, as it does meanwhile.
//
//ambit:feature dns-transfer
func TestTransferAndOthers(t *testing.T) {
	begun, more := make(chan struct{}), make(chan struct{})
	up := zoneServer(t, func(c *net.TCPConn, q *wire.Msg) {
		send(t, c, part(t, q, soa(9)))
		close(begun)
		select {
		case <-more:
		case <-time.After(patience):
		}
		send(t, c, part(t, q, a, a))
		send(t, c, part(t, q, soa(9)))
		send(t, c, part(t, q, a)) // too much
		_, _ = io.ReadAll(c)      // until it is closed
	})
	r := newRig(t, snapshot(self(), service("ns1/web.ns1.svc.cluster.local", nil, "10.1.0.1")), nil, asking(up))
	c, err := wire.Dial("tcp", r.tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	zone := new(wire.Msg)
	zone.SetAxfr("example.org.")
	web := func() {
		t.Helper()
		q := new(wire.Msg)
		q.SetQuestion("web.", wire.TypeA)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		m, err := c.ReadMsg()
		if err != nil || m.Id != q.Id || len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "10.1.0.1") {
			t.Fatalf("%v, %v", m, err)
		}
	}
	next := func(records int) {
		t.Helper()
		if m, err := c.ReadMsg(); err != nil || m.Id != zone.Id || len(m.Answer) != records {
			t.Fatalf("%v, %v", m, err)
		}
	}
	if err := c.WriteMsg(zone); err != nil {
		t.Fatal(err)
	}
	next(1)
	<-begun
	web()
	close(more)
	next(2)
	next(1)
	web()
}

// TestTransferFails: nobody there is said with SERVFAIL, one that breaks off by
// the connection's end.
func TestTransferFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	breaks := zoneServer(t, func(c *net.TCPConn, q *wire.Msg) { send(t, c, part(t, q, soa(9), a)) })
	for name, up := range map[string]netip.AddrPort{"nobody": nobody, "breaks off": breaks} {
		r := newRig(t, snapshot(self()), nil, asking(up))
		c, err := wire.Dial("tcp", r.tcp.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		q := new(wire.Msg)
		q.SetAxfr("example.org.")
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		m, err := c.ReadMsg()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if (m.Rcode == wire.RcodeServerFailure) != (up == nobody) {
			t.Errorf("%s: %v", name, m)
		}
		if up == breaks {
			if m, err := c.ReadMsg(); err == nil {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}
