package wire

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
)

//ambit:feature wire-forms
func TestRefusalsNameResourceAndField(t *testing.T) {
	w := func(m message) message { return message{}.sub(1, append(message{}.str(20, "u1"), m...)) }
	v := func(m message) message { return message{}.sub(2, append(message{}.str(2, "ns").str(3, "host"), m...)) }
	cases := []struct {
		name string
		in   message
		want string
	}{
		{"truncated", message{0x0a, 0x05, 0x01}, "address of 3 bytes"},
		{"empty", nil, "neither workload nor service"},
		{"no uid", message{}.sub(1, message{}.str(1, "web")), "workload : uid: empty"},
		{"address of 5 bytes", w(message{}.raw(3, 10, 0, 0, 1).raw(3, 1, 2, 3, 4, 5)), "workload u1: addresses[1]: address of 5 bytes, want 4 or 16"},
		{"legacy tunnel", w(message{}.num(5, 2)), "workload u1: tunnel_protocol: LEGACY_ISTIO_MTLS is not supported"},
		{"unknown tunnel", w(message{}.num(5, 9)), "workload u1: tunnel_protocol: 9"},
		{"unknown status", w(message{}.num(17, 7)), "workload u1: status: unknown value 7"},
		{"unknown network mode", w(message{}.num(25, 7)), "workload u1: network_mode: unknown value 7"},
		{"service key", w(message{}.sub(22, message{}.str(1, "nohost").sub(2, nil))), `workload u1: services["nohost"]: key`},
		{"service port", w(message{}.sub(22, message{}.str(1, "a/b").sub(2, message{}.sub(1, message{}.num(1, 70000))))), `workload u1: services["a/b"].ports[0].service_port: 70000 is not a port`},
		{"tunnel protocol", w(message{}.sub(23, message{}.num(1, 5))), "workload u1: application_tunnel.protocol: unknown value 5"},
		{"waypoint without destination", w(message{}.sub(8, message{}.num(3, 15008))), "workload u1: waypoint: neither hostname nor address"},
		{"gateway address", w(message{}.sub(19, message{}.sub(2, message{}.raw(2, 1)))), "workload u1: network_gateway: address: address of 1 bytes"},
		{"no hostname", message{}.sub(2, message{}.str(2, "ns")), "service ns/: hostname: empty"},
		{"vip length", v(message{}.sub(4, message{}.raw(2, 10, 0, 0, 0).num(3, 33))), "service ns/host: addresses[0]: length 33 exceeds"},
		{"vip bytes", v(message{}.sub(4, message{}.str(1, "net"))), "service ns/host: addresses[0]: address of 0 bytes"},
		{"families", v(message{}.num(9, 4)), "service ns/host: ip_families: unknown value 4"},
		{"preference", v(message{}.sub(8, message{}.num(1, 7))), "service ns/host: load_balancing.routing_preference[0]: unknown value 7"},
		{"mode", v(message{}.sub(8, message{}.num(2, 4))), "service ns/host: load_balancing.mode: unknown value 4"},
		{"health policy", v(message{}.sub(8, message{}.num(3, 2))), "service ns/host: load_balancing.health_policy: unknown value 2"},
		{"weighted waypoint", v(message{}.sub(13, message{}.num(2, 10))), "service ns/host: weighted_waypoints[0].destination: neither"},
		{"target port", v(message{}.sub(5, message{}.num(2, 65536))), "service ns/host: ports[0].target_port: 65536 is not a port"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := UnmarshalAddress(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
		})
	}
}

//ambit:feature wire-forms
func TestTolerated(t *testing.T) {
	w := message{}.sub(1, message{}.str(20, "u1").num(12, 99).
		raw(3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1).
		sub(22, message{}.str(1, "a/b").sub(2, message{}.sub(1, message{}.num(1, 80).num(3, 99)))).
		sub(26, message{}.str(1, "extension")).num(900, 1))
	got, _, err := UnmarshalAddress(w)
	if err != nil {
		t.Fatal(err)
	}
	want := &mesh.Workload{UID: "u1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Services: map[string][]mesh.Port{"a/b": {{ServicePort: 80}}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	_, v, err := UnmarshalAddress(message{}.sub(2, message{}.str(2, "ns").str(3, "h").num(14, 9)))
	if err != nil || v.NamespaceOnly {
		t.Errorf("unknown visibility: %+v, %v", v, err)
	}
}

func TestPolicyRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		in   message
		want string
	}{
		{"truncated", message{0x0a, 0x05, 0x01}, "authorization of 3 bytes"},
		{"no name", message{}.str(2, "ns"), "authorization ns/: name: empty"},
		{"scope", message{}.str(1, "p").str(2, "ns").num(3, 3), "authorization ns/p: scope: unknown value 3"},
		{"action", message{}.str(1, "p").str(2, "ns").num(4, 2), "authorization ns/p: action: unknown value 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := UnmarshalPolicy(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v", err)
			}
		})
	}
}

