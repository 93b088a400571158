package server_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
	"github.com/ambitmesh/ambit/controller/xds/server"
)

// town is a mesh of some size: services a and b with two workloads each on
// other nodes, a waypoint, one workload of nothing, one on node-1.
func town() mesh.Delta {
	member := func(name string, last byte, service string) *mesh.Workload {
		w := workload(name, last)
		w.Node = "node-2"
		if service != "" {
			w.Services = map[string][]mesh.Port{"ns/" + service: {{ServicePort: 80, TargetPort: 8080}}}
		}
		return w
	}
	vip := func(name, prefix string) *mesh.Service {
		return &mesh.Service{Namespace: "ns", Name: name, Hostname: name, Addresses: []mesh.NetworkAddress{{Prefix: netip.MustParsePrefix(prefix)}}}
	}
	local := member("local", 1, "")
	local.Node = "node-1"
	guarded := vip("b", "10.96.0.2/32")
	guarded.Waypoint = &mesh.GatewayAddress{Namespace: "ns", Hostname: "wp", HBONEPort: 15008}
	return mesh.Delta{
		Workloads: []*mesh.Workload{local, member("a1", 11, "a"), member("a2", 12, "a"), member("b1", 21, "b"), member("b2", 22, "b"),
			member("wp1", 31, "wp"), member("alone", 41, "")},
		Services: []*mesh.Service{vip("a", "10.96.0.1/32"), guarded, vip("wp", "10.96.0.3/32"), vip("wide", "10.200.0.0/16")},
	}
}

func (r *raw) first(ours bool, holds map[string]string, names ...string) {
	r.t.Helper()
	m := &discovery.DeltaDiscoveryRequest{TypeUrl: wire.TypeAddress, InitialResourceVersions: holds,
		ResourceNamesSubscribe: append([]string{"*"}, names...), ResourceNamesUnsubscribe: []string{"*"}}
	if ours {
		m.Node = &core.Node{Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{wire.MetadataServices: structpb.NewStringValue("all")}}}
	}
	if err := r.stream.Send(m); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) ask(names, giveUps []string) {
	r.t.Helper()
	if err := r.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.TypeAddress, ResourceNamesSubscribe: names, ResourceNamesUnsubscribe: giveUps}); err != nil {
		r.t.Fatal(err)
	}
}

// gets wants one response with these resources and removals, in any order.
func (r *raw) gets(want string) *discovery.DeltaDiscoveryResponse {
	r.t.Helper()
	m := r.recv()
	got := strings.Fields(strings.ReplaceAll(strings.TrimPrefix(describe(m), "A"), "c//Pod/ns/", ""))
	slices.Sort(got)
	expected := strings.Fields(want)
	slices.Sort(expected)
	if !slices.Equal(got, expected) {
		r.t.Fatalf("response %v, want %v", got, expected)
	}
	r.answer(m, "")
	return m
}

// What a client on demand is told, name by name.
//
//ambit:feature xds-on-demand
func TestOnDemandAnswers(t *testing.T) {
	for _, c := range []struct {
		name, ask, ours, foreign string
	}{
		{"a workload by UID", "c//Pod/ns/alone", "+alone", "+alone"},
		{"a workload by address", "/10.0.0.41", "+alone", "+alone +/10.0.0.41"},
		{"a workload with its service", "/10.0.0.11", "+a1", "+ns/a +a1 +a2 +/10.0.0.11"},
		{"a service with its workloads", "ns/a", "+ns/a +a1 +a2", "+ns/a +a1 +a2"},
		{"a service with its waypoint", "ns/b", "+ns/b +b1 +b2 +wp1", "+ns/b +b1 +b2 +ns/wp +wp1"},
		{"a service by virtual address", "/10.96.0.1", "+ns/a +a1 +a2", "+ns/a +a1 +a2 +/10.96.0.1"},
		{"a service by an address within its range", "/10.200.7.7", "+ns/wide", "+ns/wide +/10.200.7.7"},
		{"nothing", "/10.9.9.9", "-/10.9.9.9", "-/10.9.9.9"},
		{"no service", "ns/none", "-ns/none", "-ns/none"},
		{"another network", "far/10.0.0.41", "-far/10.0.0.41", "-far/10.0.0.41"},
		{"nonsense", "//x/", "-//x/", "-//x/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.apply(town())
			for _, ours := range []bool{true, false} {
				r := l.dial("node-1")
				r.first(ours, nil)
				want, begin := c.foreign, "+local"
				if ours {
					want, begin = c.ours, "+local +ns/a +ns/b +ns/wp +ns/wide"
				}
				r.gets(begin)
				r.ask([]string{c.ask}, nil)
				r.gets(want)
			}
		})
	}
}

