package mesh

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
)

// Delta is one batch of changes. Removals are applied after everything else,
// as a data plane does with one xDS response.
type Delta struct {
	Workloads        []*Workload
	Services         []*Service
	Policies         []*Policy
	RemovedWorkloads []string  // UIDs
	RemovedServices  []string  // <namespace>/<hostname>
	RemovedPolicies  []string  // <namespace>/<name>
	Settings         *Settings // nil: as they are
}

// Empty reports whether d changes nothing.
func (d *Delta) Empty() bool {
	return len(d.Workloads)+len(d.Services)+len(d.Policies)+
		len(d.RemovedWorkloads)+len(d.RemovedServices)+len(d.RemovedPolicies) == 0 && d.Settings == nil
}

// Builder makes the successor of a snapshot. It is used by one goroutine and
// only once.
type Builder struct {
	base      *Snapshot
	workloads edit[string, *Workload]
	byAddr    edit[addrKey, []*Workload]
	byName    edit[nameKey, []*Workload]
	onNode    edit[addrKey, int]
	hosted    edit[nameKey, []*Workload]
	services  edit[string, *Service]
	byHost    edit[string, []*Service]
	byVIP     edit[vipKey, []*Service]
	prefixes  edit[prefixLen, int]
	policies  edit[string, *Policy]
	inNS      edit[string, []*Policy]
	global    []*Policy
	settings  *Settings
	// moved collects endpoint changes per service so that a batch of n
	// endpoints is merged once, not n times; a nil Workload is a removal.
	moved   map[string]map[string]Endpoint
	touched struct{ workloads, services, policies map[string]struct{} }
}

// NewBuilder starts from base, which stays as it is; nil means empty.
func NewBuilder(base *Snapshot) *Builder {
	if base == nil {
		base = new(Snapshot)
	}
	b := &Builder{
		base:      base,
		workloads: editOf(&base.workloads),
		byAddr:    editOf(&base.byAddr),
		byName:    editOf(&base.byName),
		onNode:    editOf(&base.onNode),
		hosted:    editOf(&base.hosted),
		services:  editOf(&base.services),
		byHost:    editOf(&base.byHost),
		byVIP:     editOf(&base.byVIP),
		prefixes:  editOf(&base.prefixes),
		policies:  editOf(&base.policies),
		inNS:      editOf(&base.inNS),
		global:    base.global,
		settings:  base.settings,
		moved:     make(map[string]map[string]Endpoint),
	}
	b.touched.workloads = make(map[string]struct{})
	b.touched.services = make(map[string]struct{})
	b.touched.policies = make(map[string]struct{})
	return b
}

// Apply adds d to what is being built. Its values are frozen from then on. A
// value equal to the one already there changes nothing, so that re-sent objects
// neither wake clients nor re-check connections.
func (b *Builder) Apply(d Delta) {
	for _, w := range d.Workloads {
		if same(&b.workloads, w.UID, w) {
			continue
		}
		b.dropWorkload(w.UID)
		b.addWorkload(w)
	}
	for _, v := range d.Services {
		if same(&b.services, v.Key(), v) {
			continue
		}
		b.dropService(v.Key())
		b.addService(v)
	}
	for _, p := range d.Policies {
		if same(&b.policies, p.Key(), p) {
			continue
		}
		b.dropPolicy(p.Key())
		b.addPolicy(p)
	}
	if d.Settings != nil {
		b.settings = d.Settings
	}
	for _, uid := range d.RemovedWorkloads {
		b.dropWorkload(uid)
	}
	for _, key := range d.RemovedServices {
		b.dropService(key)
	}
	for _, key := range d.RemovedPolicies {
		b.dropPolicy(key)
	}
}

func same[V any](e *edit[string, *V], key string, v *V) bool {
	old, ok := e.get(key)
	return ok && reflect.DeepEqual(old, v)
}

