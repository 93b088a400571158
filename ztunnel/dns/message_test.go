package dns

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	wire "github.com/miekg/dns"
)

func packed(t testing.TB, m *wire.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func asked(t testing.TB, name string, kind uint16, change func(*wire.Msg)) []byte {
	m := new(wire.Msg)
	m.SetQuestion(name, kind)
	m.Id = 4711
	if change != nil {
		change(m)
	}
	return packed(t, m)
}

// TestOurs: only a plain question for addresses may be answered here.
func TestOurs(t *testing.T) {
	for _, c := range []struct {
		name   string
		raw    []byte
		ours   bool
		kind   string
		retry  bool
		stream bool
	}{
		{"A", asked(t, "X.example.com.", wire.TypeA, nil), true, "a", true, false},
		{"AAAA", asked(t, "x.example.com.", wire.TypeAAAA, nil), true, "aaaa", true, false},
		{"the root", asked(t, ".", wire.TypeA, nil), false, "a", true, false},
		{"ANY", asked(t, "x.", wire.TypeANY, nil), false, "any", true, false},
		{"SRV", asked(t, "x.", wire.TypeSRV, nil), false, "srv", true, false},
		{"unknown type", asked(t, "x.", 65280, nil), false, "unknown", true, false},
		{"CHAOS", asked(t, "version.bind.", wire.TypeA, func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassCHAOS }), false, "a", true, false},
		{"two questions", asked(t, "x.", wire.TypeA, func(m *wire.Msg) { m.Question = append(m.Question, m.Question[0]) }), false, "unknown", false, false},
		{"no question", asked(t, "x.", wire.TypeA, func(m *wire.Msg) { m.Question = nil }), false, "unknown", false, false},
		{"update", asked(t, "x.", wire.TypeSOA, func(m *wire.Msg) { m.Opcode = wire.OpcodeUpdate }), false, "soa", false, false},
		{"zone transfer", asked(t, "x.", wire.TypeAXFR, nil), false, "axfr", true, true},
		{"a name cut off", asked(t, "x.example.com.", wire.TypeA, nil)[:16], false, "unknown", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := read(c.raw)
			if q.ours != c.ours || q.kind() != c.kind || q.isQuery() != c.retry || q.transfer() != c.stream {
				t.Errorf("ours %t, kind %s, may be asked again %t, transfer %t", q.ours, q.kind(), q.isQuery(), q.transfer())
			}
			// Whatever it is, a failure can be said.
			m := new(wire.Msg)
			if err := m.Unpack(q.failure(c.raw)); err != nil || m.Id != 4711 || !m.Response || m.Rcode != wire.RcodeServerFailure {
				t.Errorf("%v, %v", m, err)
			}
		})
	}
	if !isResponse(asked(t, "x.", wire.TypeA, func(m *wire.Msg) { m.Response = true })) || !isResponse([]byte("short")) || isResponse(asked(t, "x.", wire.TypeA, nil)) {
		t.Error("what is answered is not what is a question")
	}
}

