package ztunnel

import (
	"net/netip"
	"slices"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/ztunnel/older"
)

// outboundPort is what an agent of the port dialect redirects to.
const outboundPort = 15001

// Where the agent of the port dialect lets the node's processes come from, the
// kubelet among them: it passes them by us on purpose. Its defaults.
var (
	probes4 = netip.AddrFrom4([4]byte{169, 254, 7, 127})
	probes6 = netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
)

// natted is a pod's sockets where capture is NAT: the two ends of a connection
// that we carry out do not name each other then.
type natted struct{ *netns.NS }

func (n natted) Connections() ([]netns.Socket, error) {
	all, err := n.NS.Connections()
	return withoutRedirected(all), err
}

// sockets are the pod's, to look for connections that are older than capture.
func (p *served) sockets() older.Sockets {
	if p.slots {
		return p.pod.NS
	}
	return natted{p.pod.NS}
}

// withoutRedirected leaves out the applications' ends of connections that were
// redirected to us, and what the agent lets by.
func withoutRedirected(all []netns.Socket) []netns.Socket {
	ours := map[netip.AddrPort]bool{}
	for _, s := range all {
		if s.IsProxy() && s.Local.Port() == outboundPort {
			ours[s.Remote] = true
		}
	}
	return slices.DeleteFunc(all, func(s netns.Socket) bool {
		if s.IsProxy() {
			return false
		}
		from := s.Remote.Addr()
		return ours[s.Local] || from == probes4 || from == probes6
	})
}
