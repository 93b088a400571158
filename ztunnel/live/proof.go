package live

import (
	"net"
	"net/netip"
)

// The node agent proves capture with connections to these, which nobody else
// has reason to make: the documentation address of RFC 5737, the discard
// prefix of RFC 6666, and a port of the mesh's own. They end at a listener of
// ours and are closed without a word. The values are those of cni/redirect
// (a test of e2e/netns compares them).
var (
	ProofAddr4 = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	ProofAddr6 = netip.MustParseAddr("100::1")
)

// ProofPort is the port of a proof of inbound capture.
const ProofPort = 15009

// IsProof reports whether a connection captured on side r to dst is a proof.
// Outbound it is the address that nobody has, inbound the port.
func IsProof(r Reporter, dst netip.AddrPort) bool {
	if dst.Port() != ProofPort {
		return false
	}
	return r == Destination || dst.Addr() == ProofAddr4 || dst.Addr() == ProofAddr6
}

// AddrPort is a TCP endpoint without the IPv4-in-IPv6 form dual-stack
// listeners give.
func AddrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
