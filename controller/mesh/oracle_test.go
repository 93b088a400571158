package mesh

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// oracle is the obvious state: three maps, every lookup a walk over all.
type oracle struct {
	workloads map[string]*Workload
	services  map[string]*Service
	policies  map[string]*Policy
}

func newOracle() *oracle {
	return &oracle{map[string]*Workload{}, map[string]*Service{}, map[string]*Policy{}}
}

func (o *oracle) apply(d Delta) {
	for _, w := range d.Workloads {
		o.workloads[w.UID] = w
	}
	for _, v := range d.Services {
		o.services[v.Key()] = v
	}
	for _, p := range d.Policies {
		o.policies[p.Key()] = p
	}
	for _, k := range d.RemovedWorkloads {
		delete(o.workloads, k)
	}
	for _, k := range d.RemovedServices {
		delete(o.services, k)
	}
	for _, k := range d.RemovedPolicies {
		delete(o.policies, k)
	}
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (o *oracle) workloadAt(network string, a netip.Addr) string {
	best, rank := "", -1
	for _, uid := range sorted(o.workloads) {
		w := o.workloads[uid]
		if w.HostNetwork || w.Network != network || !slices.Contains(w.Addresses, a) {
			continue
		}
		r := 0
		if w.Protocol == ProtocolHBONE {
			r++
		}
		if strings.Contains(uid, "//Pod/") {
			r += 2
		}
		if r > rank {
			best, rank = uid, r
		}
	}
	return best
}

func (o *oracle) best(client string, matches func(*Service) (ok bool, bits int)) string {
	best, rank := "", [3]int{-1}
	for _, key := range sorted(o.services) {
		v := o.services[key]
		ok, bits := matches(v)
		if !ok || v.NamespaceOnly && v.Namespace != client {
			continue
		}
		r := [3]int{0, bits, 0}
		if v.Namespace == client {
			r[0] = 1
		}
		if v.Canonical {
			r[2] = 1
		}
		if slices.Compare(r[:], rank[:]) > 0 {
			best, rank = key, r
		}
	}
	return best
}

func (o *oracle) serviceAt(network string, a netip.Addr, client string) string {
	match := func(single bool) string {
		return o.best(client, func(v *Service) (bool, int) {
			bits := -1
			for _, n := range v.Addresses {
				if n.Network == network && n.IsSingle() == single && n.Prefix.Contains(a) {
					bits = max(bits, n.Prefix.Bits())
				}
			}
			return bits >= 0, bits
		})
	}
	if v := match(true); v != "" {
		return v
	}
	return match(false)
}

func (o *oracle) endpoints(key string) string {
	v := o.services[key]
	if v == nil {
		return ""
	}
	var out []string
	for _, uid := range sorted(o.workloads) {
		w := o.workloads[uid]
		if ports, ok := w.Services[key]; ok && (w.Health == Healthy || v.LoadBalancing.AllowAll) {
			out = append(out, fmt.Sprint(uid, ports))
		}
	}
	return strings.Join(out, " ")
}

func (o *oracle) policiesOf(scope PolicyScope, ns string) string {
	var out []string
	for _, key := range sorted(o.policies) {
		if p := o.policies[key]; p.Scope == scope && (scope == ScopeGlobal || p.Namespace == ns) {
			out = append(out, key)
		}
	}
	return strings.Join(out, " ")
}

// The pools are small so that collisions are the rule.
var (
	namespaces = []string{"a", "b", "c"}
	networks   = []string{"", "n2"}
	addresses  = []netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.1.1"),
		netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"),
	}
	prefixes = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::1/128"),
		netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.0.7/16"), netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("0.0.0.0/0"),
	}
	hosts = []string{"x", "y"}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func randomDelta(r *rand.Rand) Delta {
	var d Delta
	uid := func() string { return fmt.Sprintf("c/%s/%d", pick(r, []string{"/Pod", "x/WorkloadEntry"}), r.IntN(12)) }
	key := func() string { return pick(r, namespaces) + "/" + pick(r, hosts) }
	for range r.IntN(4) {
		w := &Workload{UID: uid(), Namespace: pick(r, namespaces), Name: fmt.Sprint("p", r.IntN(4)), Network: pick(r, networks),
			Protocol: Protocol(r.IntN(2)), Health: Health(r.IntN(2)), HostNetwork: r.IntN(5) == 0, Node: fmt.Sprint("n", r.IntN(2))}
		for range r.IntN(3) {
			w.Addresses = append(w.Addresses, pick(r, addresses))
		}
		for range r.IntN(3) {
			if w.Services == nil {
				w.Services = map[string][]Port{}
			}
			w.Services[key()] = []Port{{ServicePort: uint16(r.IntN(3))}}
		}
		d.Workloads = append(d.Workloads, w)
	}
	for range r.IntN(3) {
		v := &Service{Namespace: pick(r, namespaces), Hostname: pick(r, hosts), Canonical: r.IntN(2) == 0, NamespaceOnly: r.IntN(3) == 0}
		v.LoadBalancing.AllowAll = r.IntN(3) == 0
		for range r.IntN(4) {
			v.Addresses = append(v.Addresses, NetworkAddress{pick(r, networks), pick(r, prefixes)})
		}
		d.Services = append(d.Services, v)
	}
	for range r.IntN(3) {
		d.Policies = append(d.Policies, &Policy{Namespace: pick(r, namespaces), Name: fmt.Sprint(r.IntN(4)), Scope: PolicyScope(r.IntN(3))})
	}
	for range r.IntN(3) {
		d.RemovedWorkloads = append(d.RemovedWorkloads, uid())
		d.RemovedServices = append(d.RemovedServices, key())
		d.RemovedPolicies = append(d.RemovedPolicies, pick(r, namespaces)+"/"+fmt.Sprint(r.IntN(4)))
	}
	return d
}

