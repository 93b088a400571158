package translate

import (
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// Of several ports of one PeerAuthentication each is as it says: none of them
// takes another's place.
//
//ambit:feature policy-strict-ports
func TestSeveralPortLevels(t *testing.T) {
	client := identity.ID{TrustDomain: "cluster.local", Namespace: "x", ServiceAccount: "c"}
	for name, tt := range map[string]struct {
		spec  string
		plain map[uint16]bool // whether plaintext is taken
	}{
		"strict ports":               {`{selector: {matchLabels: {app: a}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {"80": {mode: STRICT}, "81": {mode: STRICT}, "82": {mode: DISABLE}}}`, map[uint16]bool{80: false, 81: false, 82: true, 83: true}},
		"strict ports of a DISABLE":  {`{selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}, portLevelMtls: {"80": {mode: STRICT}, "81": {mode: STRICT}}}`, map[uint16]bool{80: false, 81: false, 82: true}},
		"permissive ports":           {`{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {"80": {mode: PERMISSIVE}, "81": {mode: DISABLE}, "82": {mode: STRICT}}}`, map[uint16]bool{80: true, 81: true, 82: false, 83: false}},
		"ports that say nothing":     {`{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {"80": {mode: UNSET}, "81": {}}}`, map[uint16]bool{80: false, 81: false, 82: false}},
		"under a strict namespace":   {`{selector: {matchLabels: {app: a}}, portLevelMtls: {"80": {mode: PERMISSIVE}, "81": {mode: STRICT}}}`, map[uint16]bool{80: true, 81: false, 82: false}},
		"permissive under a strict":  {`{selector: {matchLabels: {app: a}}, mtls: {mode: PERMISSIVE}}`, map[uint16]bool{80: true}},
		"without a selector of ours": {`{selector: {matchLabels: {app: b}}, mtls: {mode: DISABLE}}`, map[uint16]bool{80: false}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Set{}
			for _, doc := range []string{
				"{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: ns, labels: {app: a}, annotations: {ambient.istio.io/redirection: enabled}}, spec: {containers: [{name: c, image: i}]}, status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}}",
				"{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: all, namespace: ns}, spec: {mtls: {mode: STRICT}}}",
				"{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: some, namespace: ns}, spec: " + tt.spec + "}",
			} {
				if err := s.put(doc); err != nil {
					t.Fatalf("%v in %s", err, doc)
				}
			}
			d, err := All(testConfig(), s)
			if err != nil {
				t.Fatal(err)
			}
			b := mesh.NewBuilder(nil)
			b.Apply(d)
			snap := b.Build()
			w := snap.Workload(testConfig().PodUID("ns", "p"))
			for port, want := range tt.plain {
				conn := authz.Conn{Src: netip.MustParseAddrPort("10.0.0.9:4000"), Dst: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port)}
				if got := authz.Decide(snap, w, conn).Allow; got != want {
					t.Errorf("plaintext to port %d: %t", port, got)
				}
				conn.Peer = client
				if !authz.Decide(snap, w, conn).Allow {
					t.Errorf("a client with an identity is refused at port %d", port)
				}
			}
		})
	}
}
