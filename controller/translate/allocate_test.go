package translate

import (
	"net/netip"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// Candidates are all addresses of a range that can be used, each once, and the
// same every time.
func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		prefix string
		n      int
	}{{"10.0.0.0/28", 14}, {"10.0.0.16/30", 2}, {"fd00::/124", 15}, {"fd00::10/124", 15}} {
		p := netip.MustParsePrefix(c.prefix).Masked()
		var first []netip.Addr
		for range 2 {
			var all []netip.Addr
			for a := range Candidates(p, "ns/e/h.test") {
				if !p.Contains(a) || slices.Contains(all, a) || a == p.Addr() {
					t.Errorf("%s: %s", c.prefix, a)
				}
				all = append(all, a)
			}
			if len(all) != c.n || first != nil && !slices.Equal(first, all) {
				t.Errorf("%s: %v, want %d; before %v", c.prefix, all, c.n, first)
			}
			first = all
		}
	}
	big := netip.MustParsePrefix("2001:2::/48")
	n := 0
	for a := range Candidates(big, "x") {
		if n++; !big.Contains(a) {
			t.Errorf("%s is not in %s", a, big)
		}
		if n == 100 {
			break
		}
	}
}

// Which hosts get an address of their own.
//
//ambit:feature workload-allocate-optout
func TestAllocateHosts(t *testing.T) {
	for _, c := range []struct {
		name       string
		resolution networking.ServiceEntry_Resolution
		label      string
		addresses  []string
		want       []string
	}{
		{"resolved", networking.ServiceEntry_DNS, "", nil, []string{"a.test"}},
		{"static", networking.ServiceEntry_STATIC, "", nil, []string{"a.test"}},
		{"round robin", networking.ServiceEntry_DNS_ROUND_ROBIN, "true", nil, []string{"a.test"}},
		{"dynamic, with wildcards", networking.ServiceEntry_DYNAMIC_DNS, "", nil, []string{"a.test", "*.w.test"}},
		{"not resolved", networking.ServiceEntry_NONE, "true", nil, nil},
		{"opted out", networking.ServiceEntry_DNS, "False", nil, nil},
		{"with its own", networking.ServiceEntry_DNS, "true", []string{"192.0.2.1"}, nil},
	} {
		se := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}},
			Spec: networking.ServiceEntry{Hosts: []string{"A.test", "*.w.test", "not a host"}, Resolution: c.resolution, Addresses: c.addresses}}
		if c.label != "" {
			se.Labels[AllocateLabel] = c.label
		}
		if got := AllocateHosts(se); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
