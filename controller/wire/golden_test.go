package wire

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// message builds protobuf by hand, from nothing but the numbers of the wire.
type message []byte

func (m message) str(n protowire.Number, s string) message {
	return protowire.AppendString(protowire.AppendTag(m, n, protowire.BytesType), s)
}

func (m message) raw(n protowire.Number, b ...byte) message {
	return protowire.AppendBytes(protowire.AppendTag(m, n, protowire.BytesType), b)
}

func (m message) num(n protowire.Number, v uint64) message {
	return protowire.AppendVarint(protowire.AppendTag(m, n, protowire.VarintType), v)
}

func (m message) sub(n protowire.Number, s message) message { return m.raw(n, s...) }

func fullWorkload() *mesh.Workload {
	capacity := uint32(0)
	return &mesh.Workload{
		UID: "Kubernetes//Pod/shop/web-1", Name: "web-1", Namespace: "shop",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")},
		Network:   "net", Protocol: mesh.ProtocolHBONE, TrustDomain: "td", ServiceAccount: "web",
		Waypoint:       &mesh.GatewayAddress{Namespace: "shop", Hostname: "wp.shop.svc", HBONEPort: 15008},
		NetworkGateway: &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "far", Prefix: netip.MustParsePrefix("192.0.2.9/32")}, HBONEPort: 15008},
		Node:           "n1", CanonicalName: "web", CanonicalRevision: "v1", Type: mesh.TypePod, WorkloadName: "web",
		NativeTunnel: true, Policies: []string{"shop/p", "istio-system/strict"}, Health: mesh.Unhealthy, ClusterID: "c1",
		Hostname: "web.example", Services: map[string][]mesh.Port{
			"shop/b.shop.svc": {{ServicePort: 80, TargetPort: 8080, AppProtocol: mesh.AppHTTP2}},
			"shop/a.shop.svc": nil,
		},
		AppTunnel: &mesh.AppTunnel{Proxy: true, Port: 15088}, Locality: mesh.Locality{Region: "r", Zone: "z", Subzone: "s"},
		HostNetwork: true, Capacity: &capacity,
	}
}

// A oneof comes after the plain fields: that is how Go orders them, and the
// order means nothing to a reader.
//
//ambit:feature wire-forms
func TestGoldenWorkload(t *testing.T) {
	port := message{}.num(1, 80).num(2, 8080).num(3, 2)
	w := message{}.
		str(1, "web-1").str(2, "shop").
		raw(3, 10, 0, 0, 7).raw(3, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7).
		str(4, "net").num(5, 1).str(6, "td").str(7, "web").
		sub(8, message{}.num(3, 15008).sub(1, message{}.str(1, "shop").str(2, "wp.shop.svc"))).
		str(9, "n1").str(10, "web").str(11, "v1").num(12, 2).str(13, "web").num(14, 1).
		str(16, "shop/p").str(16, "istio-system/strict").num(17, 1).str(18, "c1").
		sub(19, message{}.num(3, 15008).sub(2, message{}.str(1, "far").raw(2, 192, 0, 2, 9))).
		str(20, "Kubernetes//Pod/shop/web-1").str(21, "web.example").
		sub(22, message{}.str(1, "shop/a.shop.svc").sub(2, message{})).
		sub(22, message{}.str(1, "shop/b.shop.svc").sub(2, message{}.sub(1, port))).
		sub(23, message{}.num(1, 1).num(2, 15088)).
		sub(24, message{}.str(1, "r").str(2, "z").str(3, "s")).
		num(25, 1).
		sub(27, message{})
	want := message{}.sub(1, w)
	got, err := MarshalWorkload(fullWorkload())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, []byte(want))
	}
	back, _, err := UnmarshalAddress(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, fullWorkload()) {
		t.Errorf("decoded %+v", back)
	}
}

func fullService() *mesh.Service {
	return &mesh.Service{
		Name: "web", Namespace: "shop", Hostname: "web.shop.svc.cluster.local",
		Addresses: []mesh.NetworkAddress{
			{Network: "net", Prefix: netip.MustParsePrefix("10.96.0.1/32")},
			{Network: "net", Prefix: netip.MustParsePrefix("10.97.0.0/16")},
			{Prefix: netip.MustParsePrefix("fd00::1/128")},
		},
		Ports:           []mesh.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: mesh.AppHTTP11}, {ServicePort: 443}},
		SubjectAltNames: []string{"spiffe://td/ns/a/sa/b"},
		Waypoint:        &mesh.GatewayAddress{Address: mesh.NetworkAddress{Prefix: netip.MustParsePrefix("10.0.0.9/32")}, HBONEPort: 15008},
		LoadBalancing:   mesh.LoadBalancing{Preference: []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion}, Mode: mesh.ModeFailover, AllowAll: true},
		IPFamilies:      mesh.FamiliesDual, Canonical: true, IngressWaypoint: true,
		Weighted:      []mesh.WeightedWaypoint{{Destination: mesh.GatewayAddress{Namespace: "shop", Hostname: "wp2", HBONEPort: 15008}, Weight: 10}},
		NamespaceOnly: true,
	}
}

