package outbound

import (
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// forwarded is the value of the header of RFC 7239: who the client is, and
// which service it dialled.
func forwarded(client netip.AddrPort, svc *mesh.Service) string {
	var b strings.Builder
	b.WriteString(`for="`)
	b.WriteString(client.String())
	b.WriteByte('"')
	if svc != nil {
		b.WriteString(";host=")
		b.WriteString(svc.Hostname)
	}
	return b.String()
}

// traceparent is a fresh, unsampled W3C trace context.
func traceparent() string {
	var raw [24]byte
	for i := 0; i < len(raw); i += 8 {
		v := rand.Uint64() | 1 // an all-zero id is invalid
		for j := range 8 {
			raw[i+j] = byte(v >> (8 * j))
		}
	}
	var out [55]byte
	copy(out[:], "00-")
	hex.Encode(out[3:35], raw[:16])
	out[35] = '-'
	hex.Encode(out[36:52], raw[16:])
	copy(out[52:], "-00")
	return string(out[:])
}

// request is the CONNECT for r, headers in the order the reference sends them.
// Both of double HBONE are the same but for what inner adds.
func request(r *Route, source *mesh.Workload, client netip.AddrPort) hbone.Request {
	return hbone.Request{
		Authority: r.authority(),
		Header: []hbone.Header{
			{Name: "baggage", Value: live.Baggage(source)},
			{Name: "forwarded", Value: forwarded(client, r.Service)},
			{Name: "traceparent", Value: traceparent()},
		},
	}
}

// inner is outer as it is sent through a gateway: it says which network it comes
// from, since the client's address means nothing in the other.
func inner(outer hbone.Request, network string) hbone.Request {
	h := make([]hbone.Header, 0, len(outer.Header)+1)
	outer.Header = append(append(h, outer.Header...), hbone.Header{Name: hbone.NetworkHeader, Value: network})
	return outer
}
