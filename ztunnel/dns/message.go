package dns

import (
	"math/rand/v2"
	"net/netip"
	"strings"

	wire "github.com/miekg/dns"
)

// ttl of the answers: how long a pod may go on with what was true.
const ttl = 30

// headerSize is that of every message (RFC 1035 4.1.1).
const headerSize = 12

// maxMessage is what a message can be long over TCP, and over UDP too.
const maxMessage = 65535

// question is what a message asks, as far as it matters here.
type question struct {
	msg  wire.Msg // of a message that could be read
	name string   // plain
	v6   bool
	// ours: a plain question for addresses, which the mesh may answer. All
	// others are forwarded.
	ours bool
}

// isResponse reports whether a message must not be answered at all: two servers
// that answer each other's answers would never end.
func isResponse(raw []byte) bool { return len(raw) < headerSize || raw[2]&0x80 != 0 }

// read reads a message that is no response.
func read(raw []byte) *question {
	q := &question{}
	if q.msg.Unpack(raw) != nil || q.msg.Opcode != wire.OpcodeQuery || len(q.msg.Question) != 1 {
		return q
	}
	asked := &q.msg.Question[0]
	q.name, q.v6 = plain(asked.Name), asked.Qtype == wire.TypeAAAA
	q.ours = asked.Qclass == wire.ClassINET && (q.v6 || asked.Qtype == wire.TypeA) && q.name != ""
	return q
}

// kind is the type asked for, as a label: one of a bounded set.
func (q *question) kind() string {
	if len(q.msg.Question) != 1 {
		return "unknown"
	}
	if k, ok := wire.TypeToString[q.msg.Question[0].Qtype]; ok {
		return strings.ToLower(k)
	}
	return "unknown"
}

// transfer reports whether the answer is more than one message (RFC 5936, 1995).
func (q *question) transfer() bool {
	return q.isQuery() && (q.msg.Question[0].Qtype == wire.TypeAXFR || q.msg.Question[0].Qtype == wire.TypeIXFR)
}

// reply begins an answer of our own: the question as it was put, and EDNS if it
// was used (RFC 6891 6.1.1).
func (q *question) reply() *wire.Msg {
	m := new(wire.Msg)
	m.SetReply(&q.msg)
	m.RecursionAvailable, m.Compress = true, true
	if o := q.msg.IsEdns0(); o != nil {
		m.SetEdns0(max(o.UDPSize(), wire.MinMsgSize), o.Do())
		if o.Version() != 0 {
			m.Rcode = wire.RcodeBadVers
		}
	}
	return m
}

// size is how long an answer over UDP may be.
func (q *question) size() int {
	if o := q.msg.IsEdns0(); o != nil {
		return int(max(o.UDPSize(), wire.MinMsgSize))
	}
	return wire.MinMsgSize
}

// answer is the message for what was found; limit is how long it may be.
func (q *question) answer(f found, limit int) ([]byte, error) {
	m := q.reply()
	m.Authoritative = true
	if m.Rcode != wire.RcodeSuccess {
		return m.Pack()
	}
	owner := q.msg.Question[0].Name
	if f.target != "" && len(f.addrs) > 0 {
		target := wire.Fqdn(f.target)
		m.Answer = append(m.Answer, &wire.CNAME{Hdr: wire.RR_Header{Name: owner, Rrtype: wire.TypeCNAME, Class: wire.ClassINET, Ttl: ttl}, Target: target})
		owner = target
	}
	addrs := append([]netip.Addr(nil), f.addrs...)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	for _, a := range addrs {
		if q.v6 {
			m.Answer = append(m.Answer, &wire.AAAA{Hdr: wire.RR_Header{Name: owner, Rrtype: wire.TypeAAAA, Class: wire.ClassINET, Ttl: ttl}, AAAA: a.AsSlice()})
		} else {
			m.Answer = append(m.Answer, &wire.A{Hdr: wire.RR_Header{Name: owner, Rrtype: wire.TypeA, Class: wire.ClassINET, Ttl: ttl}, A: a.AsSlice()})
		}
	}
	m.Truncate(limit)
	return m.Pack()
}

// failure is SERVFAIL for a question that nobody answered: the client asks its
// next resolver, or again. It is the one thing said about a name of others.
func (q *question) failure(raw []byte) []byte {
	if len(q.msg.Question) == 1 {
		m := q.reply()
		m.Rcode = wire.RcodeServerFailure
		if b, err := m.Pack(); err == nil {
			return b
		}
	}
	b := make([]byte, headerSize)
	copy(b, raw[:4])
	b[2], b[3] = raw[2]|0x80, 0x80|wire.RcodeServerFailure
	return b
}

// questionEnd is where the section of questions ends, 0 if it cannot be told.
func questionEnd(raw []byte) int {
	if len(raw) < headerSize {
		return 0
	}
	at := headerSize
	for range int(raw[4])<<8 | int(raw[5]) {
		if at = nameEnd(raw, at); at == 0 {
			return 0
		}
		at += 4
	}
	if at > len(raw) {
		return 0
	}
	return at
}

// nameEnd is where the name at an offset ends, 0 if it cannot be told.
func nameEnd(raw []byte, at int) int {
	for at < len(raw) {
		n := int(raw[at])
		if n&0xc0 == 0xc0 { // a pointer ends the name
			return at + 2
		}
		at += 1 + n
		if n == 0 {
			return at
		}
	}
	return 0
}

// answers reports whether a message of a resolver is the one to this query,
// which had the id sent: anybody can send a datagram with a forged source.
func answers(response, query []byte, id uint16) bool {
	if len(response) < headerSize || response[2]&0x80 == 0 || (response[2]^query[2])&0x78 != 0 ||
		uint16(response[0])<<8|uint16(response[1]) != id {
		return false
	}
	if response[4]|response[5] == 0 {
		// A resolver that cannot read a query may leave the question out.
		code := response[3] & 0xf
		return query[4]|query[5] == 0 || code != wire.RcodeSuccess && code != wire.RcodeNameError
	}
	end := questionEnd(query)
	return len(response) >= end && response[4] == query[4] && response[5] == query[5] &&
		(end == 0 || sameLetters(response[headerSize:end], query[headerSize:end]))
}

// sameLetters compares names as RFC 4343 does: the case of ASCII letters apart.
func sameLetters(a, b []byte) bool {
	fold := func(c byte) byte {
		if c-'A' < 26 {
			return c + 'a' - 'A'
		}
		return c
	}
	for i := range a {
		if fold(a[i]) != fold(b[i]) {
			return false
		}
	}
	return true
}

// isQuery reports whether asking has no effect but the answer.
func (q *question) isQuery() bool { return len(q.msg.Question) == 1 && q.msg.Opcode == 0 }
