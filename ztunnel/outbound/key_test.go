package outbound

import (
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/hbone/pool"
)

// TestTunnelKeys: each thing in which two connections differ gives them tunnels of
// their own; in what order a server's names were listed is nothing.
//
//ambit:feature security-tunnels-apart
func TestTunnelKeys(t *testing.T) {
	a, b := hbonetest.ID("a"), hbonetest.ID("b")
	at := netip.MustParseAddrPort
	route := func(uid, addr string, expect ...identity.ID) *Route {
		return &Route{Kind: HBONE, Upstream: &mesh.Workload{UID: uid}, Addr: at(addr), Expect: expect}
	}
	base := tunnelKey("pod-1", route("server-1", "10.0.0.1:15008", a, b))
	if again := tunnelKey("pod-1", route("server-1", "10.0.0.1:15008", b, a)); again != base {
		t.Errorf("the order of names tells tunnels apart: %+v", again)
	}
	for what, k := range map[string]pool.Key{
		"another source pod":             tunnelKey("pod-2", route("server-1", "10.0.0.1:15008", a, b)),
		"another destination":            tunnelKey("pod-1", route("server-2", "10.0.0.1:15008", a, b)),
		"another address of the same":    tunnelKey("pod-1", route("server-1", "10.0.0.2:15008", a, b)),
		"another port":                   tunnelKey("pod-1", route("server-1", "10.0.0.1:15009", a, b)),
		"fewer identities that would do": tunnelKey("pod-1", route("server-1", "10.0.0.1:15008", a)),
	} {
		if k == base {
			t.Errorf("%s shares the tunnel: %+v", what, k)
		}
	}
}