// Entries that cannot be read are dropped, but never so that an ALLOW policy
// lets in more than it says.
func TestUnreadablePolicyEntries(t *testing.T) {
	badCIDR := message{}.raw(1, 1, 2, 3).num(2, 8)
	goodCIDR := message{}.raw(1, 10, 0, 0, 0).num(2, 8)
	ten := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	ports := func(m message) message { return m.raw(9, 80) }
	for _, c := range []struct {
		name  string
		match message
		allow mesh.Match
		deny  mesh.Match
	}{
		{"one of two sources", ports(message{}.sub(5, badCIDR).sub(5, goodCIDR)),
			mesh.Match{SourceIPs: ten, DestinationPorts: []uint16{80}}, mesh.Match{SourceIPs: ten, DestinationPorts: []uint16{80}}},
		{"the only source", ports(message{}.sub(5, badCIDR)), mesh.Match{}, mesh.Match{DestinationPorts: []uint16{80}}},
		{"one of two exceptions", ports(message{}.sub(6, badCIDR).sub(6, goodCIDR)),
			mesh.Match{}, mesh.Match{NotSourceIPs: ten, DestinationPorts: []uint16{80}}},
		{"pattern without form", ports(message{}.sub(3, nil)), mesh.Match{}, mesh.Match{DestinationPorts: []uint16{80}}},
		{"port above 16 bits", message{}.num(9, 65536+80), mesh.Match{DestinationPorts: []uint16{80}}, mesh.Match{DestinationPorts: []uint16{80}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for action, want := range map[uint64]mesh.Match{0: c.allow, 1: c.deny} {
				in := message{}.str(1, "p").num(4, action).sub(5, message{}.sub(1, message{}.sub(2, c.match)))
				p, err := UnmarshalPolicy(in)
				if err != nil {
					t.Fatal(err)
				}
				if got := p.Rules[0].Clauses[0].Matches; len(got) != 1 || !reflect.DeepEqual(got[0], want) {
					t.Errorf("action %d: %+v, want %+v", action, got, want)
				}
			}
		})
	}
}

// A DENY whose match has nothing left but what could not be read holds for
// everybody; one that was empty from the start holds for nobody.
func TestUnreadableDenyHolds(t *testing.T) {
	for _, c := range []struct {
		name string
		in   message
		want []mesh.Match
	}{
		{"unreadable", message{}.sub(2, message{}.str(99, "")).sub(2, message{}.sub(5, message{}.raw(1, 1, 2, 3))), nil},
		{"empty", message{}.sub(2, nil), []mesh.Match{{}}},
	} {
		p, err := UnmarshalPolicy(message{}.str(1, "p").num(4, 1).sub(5, message{}.sub(1, c.in)))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Rules[0].Clauses[0].Matches; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

//ambit:feature wire-fuzzed
func FuzzUnmarshalAddress(f *testing.F) {
	for _, marshal := range []func() ([]byte, error){
		func() ([]byte, error) { return MarshalWorkload(fullWorkload()) },
		func() ([]byte, error) { return MarshalService(fullService()) },
		func() ([]byte, error) { return MarshalWorkload(&mesh.Workload{UID: "u"}) },
	} {
		b, err := marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w, v, err := UnmarshalAddress(b)
		if err != nil {
			return
		}
		var again []byte
		if w != nil {
			again, err = MarshalWorkload(w)
		} else {
			again, err = MarshalService(v)
		}
		if err != nil {
			t.Fatal(err)
		}
		w2, v2, err := UnmarshalAddress(again)
		if err != nil || !reflect.DeepEqual(w, w2) || !reflect.DeepEqual(v, v2) {
			t.Fatalf("%+v %+v became %+v %+v: %v", w, v, w2, v2, err)
		}
	})
}

//ambit:feature wire-fuzzed
func FuzzUnmarshalPolicy(f *testing.F) {
	b, err := MarshalPolicy(fullPolicy())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-7])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := UnmarshalPolicy(b)
		if err != nil {
			return
		}
		again, err := MarshalPolicy(p)
		if err != nil {
			t.Fatal(err)
		}
		p2, err := UnmarshalPolicy(again)
		if err != nil || !reflect.DeepEqual(p, p2) {
			t.Fatalf("%+v became %+v: %v", p, p2, err)
		}
	})
}

func BenchmarkUnmarshalWorkload(b *testing.B) {
	in, err := MarshalWorkload(fullWorkload())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := UnmarshalAddress(in); err != nil {
			b.Fatal(err)
		}
	}
}
