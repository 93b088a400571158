package translate

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// A workload under a policy that only a waypoint can enforce takes connections
// from its waypoint alone; there what ztunnel can see of the policy still holds
// for the client. Without a waypoint of ours it refuses what the policy could be
// about. A policy that ztunnel can enforce changes nothing of this.
//
//ambit:feature policy-behind-waypoint
func TestBehindWaypoint(t *testing.T) {
	c := testConfig()
	client := identity.ID{TrustDomain: "cluster.local", Namespace: "x", ServiceAccount: "c"}
	other := identity.ID{TrustDomain: "cluster.local", Namespace: "z", ServiceAccount: "c"}
	waypoint := identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "wp"}
	const (
		direct   = "client"
		through  = "client through the waypoint"
		stranger = "other through the waypoint"
		itself   = "the waypoint for itself"
	)
	conns := map[string]authz.Conn{
		direct: {Peer: client}, through: {Peer: client, Through: waypoint}, stranger: {Peer: other, Through: waypoint}, itself: {Peer: waypoint},
	}
	for name, tt := range map[string]struct {
		service string // of the pod
		policy  string
		admits  []string
	}{
		"ALLOW behind a waypoint":  {"bound", "rules: [{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}]", []string{through}},
		"DENY behind a waypoint":   {"bound", "action: DENY\n  rules: [{from: [{source: {namespaces: [z]}}], to: [{operation: {methods: [GET]}}]}]", []string{through, stranger, itself}},
		"DENY of both":             {"bound", "action: DENY\n  rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [z]}}]}]", []string{through, itself}},
		"selected":                 {"bound", "selector: {matchLabels: {app: a}}\n  rules: [{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}]", []string{through}},
		"not selected":             {"bound", "selector: {matchLabels: {app: b}}\n  rules: [{to: [{operation: {methods: [GET]}}]}]", []string{direct, through, stranger, itself}},
		"without a waypoint":       {"free", "rules: [{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}]", nil},
		"another's waypoint":       {"foreign", "rules: [{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}]", nil},
		"DENY without a waypoint":  {"free", "action: DENY\n  rules: [{to: [{operation: {methods: [GET]}}]}]", nil},
		"what ztunnel can enforce": {"bound", "rules: [{from: [{source: {namespaces: [x]}}]}]", []string{direct, through}},
		"only tried out":           {"bound", "rules: [{to: [{operation: {methods: [GET]}}]}]\n# dry", []string{direct, through, stranger, itself}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Set{}
			docs := documents(t, "testdata/targets/cluster.yaml")
			annotations := ""
			if name == "only tried out" {
				annotations = `, annotations: {istio.io/dry-run: "true"}`
			}
			docs = append(docs, "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: a}, annotations: {ambient.istio.io/redirection: enabled}}\n"+
				"spec: {containers: [{name: c, image: i}]}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}",
				"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop"+annotations+"}\nspec:\n  "+tt.policy)
			for _, doc := range docs {
				if err := s.put(doc); err != nil {
					t.Fatalf("%v in\n%s", err, doc)
				}
			}
			for _, svc := range s.ServiceList {
				if svc.Name == tt.service {
					svc.Spec.Selector = map[string]string{"app": "a"}
				}
			}
			d, err := All(c, s)
			if err != nil {
				t.Fatal(err)
			}
			b := mesh.NewBuilder(nil)
			b.Apply(d)
			for _, key := range d.Workloads[0].Policies { // what the controller makes of required waypoints
				if IsRequire(key) {
					b.Apply(mesh.Delta{Policies: []*mesh.Policy{c.RequirePolicy(key, s)}})
				}
			}
			snap := b.Build()
			for who, conn := range conns {
				conn.Src, conn.Dst = netip.MustParseAddrPort("10.0.0.9:4000"), netip.MustParseAddrPort("10.0.0.1:80")
				v := authz.Decide(snap, snap.Workload(c.PodUID("shop", "p")), conn)
				if v.Allow != slices.Contains(tt.admits, who) {
					t.Errorf("%s: %+v", who, v)
				}
			}
		})
	}
}
