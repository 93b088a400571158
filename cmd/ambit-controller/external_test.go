package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

func (l *lab) entry(t *testing.T, name string, labels map[string]string, hosts ...string) {
	t.Helper()
	_, err := l.istio.NetworkingV1().ServiceEntries("prod").Create(t.Context(), &networkingv1.ServiceEntry{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: networking.ServiceEntry{Hosts: hosts, Resolution: networking.ServiceEntry_DNS,
			Ports: []*networking.ServicePort{{Number: 443, Name: "tls", Protocol: "TLS"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// allocated are "host value" of an entry's status, and who manages them.
func (l *lab) allocated(name string) (list []string, managers string, err error) {
	se, err := l.istio.NetworkingV1().ServiceEntries("prod").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil, "", err
	}
	for _, a := range se.Status.GetAddresses() {
		list = append(list, a.GetHost()+" "+a.GetValue())
	}
	for _, m := range se.ManagedFields {
		if m.Subresource == "status" && strings.Contains(m.FieldsV1.GetRawString(), `"f:addresses"`) {
			managers += m.Manager + " "
		}
	}
	return list, strings.TrimSpace(managers), nil
}

// addressed waits until both families of each host have an address.
func (l *lab) addressed(t *testing.T, name string, hosts ...string) []string {
	t.Helper()
	var got []string
	eventually(t, func() error {
		list, managers, err := l.allocated(name)
		if err != nil {
			return err
		}
		want := map[string]int{}
		for _, a := range list {
			host, value, _ := strings.Cut(a, " ")
			addr := netip.MustParseAddr(value)
			if !netip.MustParsePrefix("240.240.0.0/16").Contains(addr) && !netip.MustParsePrefix("2001:2::/48").Contains(addr) {
				return fmt.Errorf("%s is in neither range", a)
			}
			want[host]++
		}
		for _, h := range hosts {
			if want[h] != 2 {
				return fmt.Errorf("%s: %v", name, list)
			}
		}
		if managers != "ambit-address-allocator" || len(list) != 2*len(hosts) {
			return fmt.Errorf("%s: %v written by %q", name, list, managers)
		}
		got = list
		return nil
	})
	return got
}

// testExternal: hosts outside the cluster get addresses, which the ztunnel
// learns, and what another controller wrote stays as it is.
func (r *running) testExternal(t *testing.T) {
	r.entry(t, "partner", nil, "a.example.com", "b.example.com")
	first := r.addressed(t, "partner", "a.example.com", "b.example.com")
	r.await(t, "the addresses of a.example.com", func(s *mesh.Snapshot) bool {
		svc := s.Service("prod/a.example.com")
		return svc != nil && len(svc.Addresses) == 2 && slices.ContainsFunc(svc.Addresses, func(a mesh.NetworkAddress) bool {
			return slices.Contains(first, "a.example.com "+a.Prefix.Addr().String())
		})
	})
	if e := r.store.Load().Endpoints("prod/a.example.com"); len(e) != 1 || e[0].Workload.Hostname != "a.example.com" {
		t.Errorf("endpoints are %+v", e)
	}

	const theirs = `{"status":{"addresses":[{"value":"240.240.7.7","host":"c.example.com"}]}}`
	r.entry(t, "foreign", map[string]string{"networking.istio.io/enable-autoallocate-ip": "false"}, "c.example.com", "d.example.com")
	entries := r.istio.NetworkingV1().ServiceEntries("prod")
	if _, err := entries.Patch(t.Context(), "foreign", types.MergePatchType, []byte(theirs), metav1.PatchOptions{FieldManager: "pilot-discovery"}, "status"); err != nil {
		t.Fatal(err)
	}
	if _, err := entries.Patch(t.Context(), "foreign", types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"networking.istio.io/enable-autoallocate-ip":null}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the address that another controller chose", func(s *mesh.Snapshot) bool {
		svc := s.Service("prod/c.example.com")
		return svc != nil && len(svc.Addresses) == 1
	})
	eventually(t, func() error {
		if !strings.Contains(r.log.String(), "host d.example.com has no address: status.addresses is pilot-discovery's") {
			return fmt.Errorf("nothing is said of d.example.com\n%s", r.log)
		}
		return nil
	})
	if list, managers, err := r.allocated("foreign"); err != nil || managers != "pilot-discovery" || !slices.Equal(list, []string{"c.example.com 240.240.7.7"}) {
		t.Errorf("what another controller wrote is now %v of %q, %v", list, managers, err)
	}
	// Emptied by a user, the field is ours to fill.
	if _, err := entries.Patch(t.Context(), "foreign", types.MergePatchType, []byte(`{"status":{"addresses":[]}}`),
		metav1.PatchOptions{FieldManager: "kubectl-patch"}, "status"); err != nil {
		t.Fatal(err)
	}
	r.addressed(t, "foreign", "c.example.com", "d.example.com")
	// A label takes them back.
	if _, err := entries.Patch(t.Context(), "partner", types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"networking.istio.io/enable-autoallocate-ip":"false"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "a.example.com without an address", func(s *mesh.Snapshot) bool {
		svc := s.Service("prod/a.example.com")
		return svc != nil && len(svc.Addresses) == 0
	})
	eventually(t, func() error {
		list, _, err := r.allocated("partner")
		if err == nil && len(list) > 0 {
			err = fmt.Errorf("there are still %v", list)
		}
		return err
	})
	if _, err := entries.Patch(t.Context(), "partner", types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"networking.istio.io/enable-autoallocate-ip":null}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if again := r.addressed(t, "partner", "a.example.com", "b.example.com"); !slices.Equal(again, first) {
		t.Errorf("%v, was %v", again, first)
	}
}

// testExternalGoesOn with another replica in the lead: what was given stays, and
// newcomers get theirs.
func (r *running) testExternalGoesOn(t *testing.T) {
	before, _, err := r.allocated("partner")
	if err != nil || len(before) != 4 {
		t.Fatalf("%v, %v", before, err)
	}
	r.entry(t, "late", nil, "late.example.com")
	late := r.addressed(t, "late", "late.example.com")
	if now, _, err := r.allocated("partner"); err != nil || !slices.Equal(now, before) {
		t.Errorf("%v, was %v, %v", now, before, err)
	}
	for _, a := range late {
		_, value, _ := strings.Cut(a, " ")
		if slices.ContainsFunc(before, func(b string) bool { return strings.HasSuffix(b, " "+value) }) {
			t.Errorf("%s is taken: %v", a, before)
		}
	}
}