// view is every lookup of a snapshot as text.
func view(workloadAt func(string, netip.Addr) string, serviceAt func(string, netip.Addr, string) string,
	byHost func(string, string) string, endpoints func(string) string, policies func(PolicyScope, string) string, keys string) string {
	var b strings.Builder
	for _, n := range networks {
		for _, a := range addresses {
			fmt.Fprintf(&b, "%s/%v %s\n", n, a, workloadAt(n, a))
			for _, client := range append(namespaces, "other") {
				fmt.Fprintf(&b, "%s/%v from %s %s\n", n, a, client, serviceAt(n, a, client))
			}
		}
	}
	for _, h := range hosts {
		for _, ns := range append(namespaces, "other") {
			fmt.Fprintf(&b, "%s from %s %s, endpoints %s\n", h, ns, byHost(h, ns), endpoints(ns+"/"+h))
		}
	}
	for _, ns := range namespaces {
		fmt.Fprintf(&b, "policies of %s: %s\n", ns, policies(ScopeNamespace, ns))
	}
	fmt.Fprintf(&b, "global: %s\n%s", policies(ScopeGlobal, ""), keys)
	return b.String()
}

func (o *oracle) view() string {
	return view(o.workloadAt, o.serviceAt, func(h, client string) string {
		return o.best(client, func(v *Service) (bool, int) { return v.Hostname == h, 0 })
	}, o.endpoints, o.policiesOf, fmt.Sprint(sorted(o.workloads), sorted(o.services), sorted(o.policies)))
}

func snapshotView(s *Snapshot) string {
	key := func(v *Service) string {
		if v == nil {
			return ""
		}
		return v.Key()
	}
	workloads, services, policies := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for w := range s.AllWorkloads() {
		workloads[w.UID] = true
	}
	for v := range s.AllServices() {
		services[v.Key()] = true
	}
	for p := range s.AllPolicies() {
		policies[p.Key()] = true
	}
	return view(func(n string, a netip.Addr) string {
		if w := s.WorkloadAt(n, a); w != nil {
			return w.UID
		}
		return ""
	}, func(n string, a netip.Addr, client string) string { return key(s.ServiceAt(n, a, client)) },
		func(h, client string) string { return key(s.ServiceByHostname(h, client)) },
		func(k string) string {
			var out []string
			for _, e := range s.Endpoints(k) {
				out = append(out, fmt.Sprint(e.Workload.UID, e.Ports))
			}
			return strings.Join(out, " ")
		},
		func(scope PolicyScope, ns string) string {
			list := s.GlobalPolicies()
			if scope == ScopeNamespace {
				list = s.NamespacePolicies(ns)
			}
			var out []string
			for _, p := range list {
				out = append(out, p.Key())
			}
			return strings.Join(out, " ")
		}, fmt.Sprint(sorted(workloads), sorted(services), sorted(policies)))
}

//ambit:feature model-lookup
func TestSnapshotAgreesWithTheOracle(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		o, store := newOracle(), NewStore()
		past := map[*Snapshot]string{}
		for step := range 60 {
			b := NewBuilder(store.Load())
			for range 1 + r.IntN(3) {
				d := randomDelta(r)
				o.apply(d)
				b.Apply(d)
			}
			s := b.Build()
			want := o.view()
			if got := snapshotView(s); got != want {
				t.Fatalf("seed %d step %d:\n%s\nwant\n%s", seed, step, got, want)
			}
			from := store.Load()
			store.Swap(s)
			if step%10 == 0 {
				past[s] = want
			}
			checkChanges(t, store, from, s)
		}
		for s, want := range past { // nothing that came later changed them
			if snapshotView(s) != want {
				t.Fatalf("seed %d: version %d changed after it was built", seed, s.Version())
			}
			checkChanges(t, store, s, store.Load())
		}
	}
}

// checkChanges compares both fast ways to a difference with a walk over all.
func checkChanges(t *testing.T, store *Store, from, to *Snapshot) {
	t.Helper()
	var want Changes
	want.Workloads = differing(from.workloads.all(), to.workloads.all())
	want.Services = differing(from.services.all(), to.services.all())
	want.Policies = differing(from.policies.all(), to.policies.all())
	if got := Diff(from, to); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("diff %v, want %v", got, want)
	}
	log, ok := store.Changes(from.Mark(), to)
	if !ok {
		t.Fatalf("the log does not reach from %d to %d", from.Version(), to.Version())
	}
	for _, p := range [][2][]string{{log.Workloads, want.Workloads}, {log.Services, want.Services}, {log.Policies, want.Policies}} {
		for _, name := range p[1] {
			if !slices.Contains(p[0], name) { // the log may name more: there and back again
				t.Fatalf("log %v lacks %s", p[0], name)
			}
		}
	}
}

func (t *table[K, V]) all() map[K]V {
	out := map[K]V{}
	for _, b := range t.buckets {
		for k, v := range b {
			out[k] = v
		}
	}
	return out
}

func differing[V any](a, b map[string]*V) []string {
	var out []string
	for k, v := range a {
		if b[k] != v {
			out = append(out, k)
		}
	}
	for k := range b {
		if a[k] == nil {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}
