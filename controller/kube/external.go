package kube

import (
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
)

// external is what the translator remembers of ServiceEntries and
// WorkloadEntries. It is owned by the goroutine that calls run.
type external struct {
	// became is what a ServiceEntry has become, by its <namespace>/<name>.
	became map[string]became
	// canonical is the name of the entry that is canonical, by host.
	canonical map[string]string
	// naming holds, per service and policy key, the workload entries whose
	// workload names it, and namingInline the service entries whose endpoints
	// do.
	naming, namingInline map[string]names
	// addresses is told of every entry which hosts are to have an address, and
	// whether the entry is ours to write to.
	addresses func(entry string, hosts []string, ours bool)
}

type became struct {
	hosts     []string
	services  []string // keys
	workloads []string // UIDs
	policies  []string // keys
}

func newExternal() external {
	return external{
		became: make(map[string]became), canonical: make(map[string]string),
		naming: make(map[string]names), namingInline: make(map[string]names),
		addresses: func(string, []string, bool) {},
	}
}

// expandPod: of several pods with one address the newest has it, so those with
// an address that this one has or had are looked at again.
func (t *translator) expandPod(v *view, a *affected, k key) {
	a.pods.add(k.namespace, k.name)
	share := func(pods []*corev1.Pod) {
		for _, pod := range pods {
			a.pods.add(pod.Namespace, pod.Name)
		}
	}
	if w := t.store.Load().Workload(t.cfg.Translate.PodUID(k.namespace, k.name)); w != nil {
		for _, addr := range w.Addresses {
			share(v.PodsAt(addr))
		}
	}
	if pod := get[*corev1.Pod](t.caches.pods, k.namespace+"/"+k.name); pod != nil {
		for _, addr := range translate.OwnAddresses(pod) {
			share(v.PodsAt(addr))
		}
	}
}

// expandServiceEntry adds the entry and those that share a host with it: in its
// own namespace one of them owns the host, in the others one is canonical.
func (t *translator) expandServiceEntry(v *view, a *affected, name string) {
	hosts := slices.Clone(t.external.became[name].hosts)
	if se := get[*networkingv1.ServiceEntry](t.caches.serviceEntries, name); se != nil {
		hosts = append(hosts, translate.Hosts(se)...)
	}
	namespace, _, _ := strings.Cut(name, "/")
	t.expandEntry(a, name)
	for _, host := range hosts {
		t.expandHost(v, a, host, namespace)
	}
}

// expandHost adds the entries of namespace with host, and those that were and
// are canonical for it.
func (t *translator) expandHost(v *view, a *affected, host, namespace string) {
	for _, other := range v.ServiceEntriesOf(host, namespace) {
		t.expandEntry(a, other.Namespace+"/"+other.Name)
	}
	if was, ok := t.external.canonical[host]; ok {
		a.external[was] = struct{}{}
	}
	if is := t.cfg.Translate.CanonicalEntry(host, v); is != nil {
		a.external.add(is.Namespace, is.Name)
	}
}

// expandEntry adds the entry, and what its selector picks and picked.
func (t *translator) expandEntry(a *affected, name string) {
	if _, done := a.expanded[name]; done {
		return
	}
	a.expanded[name] = struct{}{}
	a.external[name] = struct{}{}
	for _, service := range t.external.became[name].services {
		t.addNaming(a.pods, service)
		addNamed(a.entries, t.external.naming, service)
	}
	se := get[*networkingv1.ServiceEntry](t.caches.serviceEntries, name)
	if se == nil || len(translate.EntrySelector(se)) == 0 {
		return
	}
	for _, pod := range list[*corev1.Pod](t.caches.pods, cache.NamespaceIndex, se.Namespace) {
		if translate.EntrySelects(se, pod.Namespace, pod.Labels) {
			a.pods.add(pod.Namespace, pod.Name)
		}
	}
	for _, we := range list[*networkingv1.WorkloadEntry](t.caches.workloadEntries, cache.NamespaceIndex, se.Namespace) {
		if translate.EntrySelects(se, we.Namespace, translate.EntryLabels(we)) {
			a.entries.add(we.Namespace, we.Name)
		}
	}
}

// expandServiceExternal adds what a Service that changed means to entries: it
// selects some, and goes before others that have its name.
func (t *translator) expandServiceExternal(v *view, a *affected, k key) {
	addNamed(a.entries, t.external.naming, t.cfg.Translate.ServiceKey(k.namespace, k.name))
	if svc := v.Service(k.namespace, k.name); svc != nil {
		for _, we := range list[*networkingv1.WorkloadEntry](t.caches.workloadEntries, cache.NamespaceIndex, k.namespace) {
			if translate.Selects(svc, we.Namespace, translate.EntryLabels(we)) {
				a.entries.add(we.Namespace, we.Name)
			}
		}
	}
	t.expandHost(v, a, strings.ToLower(t.cfg.Translate.Hostname(k.namespace, k.name)), k.namespace)
}

// expandNamespaceExternal: a namespace's labels say how far its entries are seen
// and whether they count, its annotations how they balance.
func (t *translator) expandNamespaceExternal(v *view, a *affected, namespace string) {
	addAll[*networkingv1.WorkloadEntry](a.entries, t.caches.workloadEntries, cache.NamespaceIndex, namespace)
	for _, se := range list[*networkingv1.ServiceEntry](t.caches.serviceEntries, cache.NamespaceIndex, namespace) {
		t.expandServiceEntry(v, a, se.Namespace+"/"+se.Name)
	}
}

