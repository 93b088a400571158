package inbound

import (
	"encoding/binary"
	"net/netip"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// The PROXY protocol, version 2 (haproxy's proxy-protocol.txt, 2.2), as an
// application tunnel gets it: who the connection is from and what was dialled,
// once, before its first byte.
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, PROXY
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
	proxyUnknown   = 0x00 // UNSPEC, UNSPEC: no addresses follow
	proxyIdentity  = 0xd0 // a TLV: the client's SPIFFE identity, as Istio's ztunnel has it
)

// appendProxyHeader says that client, which is id unless that is zero, dialled
// server. Addresses of two families are left out: the form has none for them.
func appendProxyHeader(b []byte, client, server netip.AddrPort, id identity.ID) []byte {
	b = append(b, proxySignature...)
	family := byte(proxyUnknown)
	switch c, s := client.Addr(), server.Addr(); {
	case c.Is4() && s.Is4():
		family = proxyTCP4
	case c.Is6() && s.Is6():
		family = proxyTCP6
	}
	b = append(b, proxyCommand, family, 0, 0)
	start := len(b)
	if family != proxyUnknown {
		b = append(b, client.Addr().AsSlice()...)
		b = append(b, server.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, client.Port())
		b = binary.BigEndian.AppendUint16(b, server.Port())
	}
	if name := id.String(); name != "" {
		b = append(b, proxyIdentity)
		b = binary.BigEndian.AppendUint16(b, uint16(len(name)))
		b = append(b, name...)
	}
	binary.BigEndian.PutUint16(b[start-2:], uint16(len(b)-start))
	return b
}