// Build returns the new snapshot, its version one above the base's.
func (b *Builder) Build() *Snapshot {
	s := &Snapshot{
		version:   b.base.version + 1,
		token:     new(byte),
		parent:    b.base.token,
		workloads: b.workloads.done(),
		byAddr:    b.byAddr.done(),
		byName:    b.byName.done(),
		onNode:    b.onNode.done(),
		hosted:    b.hosted.done(),
		services:  b.services.done(),
		byHost:    b.byHost.done(),
		byVIP:     b.byVIP.done(),
		prefixes:  b.prefixes.done(),
		lengths:   b.base.lengths,
		endpoints: b.buildEndpoints(),
		policies:  b.policies.done(),
		inNS:      b.inNS.done(),
		global:    b.global,
		settings:  b.settings,
	}
	if b.prefixes.shared != nil {
		s.lengths = sortedLengths(&s.prefixes)
	}
	s.touched = Changes{
		Workloads: keysOf(b.touched.workloads),
		Services:  keysOf(b.touched.services),
		Policies:  keysOf(b.touched.policies),
	}
	return s
}

func (b *Builder) addWorkload(w *Workload) {
	b.touched.workloads[w.UID] = struct{}{}
	b.workloads.set(w.UID, w)
	if w.HostNetwork {
		b.countOnNode(w, 1)
	} else {
		for _, a := range w.Addresses {
			insert(&b.byAddr, addrKey{w.Network, a.Unmap()}, w, byRank)
		}
	}
	insert(&b.byName, nameKey{w.Namespace, w.Name}, w, byUID)
	if w.Hostname != "" {
		insert(&b.hosted, nameKey{w.Namespace, w.Hostname}, w, byUID)
	}
	for key, ports := range w.Services {
		b.move(key, w.UID, Endpoint{Workload: w, Ports: ports})
	}
}

func (b *Builder) dropWorkload(uid string) {
	w, ok := b.workloads.get(uid)
	if !ok {
		return
	}
	b.touched.workloads[uid] = struct{}{}
	b.workloads.delete(uid)
	if w.HostNetwork {
		b.countOnNode(w, -1)
	} else {
		for _, a := range w.Addresses {
			remove(&b.byAddr, addrKey{w.Network, a.Unmap()}, w)
		}
	}
	remove(&b.byName, nameKey{w.Namespace, w.Name}, w)
	if w.Hostname != "" {
		remove(&b.hosted, nameKey{w.Namespace, w.Hostname}, w)
	}
	for key := range w.Services {
		b.move(key, uid, Endpoint{})
	}
}

func (b *Builder) countOnNode(w *Workload, by int) {
	for _, a := range w.Addresses {
		k := addrKey{w.Network, a.Unmap()}
		n, _ := b.onNode.get(k)
		if n+by == 0 {
			b.onNode.delete(k)
			continue
		}
		b.onNode.set(k, n+by)
	}
}

func (b *Builder) move(serviceKey, uid string, e Endpoint) {
	m := b.moved[serviceKey]
	if m == nil {
		m = make(map[string]Endpoint)
		b.moved[serviceKey] = m
	}
	m[uid] = e
}

func (b *Builder) addService(v *Service) {
	b.touched.services[v.Key()] = struct{}{}
	b.services.set(v.Key(), v)
	insert(&b.byHost, v.Hostname, v, byServiceKey)
	for _, a := range v.Addresses {
		k := keyOfVIP(a)
		insert(&b.byVIP, k, v, byServiceKey)
		if !k.prefix.IsSingleIP() {
			b.countPrefix(k.prefix, 1)
		}
	}
}

func (b *Builder) dropService(key string) {
	v, ok := b.services.get(key)
	if !ok {
		return
	}
	b.touched.services[key] = struct{}{}
	b.services.delete(key)
	remove(&b.byHost, v.Hostname, v)
	for _, a := range v.Addresses {
		k := keyOfVIP(a)
		remove(&b.byVIP, k, v)
		if !k.prefix.IsSingleIP() {
			b.countPrefix(k.prefix, -1)
		}
	}
}

func (b *Builder) countPrefix(p netip.Prefix, by int) {
	k := prefixLen{bits: p.Bits(), v6: p.Addr().Is6()}
	n, _ := b.prefixes.get(k)
	if n+by == 0 {
		b.prefixes.delete(k)
		return
	}
	b.prefixes.set(k, n+by)
}

func keyOfVIP(a NetworkAddress) vipKey { return vipKey{a.Network, a.Prefix.Masked()} }