// What was asked for is followed, what was not is not.
//
//ambit:feature xds-on-demand
func TestOnDemandFollows(t *testing.T) {
	l := newLab(t)
	l.apply(town())
	r := l.dial("node-1")
	r.first(false, nil)
	r.gets("+local")
	r.ask([]string{"ns/a", "/10.0.0.99", "ns/late"}, nil)
	r.gets("+ns/a +a1 +a2 -/10.0.0.99 -ns/late")
	in := func(w *mesh.Workload, service string) *mesh.Workload {
		w.Node = "node-2"
		if service != "" {
			w.Services = map[string][]mesh.Port{"ns/" + service: nil}
		}
		return w
	}
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{in(workload("b3", 23), "b")}}) // nobody's business
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{in(workload("a3", 13), "a")}, RemovedWorkloads: []string{"c//Pod/ns/a1", "c//Pod/ns/b1"}})
	r.gets("+a3 -a1")
	here := in(workload("here", 2), "")
	here.Node = "node-1"
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{here}})
	r.gets("+here")
	// What was absent appears, with all that belongs to it.
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{in(workload("late1", 51), "late"), in(workload("nn", 99), "")}})
	r.gets("+nn")
	l.apply(mesh.Delta{Services: []*mesh.Service{{Namespace: "ns", Name: "late", Hostname: "late"}}})
	r.gets("+ns/late +late1")
	// A workload that leaves the service that was asked for stays known.
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{in(workload("a2", 12), "")}})
	r.gets("+a2")
	// What is given up is no longer told.
	r.ask([]string{"/10.9.9.9"}, []string{"/10.0.0.99", "c//Pod/ns/nn"})
	r.gets("-/10.9.9.9")
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{in(workload("nn", 98), "")}})
	l.apply(mesh.Delta{RemovedServices: []string{"ns/a", "ns/b"}})
	r.gets("-ns/a")
}

// A client that comes back is told what differs of what it holds, and holds it
// still.
//
//ambit:feature xds-on-demand
func TestOnDemandReconnect(t *testing.T) {
	l := newLab(t)
	l.apply(town())
	r := l.dial("node-1")
	r.first(true, nil, "ns/a")
	m := r.gets("+local +ns/a +ns/b +ns/wp +ns/wide +a1 +a2")
	holds := map[string]string{"c//Pod/ns/b2": "old", "c//Pod/ns/none": "1", "/10.0.0.77": ""}
	for _, x := range m.Resources {
		holds[x.Name] = x.Version
	}
	again := l.dial("node-1")
	again.first(true, holds, "ns/a")
	again.gets("+b2 -/10.0.0.77 -none")
	l.apply(mesh.Delta{RemovedWorkloads: []string{"c//Pod/ns/a1", "c//Pod/ns/b1", "c//Pod/ns/b2"}})
	again.gets("-a1 -b2")
}

// A small mesh is sent whole, and who asks is told so.
//
//ambit:feature xds-on-demand
func TestOnDemandOfASmallMesh(t *testing.T) {
	l := newLab(t, func(c *server.Config) { c.WholeUpTo = 7 })
	l.apply(town())
	word := func(r *raw) string {
		h, err := r.stream.Header()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(h.Get(wire.HeaderOnDemand))
	}
	r := l.dial("node-1")
	if w := word(r); w != "[whole]" {
		t.Errorf("header %s", w)
	}
	r.first(false, nil, "/10.0.0.99")
	r.gets("+ns/a +ns/b +ns/wp +ns/wide +local +a1 +a2 +b1 +b2 +wp1 +alone -/10.0.0.99")
	l.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("eighth", 8)}})
	r.gets("+eighth") // decided when the stream began
	if w := word(l.dial("node-1")); w != "[names]" {
		t.Errorf("header %s", w)
	}
}
