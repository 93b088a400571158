package ztunnel

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"flag"
	"math/big"
	"net/http/httptest"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

var update = flag.Bool("update", false, "write the dump of testdata anew")

// TestDumpFixture: testdata/config_dump.json is what this program answers. The
// tests of ambit ztunnel-config read it, so the two cannot drift apart.
func TestDumpFixture(t *testing.T) {
	n := newNode(t)
	id := func(sa string) identity.ID {
		v, err := identity.Parse("spiffe://cluster.local/ns/shop/sa/" + sa)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	cert := func(serial int64, days int) *x509.Certificate {
		from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		return &x509.Certificate{Raw: []byte("not read"), SerialNumber: big.NewInt(serial), NotBefore: from, NotAfter: from.AddDate(0, 0, days)}
	}
	n.cfg.CertStates = func() []CertState {
		return []CertState{
			{id("cart"), "Available", []*x509.Certificate{cert(255, 1), cert(4096, 365)}, []*x509.Certificate{cert(1<<40, 3650)}},
			{id("front"), "Unavailable: no CA answers", nil, nil},
		}
	}
	owning(t, n)
	ip := netip.MustParseAddr
	port := []mesh.Port{{ServicePort: 80, TargetPort: 8080}}
	in := map[string][]mesh.Port{"shop/cart.shop.svc.cluster.local": port}
	vip := func(p string) []mesh.NetworkAddress { return []mesh.NetworkAddress{{Prefix: netip.MustParsePrefix(p)}} }
	front := &mesh.Workload{UID: "c//Pod/shop/front-1", Name: "front-1", Namespace: "shop", ServiceAccount: "front", Node: "n1",
		Addresses: []netip.Addr{ip("10.0.1.1"), ip("fd00::1")}, Protocol: mesh.ProtocolHBONE}
	b := mesh.NewBuilder(nil)
	b.Apply(mesh.Delta{
		Workloads: []*mesh.Workload{front,
			{UID: "c//Pod/shop/cart-1", Name: "cart-1", Namespace: "shop", ServiceAccount: "cart", Node: "n1", Protocol: mesh.ProtocolHBONE,
				Addresses: []netip.Addr{ip("10.0.1.2")}, Services: in, Policies: []string{"shop/only-front"},
				Waypoint: &mesh.GatewayAddress{Namespace: "shop", Hostname: "waypoint.shop.svc.cluster.local", HBONEPort: 15008}},
			{UID: "c//Pod/shop/cart-2", Name: "cart-2", Namespace: "shop", ServiceAccount: "cart", Node: "n2", Protocol: mesh.ProtocolHBONE,
				Addresses: []netip.Addr{ip("10.0.2.2")}, Services: in, Health: mesh.Unhealthy,
				Waypoint: &mesh.GatewayAddress{Namespace: "gone", Hostname: "waypoint.gone.svc.cluster.local", HBONEPort: 15008}},
			{UID: "c//Pod/plain/old", Name: "old", Namespace: "plain", Node: "n2", Addresses: []netip.Addr{ip("10.0.2.9")}},
		},
		Services: []*mesh.Service{
			{Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc.cluster.local", Ports: port, Addresses: vip("10.1.0.1/32"),
				LoadBalancing: mesh.LoadBalancing{AllowAll: true},
				Waypoint:      &mesh.GatewayAddress{Address: mesh.NetworkAddress{Prefix: netip.MustParsePrefix("10.1.0.9/32")}, HBONEPort: 15008}},
			{Name: "waypoint", Namespace: "shop", Hostname: "waypoint.shop.svc.cluster.local", Addresses: vip("10.1.0.9/32")},
			{Name: "outside", Namespace: "plain", Hostname: "outside.example", Addresses: vip("192.0.2.0/24")},
		},
		Policies: []*mesh.Policy{
			{Name: "only-front", Namespace: "shop", Scope: mesh.ScopeWorkloadSelector},
			{Name: "deny-old", Namespace: "plain", Scope: mesh.ScopeNamespace, Action: mesh.Deny},
			{Name: "strict", Namespace: "ambit-system", Scope: mesh.ScopeGlobal, Action: mesh.Deny},
		},
	})
	n.cfg.Store.Swap(b.Build())

	pod := &live.Pod{UID: "uid-front", Name: "front-1", Namespace: "shop", ServiceAccount: "front"}
	at := netip.MustParseAddrPort
	out, inbound := n.table.Accept(pod, live.Source), n.table.Accept(pod, live.Destination)
	out.Open(live.Facts{Src: at("10.0.1.1:40000"), Original: at("10.1.0.1:80"), Dst: at("10.0.1.2:8080"), HBONE: true, Source: front})
	inbound.Open(live.Facts{Src: at("10.0.2.9:50000"), Original: at("10.0.1.1:8080"), Dst: at("10.0.1.1:8080"), Destination: front})
	defer out.End(nil)
	defer inbound.End(nil)

	w := httptest.NewRecorder()
	n.admin().ServeHTTP(w, httptest.NewRequest("GET", "/config_dump", nil))
	// The set of pods needs namespaces; what the dump has of a pod does not.
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatal(err)
	}
	answer["workloadState"] = map[string]any{pod.UID: n.dumpPod("Up", pod)}
	answer["version"] = map[string]any{} // of the toolchain
	got, err := json.MarshalIndent(answer, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/config_dump.json"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the dump is not that of %s any more (go test -update, then look at the tests of cmd/ambit):\n%s", file, got)
	}
}
