package mesh

import (
	"net/netip"
	"testing"
)

// TestHostNetworkAt: many workloads share the address of their node, and each
// may go before the others.
func TestHostNetworkAt(t *testing.T) {
	at := netip.MustParseAddr("192.168.0.1")
	on := func(uid string, host bool) *Workload {
		return &Workload{UID: uid, Addresses: []netip.Addr{at}, HostNetwork: host}
	}
	var s *Snapshot
	apply := func(d Delta) {
		b := NewBuilder(s)
		b.Apply(d)
		s = b.Build()
	}
	for _, step := range []struct {
		d    Delta
		want bool
	}{
		{Delta{Workloads: []*Workload{on("a", true)}}, true},
		{Delta{Workloads: []*Workload{on("b", true)}}, true},
		{Delta{RemovedWorkloads: []string{"a"}}, true},
		{Delta{Workloads: []*Workload{on("b", false)}}, false},
		{Delta{Workloads: []*Workload{on("b", true)}}, true},
		{Delta{RemovedWorkloads: []string{"b"}}, false},
	} {
		apply(step.d)
		if got := s.HostNetworkAt("", at); got != step.want || s.HostNetworkAt("other", at) {
			t.Errorf("after %+v: %t", step.d, got)
		}
	}
}

func TestServicesNamed(t *testing.T) {
	b := NewBuilder(nil)
	b.Apply(Delta{Services: []*Service{{Namespace: "b", Hostname: "x.test"}, {Namespace: "a", Hostname: "x.test", NamespaceOnly: true}, {Namespace: "a", Hostname: "*.test"}}})
	s := b.Build()
	if got := s.ServicesNamed("x.test"); len(got) != 2 || got[0].Namespace != "a" {
		t.Error(got)
	}
	if got := s.ServicesNamed("*.test"); len(got) != 1 {
		t.Error(got)
	}
	if got := s.ServicesNamed("y.test"); got != nil {
		t.Error(got)
	}
}