func TestAnswer(t *testing.T) {
	many := found{}
	for i := range 100 {
		many.addrs = append(many.addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	edns := func(size uint16, version uint8, do bool) func(*wire.Msg) {
		return func(m *wire.Msg) {
			m.SetEdns0(size, do)
			m.IsEdns0().SetVersion(version)
		}
	}
	for _, c := range []struct {
		name      string
		change    func(*wire.Msg)
		f         found
		tcp       bool
		records   int // -1: some
		truncated bool
		rcode     int
		size      uint16 // of EDNS; 0: none
	}{
		{name: "one", f: found{addrs: many.addrs[:1]}, records: 1},
		{name: "none", f: found{}},
		{name: "alias", f: found{addrs: many.addrs[:1], target: "web.ns1"}, records: 2},
		{name: "alias without an address", f: found{target: "web.ns1"}},
		{name: "too many", f: many, records: -1, truncated: true},
		{name: "too many, small EDNS", change: edns(100, 0, false), f: many, records: -1, truncated: true, size: 512},
		{name: "EDNS", change: edns(4096, 0, true), f: many, records: 100, size: 4096},
		{name: "TCP", f: many, tcp: true, records: 100},
		{name: "later EDNS", change: edns(4096, 1, false), f: many, rcode: wire.RcodeBadVers, size: 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := read(asked(t, "Web.Example.com.", wire.TypeA, c.change))
			limit := q.size()
			if c.tcp {
				limit = maxMessage
			}
			b, err := q.answer(c.f, limit)
			m := new(wire.Msg)
			if err != nil || m.Unpack(b) != nil {
				t.Fatal(err)
			}
			if len(b) > limit || m.Truncated != c.truncated || m.Rcode != c.rcode || !m.Response || !m.RecursionAvailable || !m.Authoritative ||
				m.Id != 4711 || m.Question[0].Name != "Web.Example.com." || c.records >= 0 && len(m.Answer) != c.records || c.records < 0 && len(m.Answer) == 0 {
				t.Errorf("%d bytes:\n%s", len(b), m)
			}
			if o := m.IsEdns0(); (o == nil) != (c.size == 0) || o != nil && o.UDPSize() != c.size {
				t.Errorf("%s", m)
			}
			for _, rr := range m.Answer {
				if rr.Header().Ttl != ttl {
					t.Errorf("%s", rr)
				}
			}
		})
	}
}

// TestAnswersMatch: a datagram that is not the answer to what was asked is none.
func TestAnswersMatch(t *testing.T) {
	query := asked(t, "Web.Example.com.", wire.TypeA, nil)
	reply := func(change func(*wire.Msg)) []byte {
		m := new(wire.Msg)
		if err := m.Unpack(query); err != nil {
			t.Fatal(err)
		}
		m.Response = true
		change(m)
		return packed(t, m)
	}
	for name, c := range map[string]struct {
		response []byte
		want     bool
	}{
		"an answer":                    {reply(func(*wire.Msg) {}), true},
		"other case":                   {reply(func(m *wire.Msg) { m.Question[0].Name = "wEB.example.COM." }), true},
		"other id":                     {reply(func(m *wire.Msg) { m.Id++ }), false},
		"a question":                   {query, false},
		"other name":                   {reply(func(m *wire.Msg) { m.Question[0].Name = "web.example.org." }), false},
		"longer name":                  {reply(func(m *wire.Msg) { m.Question[0].Name = "web.example.com.evil." }), false},
		"other type":                   {reply(func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeAAAA }), false},
		"other operation":              {reply(func(m *wire.Msg) { m.Opcode = wire.OpcodeNotify }), false},
		"two questions":                {reply(func(m *wire.Msg) { m.Question = append(m.Question, m.Question[0]) }), false},
		"a refusal without a question": {reply(func(m *wire.Msg) { m.Question, m.Rcode = nil, wire.RcodeFormatError }), true},
		"an answer without one":        {reply(func(m *wire.Msg) { m.Question = nil }), false},
		"no such name without one":     {reply(func(m *wire.Msg) { m.Question, m.Rcode = nil, wire.RcodeNameError }), false},
		"short":                        {[]byte{0, 1}, false},
	} {
		if got := answers(c.response, query, 4711); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	// A question that cannot be read is answered by its id.
	broken := append(bytes.Clone(query[:12]), 63, 'x')
	if !answers(append([]byte{query[0], query[1], 0x80, 1, 0, 1, 0, 0, 0, 0, 0, 0}, "xx"...), broken, 4711) {
		t.Error("a broken question has no answer")
	}
}

// FuzzMessage: whatever a pod sends, what is answered fits it.
func FuzzMessage(f *testing.F) {
	f.Add(asked(f, "web.example.com.", wire.TypeA, nil), []byte{})
	f.Add(asked(f, "web.example.com.", wire.TypeAAAA, func(m *wire.Msg) { m.SetEdns0(1232, true) }), []byte{1, 2})
	f.Add(asked(f, "x.", wire.TypeSOA, func(m *wire.Msg) { m.Opcode = wire.OpcodeUpdate }), asked(f, "x.", wire.TypeSOA, nil))
	f.Add([]byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1}, []byte{})
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	f.Fuzz(func(t *testing.T, raw, other []byte) {
		if end := questionEnd(raw); end > len(raw) {
			t.Fatalf("questions end at %d of %d", end, len(raw))
		}
		if isResponse(raw) {
			return
		}
		q := read(raw)
		q.kind()
		q.transfer()
		if b := q.failure(raw); len(b) < headerSize || b[2]&0x80 == 0 || !bytes.Equal(b[:2], raw[:2]) {
			t.Fatalf("failure %x of %x", b, raw)
		}
		id := uint16(raw[0])<<8 | uint16(raw[1])
		answers(other, raw, id)
		if !q.ours {
			return
		}
		if strings.ToLower(q.name) != q.name {
			t.Fatalf("name %q", q.name)
		}
		for range aliases(q.name, "ns", "cluster.local") {
		}
		found := found{addrs: addrs}
		if q.v6 {
			found.addrs = []netip.Addr{netip.MustParseAddr("fd00::1")}
		}
		b, err := q.answer(found, q.size())
		if err != nil {
			return // forwarded
		}
		if len(b) > q.size() || !answers(b, raw, id) {
			t.Fatalf("%x is no answer to %x", b, raw)
		}
	})
}
