package mesh

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
)

func build(base *Snapshot, d Delta) *Snapshot {
	b := NewBuilder(base)
	b.Apply(d)
	return b.Build()
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func vip(s string) NetworkAddress { return NetworkAddress{Prefix: netip.MustParsePrefix(s)} }

//ambit:feature model-lookup
func TestWorkloadAtRanks(t *testing.T) {
	at := []netip.Addr{addr("10.0.0.1")}
	all := []*Workload{
		{UID: "c//Pod/ns/hbone", Addresses: at, Protocol: ProtocolHBONE},
		{UID: "c//Pod/ns/plain", Addresses: at},
		{UID: "c/x/WorkloadEntry/ns/hbone", Addresses: at, Protocol: ProtocolHBONE},
		{UID: "c/x/WorkloadEntry/ns/plain", Addresses: at},
	}
	s := build(nil, Delta{Workloads: append([]*Workload{{UID: "a//Pod/ns/host", Addresses: at, HostNetwork: true, Protocol: ProtocolHBONE}}, all...)})
	for _, w := range all { // the best one goes, the next one is found
		if got := s.WorkloadAt("", addr("::ffff:10.0.0.1")); got != w {
			t.Fatalf("found %v, want %s", got, w.UID)
		}
		s = build(s, Delta{RemovedWorkloads: []string{w.UID}})
	}
	if got := s.WorkloadAt("", at[0]); got != nil {
		t.Fatalf("found %s on the host network", got.UID)
	}
	if s.Workload("a//Pod/ns/host") == nil {
		t.Fatal("host network workload not found by UID")
	}
}

//ambit:feature model-lookup
func TestServiceAtRanks(t *testing.T) {
	own := &Service{Namespace: "own", Hostname: "a", Addresses: []NetworkAddress{vip("10.0.0.1/32")}}
	canonical := &Service{Namespace: "far", Hostname: "a", Addresses: []NetworkAddress{vip("10.0.0.1/32")}, Canonical: true}
	plain := &Service{Namespace: "early", Hostname: "a", Addresses: []NetworkAddress{vip("10.0.0.1/32")}}
	hidden := &Service{Namespace: "aaa", Hostname: "a", Addresses: []NetworkAddress{vip("10.0.0.1/32")}, Canonical: true, NamespaceOnly: true}
	wide := &Service{Namespace: "own", Hostname: "wide", Addresses: []NetworkAddress{vip("10.0.0.0/8")}}
	narrow := &Service{Namespace: "far", Hostname: "narrow", Addresses: []NetworkAddress{vip("10.0.0.0/24")}}
	narrowCanonical := &Service{Namespace: "far", Hostname: "z", Addresses: []NetworkAddress{vip("10.0.0.0/24")}, Canonical: true}
	cases := []struct {
		name   string
		has    []*Service
		client string
		want   *Service
	}{
		{"own namespace first", []*Service{own, canonical, plain}, "own", own},
		{"then canonical", []*Service{own, canonical, plain}, "else", canonical},
		{"then the first", []*Service{own, plain}, "else", plain},
		{"invisible", []*Service{hidden}, "else", nil},
		{"visible at home", []*Service{hidden, canonical}, "aaa", hidden},
		{"exact before CIDR of the own namespace", []*Service{canonical, wide}, "own", canonical},
		{"CIDR of the own namespace before longer", []*Service{wide, narrow}, "own", wide},
		{"longest CIDR", []*Service{wide, narrow}, "else", narrow},
		{"canonical CIDR of one length", []*Service{narrow, narrowCanonical}, "else", narrowCanonical},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := build(nil, Delta{Services: c.has}).ServiceAt("", addr("10.0.0.1"), c.client); got != c.want {
				t.Fatalf("found %+v", got)
			}
		})
	}
	if got := build(nil, Delta{Services: []*Service{own}}).ServiceAt("other-network", addr("10.0.0.1"), "own"); got != nil {
		t.Fatalf("found %+v in another network", got)
	}
}