//ambit:feature wire-forms
func TestGoldenService(t *testing.T) {
	v := message{}.
		str(1, "web").str(2, "shop").str(3, "web.shop.svc.cluster.local").
		sub(4, message{}.str(1, "net").raw(2, 10, 96, 0, 1)).
		sub(4, message{}.str(1, "net").raw(2, 10, 97, 0, 0).num(3, 16)).
		sub(4, message{}.raw(2, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)).
		sub(5, message{}.num(1, 80).num(2, 8080).num(3, 1)).sub(5, message{}.num(1, 443)).
		str(6, "spiffe://td/ns/a/sa/b").
		sub(7, message{}.num(3, 15008).sub(2, message{}.raw(2, 10, 0, 0, 9))).
		sub(8, message{}.raw(1, 6, 1).num(2, 2).num(3, 1)).
		num(9, 3).num(11, 1).num(12, 1).
		sub(13, message{}.sub(1, message{}.num(3, 15008).sub(1, message{}.str(1, "shop").str(2, "wp2"))).num(2, 10)).
		num(14, 1)
	want := message{}.sub(2, v)
	got, err := MarshalService(fullService())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, []byte(want))
	}
	_, back, err := UnmarshalAddress(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, fullService()) {
		t.Errorf("decoded %+v", back)
	}
}

func fullPolicy() *mesh.Policy {
	return &mesh.Policy{
		Name: "p", Namespace: "shop", Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{{}, {Clauses: []mesh.Clause{{}, {Matches: []mesh.Match{{}, {
			Namespaces:         []mesh.StringMatch{{Kind: mesh.Exact, Value: "a"}, {Kind: mesh.Prefix, Value: "b"}},
			NotNamespaces:      []mesh.StringMatch{{Kind: mesh.Suffix, Value: "c"}},
			Principals:         []mesh.StringMatch{{Kind: mesh.Presence}},
			NotPrincipals:      []mesh.StringMatch{{Kind: mesh.Exact, Value: "td/ns/a/sa/b"}},
			SourceIPs:          []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			NotSourceIPs:       []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
			DestinationIPs:     []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
			NotDestinationIPs:  []netip.Prefix{netip.MustParsePrefix("10.2.3.4/32")},
			DestinationPorts:   []uint16{80, 443},
			NotDestPorts:       []uint16{22},
			ServiceAccounts:    []mesh.ServiceAccountMatch{{Namespace: "a", ServiceAccount: "b"}},
			NotServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "c", ServiceAccount: "d"}},
		}}}}}},
	}
}

//ambit:feature wire-forms
func TestGoldenAuthorization(t *testing.T) {
	match := message{}.
		sub(1, message{}.str(1, "a")).sub(1, message{}.str(2, "b")).
		sub(2, message{}.str(3, "c")).
		sub(3, message{}.sub(4, message{})).
		sub(4, message{}.str(1, "td/ns/a/sa/b")).
		sub(5, message{}.raw(1, 10, 0, 0, 0).num(2, 8)).
		sub(6, message{}.raw(1, 10, 1, 0, 0).num(2, 16)).
		sub(7, message{}.raw(1, 0, 0, 0, 0)).
		sub(8, message{}.raw(1, 10, 2, 3, 4).num(2, 32)).
		raw(9, protowire.AppendVarint([]byte{80}, 443)...).
		raw(10, 22).
		sub(11, message{}.str(1, "a").str(2, "b")).
		sub(12, message{}.str(1, "c").str(2, "d"))
	clause := message{}.sub(2, message{}).sub(2, match)
	want := message{}.str(1, "p").str(2, "shop").num(3, 2).num(4, 1).
		sub(5, message{}).
		sub(5, message{}.sub(1, message{}).sub(1, clause)).
		num(6, 1)
	got, err := MarshalPolicy(fullPolicy())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, []byte(want))
	}
	back, err := UnmarshalPolicy(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, fullPolicy()) {
		t.Errorf("decoded %+v", back)
	}
}
