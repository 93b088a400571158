package inbound

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// The header, byte by byte as the protocol's description has it.
//
//ambit:feature waypoint-proxy-protocol
func TestProxyHeader(t *testing.T) {
	const start = "0d0a0d0a000d0a515549540a" + "21"
	id := identity.ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "s"}
	tlv := "d00013" + hex.EncodeToString([]byte("spiffe://td/ns/n/sa/s"))
	tlv = "d00015" + tlv[6:]
	for _, tt := range []struct {
		name, client, server string
		id                   identity.ID
		want                 string
	}{
		{"IPv4", "10.0.0.1:4660", "10.1.0.1:80", id, "11" + "0024" + "0a000001" + "0a010001" + "1234" + "0050" + tlv},
		{"IPv4, nobody", "10.0.0.1:4660", "10.1.0.1:80", identity.ID{}, "11" + "000c" + "0a000001" + "0a010001" + "1234" + "0050"},
		{"IPv6", "[fd00::1]:4660", "[fd01::1]:80", identity.ID{}, "21" + "0024" + "fd000000000000000000000000000001" + "fd010000000000000000000000000001" + "1234" + "0050"},
		{"two families", "10.0.0.1:4660", "[fd01::1]:80", id, "00" + "0018" + tlv},
		{"two families, nobody", "[fd00::1]:4660", "10.1.0.1:80", identity.ID{}, "00" + "0000"},
	} {
		got := hex.EncodeToString(appendProxyHeader(nil, netip.MustParseAddrPort(tt.client), netip.MustParseAddrPort(tt.server), tt.id))
		if got != start+tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, strings.TrimPrefix(got, start), tt.want)
		}
	}
}

func TestVirtualAddress(t *testing.T) {
	at := func(network, a string) mesh.NetworkAddress {
		n := mesh.NetworkAddress{Network: network, Prefix: netip.MustParsePrefix(a)}
		return n
	}
	for want, addrs := range map[string][]mesh.NetworkAddress{
		"10.0.0.1": {at("far", "10.0.0.9/32"), at("near", "fd00::1/128"), at("near", "10.0.0.1/32"), at("near", "10.0.0.2/32")},
		"fd00::1":  {at("far", "10.0.0.9/32"), at("near", "fd00::1/128")},
		"10.0.0.9": {at("near", "10.0.0.0/24"), at("far", "fd00::9/128"), at("far", "10.0.0.9/32")},
		"":         {at("near", "10.0.0.0/24")},
	} {
		got, ok := virtualAddress(&mesh.Service{Addresses: addrs}, "near")
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%v: %s, %v; want %s", addrs, got, ok, want)
		}
	}
}