//ambit:feature model-endpoints
func TestEndpointsAreStagedAndFiltered(t *testing.T) {
	key := "ns/s"
	well := &Workload{UID: "1", Services: map[string][]Port{key: {{ServicePort: 80}}}}
	sick := &Workload{UID: "2", Services: map[string][]Port{key: nil}, Health: Unhealthy}
	s := build(nil, Delta{Workloads: []*Workload{sick, well}})
	if got := s.Endpoints(key); got != nil {
		t.Fatalf("endpoints of an unknown service: %v", got)
	}
	s = build(s, Delta{Services: []*Service{{Namespace: "ns", Hostname: "s"}}})
	if got := s.Endpoints(key); len(got) != 1 || got[0].Workload != well || got[0].Ports[0].ServicePort != 80 {
		t.Fatalf("healthy endpoints %v", got)
	}
	s = build(s, Delta{Services: []*Service{{Namespace: "ns", Hostname: "s", LoadBalancing: LoadBalancing{AllowAll: true}}}})
	if got := s.Endpoints(key); len(got) != 2 || got[1].Workload != sick {
		t.Fatalf("all endpoints %v", got)
	}
	s = build(s, Delta{RemovedServices: []string{key}, Workloads: []*Workload{{UID: "1"}}})
	s = build(s, Delta{Services: []*Service{{Namespace: "ns", Hostname: "s", LoadBalancing: LoadBalancing{AllowAll: true}}}})
	if got := s.Endpoints(key); len(got) != 1 || got[0].Workload != sick {
		t.Fatalf("endpoints after the service came back %v", got)
	}
}

//ambit:feature model-endpoints
func TestLocalWorkload(t *testing.T) {
	w := &Workload{UID: "1", Namespace: "ns", Name: "p", Node: "n1"}
	s := build(nil, Delta{Workloads: []*Workload{w}})
	for _, c := range []struct {
		node, ns, name, sa string
		found              bool
	}{
		{"n1", "ns", "p", "default", true}, {"n1", "ns", "p", "", true}, {"", "ns", "p", "default", true},
		{"n2", "ns", "p", "default", false}, {"n1", "ns", "q", "default", false}, {"n1", "ns", "p", "web", false}, {"n1", "x", "p", "default", false},
	} {
		if got := s.LocalWorkload(c.node, c.ns, c.name, c.sa); (got != nil) != c.found {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestEqualValuesChangeNothing(t *testing.T) {
	make1 := func() Delta {
		return Delta{
			Workloads: []*Workload{{UID: "1", Addresses: []netip.Addr{addr("10.0.0.1")}, Services: map[string][]Port{"ns/s": {{ServicePort: 80}}}}},
			Services:  []*Service{{Namespace: "ns", Hostname: "s"}},
			Policies:  []*Policy{{Namespace: "ns", Name: "p", Rules: []Rule{{}}}},
		}
	}
	store := NewStore()
	store.Swap(build(store.Load(), make1()))
	from := store.Load()
	store.Swap(build(from, make1()))
	if c, ok := store.Changes(from.Mark(), store.Load()); !ok || c.size() != 0 {
		t.Fatalf("changes %+v, %v", c, ok)
	}
	if store.Load().Workload("1") != from.Workload("1") {
		t.Error("an equal workload was replaced")
	}
}

func TestChangesKnowWhereHistoryEnds(t *testing.T) {
	store := NewStore()
	old := store.Load()
	store.Swap(build(old, Delta{Workloads: []*Workload{{UID: "1"}}}))
	if c, ok := store.Changes(old.Mark(), store.Load()); !ok || len(c.Workloads) != 1 {
		t.Fatalf("%+v, %v", c, ok)
	}
	mine := store.Load()
	store.Swap(build(nil, Delta{Workloads: []*Workload{{UID: "2"}}})) // no child of mine
	for _, m := range []Mark{old.Mark(), mine.Mark(), {}} {
		if c, ok := store.Changes(m, store.Load()); ok {
			t.Fatalf("changes %+v across a break", c)
		}
	}
	// The bound of the log is names, not swaps.
	from := store.Load()
	for i := range 3 {
		var d Delta
		for j := range logNames / 2 {
			d.RemovedPolicies = nil
			d.Policies = append(d.Policies, &Policy{Namespace: "ns", Name: fmt.Sprint(i, "-", j), Scope: ScopeWorkloadSelector})
		}
		store.Swap(build(store.Load(), d))
	}
	if _, ok := store.Changes(from.Mark(), store.Load()); ok {
		t.Error("the log is not bounded")
	}
	if len(store.log) > 2 {
		t.Errorf("%d entries kept", len(store.log))
	}
}

// TestChangeLogOfSmallChanges: many changes of one name each are bounded as well,
// and the latest of them can still be asked for.
//
//ambit:feature soak-small-changes
func TestChangeLogOfSmallChanges(t *testing.T) {
	store := NewStore()
	first := store.Load()
	var near Mark
	for i := range 3 * logEntries {
		if i == 3*logEntries-10 {
			near = store.Load().Mark()
		}
		store.Swap(build(store.Load(), Delta{Workloads: []*Workload{{UID: fmt.Sprint(i)}}}))
	}
	if len(store.log) != logEntries || cap(store.log) > 2*logEntries || store.kept != logEntries {
		t.Errorf("%d entries with %d names in the room of %d", len(store.log), store.kept, cap(store.log))
	}
	if _, ok := store.Changes(first.Mark(), store.Load()); ok {
		t.Error("what was dropped is said to be known")
	}
	if c, ok := store.Changes(near, store.Load()); !ok || len(c.Workloads) != 10 {
		t.Errorf("the latest ten: %d, %t", len(c.Workloads), ok)
	}
}

func TestReadersSeeWholeSnapshots(t *testing.T) {
	store := NewStore()
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				changed := store.Changed()
				s := store.Load()
				v := fmt.Sprint(s.Version())
				if s.Version() > 0 && (s.Workload("w") == nil || s.Workload("w").Node != v || s.Policy("ns/p").Namespace != "ns" ||
					s.Endpoints("ns/s")[0].Workload.Node != v) {
					t.Error("half a change")
				}
				select {
				case <-stop:
					return
				case <-changed:
				}
			}
		})
	}
	for i := range 2000 {
		store.Swap(build(store.Load(), Delta{
			Workloads: []*Workload{{UID: "w", Node: fmt.Sprint(i + 1), Services: map[string][]Port{"ns/s": nil}}},
			Services:  []*Service{{Namespace: "ns", Hostname: "s", Name: fmt.Sprint(i)}},
			Policies:  []*Policy{{Namespace: "ns", Name: "p", DryRun: i%2 == 0}},
		}))
		if i%100 == 0 {
			runtime.Gosched()
		}
	}
	close(stop)
	readers.Wait()
}

