package translate

import (
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
)

func FuzzPrefix(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.0.0.7/8", "::ffff:10.0.0.1", "::ffff:10.0.0.1/104", "::ffff:0:0/90", "fd00::/8", "fe80::1%eth0", "10.0.0.0/99", "", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := prefix(s)
		if !ok {
			if p != (netip.Prefix{}) {
				t.Errorf("%q: refused, yet %v", s, p)
			}
			return
		}
		if !p.IsValid() || p != p.Masked() || p.Addr().Zone() != "" || p.Addr().Is4In6() && p.Bits() >= 96 {
			t.Errorf("%q: %v is not in normal form", s, p)
		}
		if a, err := netip.ParseAddr(s); err == nil && !p.Contains(a.Unmap()) {
			t.Errorf("%q is not in %v", s, p)
		}
	})
}

func TestStringMatch(t *testing.T) {
	for in, want := range map[string]mesh.StringMatch{
		"*":    {Kind: mesh.Presence},
		"*x":   {Kind: mesh.Suffix, Value: "x"},
		"x*":   {Kind: mesh.Prefix, Value: "x"},
		"x":    {Kind: mesh.Exact, Value: "x"},
		"a*b":  {Kind: mesh.Exact, Value: "a*b"},
		"*a*":  {Kind: mesh.Suffix, Value: "a*"},
		"*/sa": {Kind: mesh.Suffix, Value: "/sa"},
	} {
		if got := stringMatch(in); got != want {
			t.Errorf("%q: %+v, want %+v", in, got, want)
		}
	}
}