func (b *Builder) addPolicy(p *Policy) {
	b.touched.policies[p.Key()] = struct{}{}
	b.policies.set(p.Key(), p)
	switch p.Scope {
	case ScopeGlobal:
		b.global = inserted(b.global, p, byPolicyKey)
	case ScopeNamespace:
		insert(&b.inNS, p.Namespace, p, byPolicyKey)
	}
}

func (b *Builder) dropPolicy(key string) {
	p, ok := b.policies.get(key)
	if !ok {
		return
	}
	b.touched.policies[key] = struct{}{}
	b.policies.delete(key)
	switch p.Scope {
	case ScopeGlobal:
		b.global = removed(b.global, p)
	case ScopeNamespace:
		remove(&b.inNS, p.Namespace, p)
	}
}

// buildEndpoints merges the collected endpoint changes into the sorted lists.
func (b *Builder) buildEndpoints() table[string, *endpointSet] {
	e := editOf(&b.base.endpoints)
	for key, moved := range b.moved {
		var old []Endpoint
		if set, ok := e.get(key); ok {
			old = set.all
		}
		all := mergeEndpoints(old, moved)
		if len(all) == 0 {
			e.delete(key)
			continue
		}
		e.set(key, &endpointSet{all: all, healthy: healthyOf(all)})
	}
	return e.done()
}

func mergeEndpoints(old []Endpoint, moved map[string]Endpoint) []Endpoint {
	added := make([]Endpoint, 0, len(moved))
	for _, m := range moved {
		if m.Workload != nil {
			added = append(added, m)
		}
	}
	slices.SortFunc(added, byEndpointUID)
	all := make([]Endpoint, 0, len(old)+len(added))
	for _, o := range old {
		if _, gone := moved[o.Workload.UID]; gone {
			continue
		}
		for len(added) > 0 && byEndpointUID(added[0], o) < 0 {
			all, added = append(all, added[0]), added[1:]
		}
		all = append(all, o)
	}
	return append(all, added...)
}

func healthyOf(all []Endpoint) []Endpoint {
	sick := func(e Endpoint) bool { return e.Workload.Health == Unhealthy }
	if !slices.ContainsFunc(all, sick) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), sick)
}

// insert adds v to the sorted list under k.
func insert[K comparable, V comparable](e *edit[K, []V], k K, v V, order func(a, b V) int) {
	l, _ := e.get(k)
	e.set(k, inserted(l, v, order))
}

// remove takes v from the list under k.
func remove[K comparable, V comparable](e *edit[K, []V], k K, v V) {
	l, _ := e.get(k)
	if l = removed(l, v); len(l) == 0 {
		e.delete(k)
		return
	}
	e.set(k, l)
}

// inserted returns a copy of the sorted list with v in its place, once.
func inserted[V comparable](list []V, v V, order func(a, b V) int) []V {
	if slices.Contains(list, v) {
		return list
	}
	i, _ := slices.BinarySearchFunc(list, v, order)
	out := make([]V, 0, len(list)+1)
	out = append(out, list[:i]...)
	out = append(out, v)
	return append(out, list[i:]...)
}

// removed returns a copy of the list without v.
func removed[V comparable](list []V, v V) []V {
	i := slices.Index(list, v)
	if i < 0 {
		return list
	}
	out := make([]V, 0, len(list)-1)
	out = append(out, list[:i]...)
	return append(out, list[i+1:]...)
}

func byRank(a, b *Workload) int {
	return cmp.Or(cmp.Compare(addrRank(b), addrRank(a)), cmp.Compare(a.UID, b.UID))
}

func byUID(a, b *Workload) int        { return cmp.Compare(a.UID, b.UID) }
func byServiceKey(a, b *Service) int  { return cmp.Compare(a.Key(), b.Key()) }
func byPolicyKey(a, b *Policy) int    { return cmp.Compare(a.Key(), b.Key()) }
func byEndpointUID(a, b Endpoint) int { return cmp.Compare(a.Workload.UID, b.Workload.UID) }

func sortedLengths(t *table[prefixLen, int]) []prefixLen {
	var out []prefixLen
	for _, b := range t.buckets {
		for l := range b {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b prefixLen) int {
		if a.v6 != b.v6 {
			if a.v6 {
				return 1
			}
			return -1
		}
		return b.bits - a.bits
	})
	return out
}

func keysOf(m map[string]struct{}) []string {
	if len(m) == 0 {
		return nil
	}
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
