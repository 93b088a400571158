package live

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
)

func vip(a string) []mesh.NetworkAddress {
	return []mesh.NetworkAddress{{Prefix: netip.MustParsePrefix(a)}}
}

// control is a control plane that knows everything and tells what it is asked.
type control struct {
	all   map[string]mesh.Delta
	store *mesh.Store
	known map[string]bool
	asked []string
	err   error
}

func (c *control) Known(name string) bool { return c.known[name] }

func (c *control) Fetch(_ context.Context, _, name string) error {
	if c.asked = append(c.asked, name); c.err != nil {
		return c.err
	}
	if d, ok := c.all[name]; ok {
		b := mesh.NewBuilder(c.store.Load())
		b.Apply(d)
		c.store.Swap(b.Build())
	}
	c.known[name] = true
	return nil
}

// What is asked before a connection is decided on, in order.
//
//ambit:feature xds-on-demand-lookup
func TestLearn(t *testing.T) {
	source := &mesh.Workload{UID: "me", Namespace: "ns", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	pod := &mesh.Workload{UID: "pod", Namespace: "ns", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")},
		Waypoint: &mesh.GatewayAddress{Namespace: "ns", Hostname: "wp"}}
	far := &mesh.Workload{UID: "far", Namespace: "ns", Network: "far", Services: map[string][]mesh.Port{"ns/a": nil},
		NetworkGateway: &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "far", Prefix: netip.MustParsePrefix("192.0.2.1/32")}}}
	gate := &mesh.Workload{UID: "gate", Network: "far", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	a := &mesh.Service{Namespace: "ns", Name: "a", Hostname: "a", Addresses: vip("10.96.0.1/32")}
	guarded := &mesh.Service{Namespace: "ns", Name: "g", Hostname: "g", Addresses: vip("10.96.0.2/32"),
		Waypoint: &mesh.GatewayAddress{Address: mesh.NetworkAddress{Prefix: netip.MustParsePrefix("10.96.0.3/32")}},
		Weighted: []mesh.WeightedWaypoint{{Destination: mesh.GatewayAddress{Namespace: "ns", Hostname: "canary"}}}}
	wp := &mesh.Service{Namespace: "ns", Name: "wp", Hostname: "wp", Addresses: vip("10.96.0.3/32")}
	all := map[string]mesh.Delta{
		"/10.0.0.2":     {Workloads: []*mesh.Workload{pod}},
		"ns/a":          {Services: []*mesh.Service{a}, Workloads: []*mesh.Workload{far}},
		"/10.96.0.1":    {Services: []*mesh.Service{a}},
		"ns/g":          {Services: []*mesh.Service{guarded}},
		"ns/wp":         {Services: []*mesh.Service{wp}},
		"/10.96.0.3":    {Services: []*mesh.Service{wp}},
		"far/192.0.2.1": {Workloads: []*mesh.Workload{gate}},
	}
	for _, c := range []struct {
		name, dst string
		services  bool // are known, without their workloads
		asks      string
	}{
		{"nobody's address", "203.0.113.9", true, "/203.0.113.9"},
		{"a pod and its waypoint", "10.0.0.2", true, "/10.0.0.2 ns/wp"},
		{"a service with an endpoint in another network", "10.96.0.1", true, "ns/a far/192.0.2.1"},
		{"a service that is not known either", "10.96.0.1", false, "/10.96.0.1 ns/a far/192.0.2.1"},
		{"a service with waypoints", "10.96.0.2", true, "ns/g ns/wp ns/canary"},
		{"ourselves", "127.0.0.1", true, ""},
		{"ourselves, mapped", "::ffff:127.0.0.1", true, ""},
		{"nobody's address, mapped", "::ffff:203.0.113.9", true, "/203.0.113.9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctl := &control{all: all, store: mesh.NewStore(), known: map[string]bool{}}
			b := mesh.NewBuilder(ctl.store.Load())
			if c.services {
				b.Apply(mesh.Delta{Services: []*mesh.Service{a, guarded, wp}})
			}
			ctl.store.Swap(b.Build())
			for range 2 { // the second time everything is known
				snap, err := Learn(t.Context(), ctl, ctl.store, &Pod{}, source, netip.MustParseAddr(c.dst))
				if err != nil || snap != ctl.store.Load() {
					t.Fatal(err)
				}
			}
			if !slices.Equal(ctl.asked, strings.Fields(c.asks)) {
				t.Errorf("asked %v, want %v", ctl.asked, c.asks)
			}
		})
	}
	ctl := &control{store: mesh.NewStore(), known: map[string]bool{}, err: errors.New("away")}
	_, err := Learn(t.Context(), ctl, ctl.store, &Pod{}, source, netip.MustParseAddr("203.0.113.9"))
	var e *Error
	if !errors.As(err, &e) || e.Reason != LookupUnanswered {
		t.Errorf("error %v", err)
	}
	if _, err := Learn(t.Context(), nil, ctl.store, &Pod{}, source, netip.MustParseAddr("203.0.113.9")); err != nil {
		t.Error(err)
	}
}