// expandPolicyExternal adds the entries that named a policy, and those under its
// namespace that picks picks now.
func (t *translator) expandPolicyExternal(v *view, a *affected, k key, picks func(labels map[string]string) bool) {
	addNamed(a.entries, t.external.naming, k.namespace+"/"+k.name)
	addNamed(a.external, t.external.namingInline, k.namespace+"/"+k.name)
	if picks == nil {
		return
	}
	under := k.namespace
	if under == t.cfg.Translate.RootNamespace {
		under = ""
	}
	for _, we := range v.WorkloadEntries(under) {
		if picks(translate.EntryLabels(we)) {
			a.entries.add(we.Namespace, we.Name)
		}
	}
	for _, se := range v.ServiceEntries(under) {
		if picks(se.Labels) {
			a.external.add(se.Namespace, se.Name)
		}
	}
}

func addNamed(n names, naming map[string]names, key string) {
	for name := range naming[key] {
		n[name] = struct{}{}
	}
}

func (t *translator) translateEntries(v *view, snap *mesh.Snapshot, all names, d *mesh.Delta) {
	for name := range all {
		namespace, short, _ := strings.Cut(name, "/")
		uid := t.cfg.Translate.EntryUID(namespace, short)
		var w *mesh.Workload
		var err error
		if we := get[*networkingv1.WorkloadEntry](t.caches.workloadEntries, name); we != nil {
			w, err = t.cfg.Translate.WorkloadEntry(we, v)
			t.boundWorkloadEntry(v, we, key{kindWorkloadEntry, namespace, short})
		} else {
			t.unbound(key{kindWorkloadEntry, namespace, short})
		}
		t.report(key{kindWorkloadEntry, namespace, short}, err)
		old := snap.Workload(uid)
		if reflect.DeepEqual(old, w) {
			continue
		}
		rename(t.external.naming, name, mentions(old), mentions(w))
		if w == nil {
			d.RemovedWorkloads = append(d.RemovedWorkloads, uid)
		} else {
			d.Workloads = append(d.Workloads, w)
		}
	}
}

// rename keeps naming true when what name mentions changes.
func rename(naming map[string]names, name string, old, now []string) {
	for _, k := range old {
		if delete(naming[k], name); len(naming[k]) == 0 {
			delete(naming, k)
		}
	}
	for _, k := range now {
		if naming[k] == nil {
			naming[k] = names{}
		}
		naming[k][name] = struct{}{}
	}
}

// translateServices brings the services of Services and ServiceEntries up to
// date together: a key can pass from one to the other. Whatever may have a key
// now is in the batch that takes it from another.
func (t *translator) translateServices(v *view, snap *mesh.Snapshot, services, entries names, d *mesh.Delta) {
	want := make(map[string]*mesh.Service) // nil: nobody has it any more
	for name := range services {
		namespace, short, _ := strings.Cut(name, "/")
		var s *mesh.Service
		var err error
		svc := v.Service(namespace, short)
		if svc != nil {
			s, err = t.cfg.Translate.Service(svc, v)
		}
		t.boundService(v, svc, key{kindService, namespace, short})
		t.report(key{kindService, namespace, short}, err)
		want[t.cfg.Translate.ServiceKey(namespace, short)] = s
	}
	for name := range entries {
		namespace, short, _ := strings.Cut(name, "/")
		var out translate.External
		var err error
		se := get[*networkingv1.ServiceEntry](t.caches.serviceEntries, name)
		if se != nil {
			out, err = t.cfg.Translate.ServiceEntry(se, v)
		}
		t.boundServiceEntry(v, se, key{kindServiceEntry, namespace, short})
		t.report(key{kindServiceEntry, namespace, short}, err)
		for _, k := range t.external.became[name].services {
			if _, ok := want[k]; !ok {
				want[k] = nil
			}
		}
		for _, s := range out.Services {
			want[s.Key()] = s
		}
		t.become(name, se, &out, snap, d)
		if se != nil && t.cfg.Translate.Writes(se, v) {
			t.external.addresses(name, translate.AllocateHosts(se), true)
		} else {
			t.external.addresses(name, nil, false)
		}
	}
	for k, s := range want {
		switch old := snap.Service(k); {
		case reflect.DeepEqual(old, s):
		case s == nil:
			d.RemovedServices = append(d.RemovedServices, k)
		default:
			d.Services = append(d.Services, s)
		}
	}
}

// become records what the entry has become and adds its workloads to d.
func (t *translator) become(name string, se *networkingv1.ServiceEntry, out *translate.External, snap *mesh.Snapshot, d *mesh.Delta) {
	var now became
	old := t.external.became[name]
	if se != nil {
		now.hosts = translate.Hosts(se)
	}
	for _, s := range out.Services {
		now.services = append(now.services, s.Key())
		if s.Canonical {
			t.external.canonical[s.Hostname] = name
		}
	}
	for _, host := range old.hosts {
		still := slices.ContainsFunc(out.Services, func(s *mesh.Service) bool { return s.Hostname == host && s.Canonical })
		if t.external.canonical[host] == name && !still {
			delete(t.external.canonical, host)
		}
	}
	for _, w := range out.Workloads {
		now.workloads = append(now.workloads, w.UID)
		now.policies = w.Policies // the same for all
		if !reflect.DeepEqual(snap.Workload(w.UID), w) {
			d.Workloads = append(d.Workloads, w)
		}
	}
	keep := make(map[string]struct{}, len(now.workloads))
	for _, uid := range now.workloads {
		keep[uid] = struct{}{}
	}
	for _, uid := range old.workloads {
		if _, ok := keep[uid]; !ok {
			d.RemovedWorkloads = append(d.RemovedWorkloads, uid)
		}
	}
	rename(t.external.namingInline, name, old.policies, now.policies)
	if se == nil {
		delete(t.external.became, name)
	} else {
		t.external.became[name] = now
	}
}