// many is a mesh of n workloads behind n/10 services.
func many(n int) Delta {
	var d Delta
	for i := range n {
		d.Workloads = append(d.Workloads, manyWorkload(i))
		if i%10 == 0 {
			d.Services = append(d.Services, &Service{Namespace: "ns", Hostname: fmt.Sprint("s", i/10),
				Addresses: []NetworkAddress{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}}})
		}
	}
	return d
}

func manyWorkload(i int) *Workload {
	return &Workload{UID: fmt.Sprint("c//Pod/ns/w", i), Name: fmt.Sprint("w", i), Namespace: "ns", Protocol: ProtocolHBONE,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
		Services:  map[string][]Port{fmt.Sprint("ns/s", i/10): {{ServicePort: 80, TargetPort: 8080}}}}
}

//ambit:feature model-cost
func TestLookupsDoNotAllocate(t *testing.T) {
	s := build(nil, many(1000))
	a, v := addr("10.0.0.77"), addr("11.0.0.70")
	if n := testing.AllocsPerRun(100, func() {
		if s.WorkloadAt("", a) == nil || s.ServiceAt("", v, "ns") == nil || len(s.Endpoints("ns/s7")) != 10 || s.Workload("c//Pod/ns/w5") == nil ||
			s.LocalWorkload("", "ns", "w9", "default") == nil || s.ServiceByHostname("s3", "x") == nil {
			t.Fatal("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkChangeOneWorkload(b *testing.B) {
	for _, n := range []int{1000, 10000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := build(nil, many(n))
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				w := manyWorkload(i % n)
				w.Node = fmt.Sprint(i)
				s = build(s, Delta{Workloads: []*Workload{w}})
			}
		})
	}
}

func BenchmarkBuildAll(b *testing.B) {
	d := many(10000)
	b.ReportAllocs()
	for b.Loop() {
		build(nil, d)
	}
}

func BenchmarkLookup(b *testing.B) {
	s := build(nil, many(10000))
	a, v, miss := addr("10.0.0.77"), addr("11.0.0.70"), addr("12.0.0.1")
	b.Run("workload", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.WorkloadAt("", a)
		}
	})
	b.Run("service", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.ServiceAt("", v, "ns")
		}
	})
	b.Run("service-miss", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.ServiceAt("", miss, "ns")
		}
	})
	b.Run("endpoints", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Endpoints("ns/s7")
		}
	})
}

// A service of many endpoints that arrive in one batch must cost in
// proportion.
func BenchmarkEndpointBatch(b *testing.B) {
	for _, n := range []int{250, 1000, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := Delta{Services: []*Service{{Namespace: "ns", Hostname: "s"}}}
			for i := range n {
				d.Workloads = append(d.Workloads, &Workload{UID: fmt.Sprint(i), Name: fmt.Sprint(i), Services: map[string][]Port{"ns/s": nil}})
			}
			for b.Loop() {
				build(nil, d)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/endpoint")
		})
	}
}
