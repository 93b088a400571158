package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// allocatorManager names the allocator in managedFields. What another manager
// has written to status.addresses is another controller's to change.
const allocatorManager = "ambit-address-allocator"

// allocator gives the hosts of ServiceEntries addresses of their own, in the
// entries' status. What is written there is the only record: every replica
// reads it, and the one that holds the Lease adds to it.
type allocator struct {
	cfg     *Config
	caches  *caches
	metrics *metrics
	queue   *duties[string] // <namespace>/<name>

	mu    sync.Mutex
	hosts map[string][]string // hosts to have addresses, by entry that is ours to write to; guarded by mu

	// Owned by the goroutine that calls run.
	writes  map[string]write        // that the cache may not show yet, by entry
	pending map[netip.Addr]struct{} // addresses in them
	told    map[string]string       // what was last said of an entry
}

// write of an entry's addresses.
type write struct {
	over  string // resource version it replaced
	addrs []netip.Addr
}

func newAllocator(cfg *Config, cs *caches, m *metrics) (*allocator, error) {
	a := &allocator{
		cfg: cfg, caches: cs, metrics: m,
		queue: newDuties(workqueue.NewTypedItemExponentialFailureRateLimiter[string](20*time.Millisecond, time.Minute)),
		hosts: make(map[string][]string),
	}
	return a, cs.serviceEntries.AddIndexers(cache.Indexers{byAllocated: entryAddresses})
}

// byAllocated finds service entries by the single addresses that they have or
// ask for.
const byAllocated = "allocated"

func entryAddresses(obj any) ([]string, error) {
	se, ok := obj.(*networkingv1.ServiceEntry)
	if !ok {
		return nil, nil
	}
	var keys []string
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(keys, a.Unmap().String()) {
			keys = append(keys, a.Unmap().String())
		}
	}
	for _, a := range se.Status.GetAddresses() {
		add(a.GetValue())
	}
	for _, text := range se.Spec.GetAddresses() {
		add(text)
	}
	return keys, nil
}

// want says which hosts of an entry are to have addresses; ours is false for one
// that is gone, or another control plane's. It is called by the translator and
// never blocks.
func (a *allocator) want(entry string, hosts []string, ours bool) {
	a.mu.Lock()
	if ours {
		a.hosts[entry] = hosts
	} else {
		delete(a.hosts, entry)
	}
	a.mu.Unlock()
	a.queue.Add(entry)
}

func (a *allocator) wanted(entry string) (hosts []string, ours bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	hosts, ours = a.hosts[entry]
	return hosts, ours
}

// start makes run end with ctx even while it waits.
func (a *allocator) start(ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() {
		<-ctx.Done()
		a.queue.ShutDown()
	})
}

// run allocates until term ends.
func (a *allocator) run(term context.Context) {
	if len(a.cfg.AllocateFrom) == 0 {
		return
	}
	// Before everything that has an address is known, nothing is given away.
	if awaitSync(term, a.caches.serviceEntries.HasSynced) != nil {
		return
	}
	defer a.queue.take()()
	a.writes, a.pending, a.told = make(map[string]write), make(map[netip.Addr]struct{}), make(map[string]string)
	a.mu.Lock()
	for entry := range a.hosts {
		a.queue.Add(entry)
	}
	a.mu.Unlock()
	stop := context.AfterFunc(term, func() { a.queue.Add("") }) // wakes Get
	defer stop()
	for term.Err() == nil {
		entry, shutdown := a.queue.Get()
		if shutdown {
			return
		}
		a.do(term, entry)
		a.queue.Done(entry)
	}
}

func (a *allocator) do(ctx context.Context, entry string) {
	if entry == "" || ctx.Err() != nil {
		return
	}
	err := a.allocate(ctx, entry)
	if err == nil {
		a.queue.Forget(entry)
		return
	}
	if a.queue.NumRequeues(entry) == 3 { // lost races heal before
		a.cfg.Logger.Warn("cannot write, trying on", "error", err)
	}
	a.queue.AddRateLimited(entry)
}

// allocate brings the addresses in one entry's status to what its hosts want.
func (a *allocator) allocate(ctx context.Context, entry string) error {
	se := get[*networkingv1.ServiceEntry](a.caches.serviceEntries, entry)
	if last, ok := a.writes[entry]; ok {
		if se != nil && se.ResourceVersion == last.over {
			return nil // the cache is behind; it will tell
		}
		delete(a.writes, entry)
		for _, addr := range last.addrs {
			delete(a.pending, addr)
		}
	}
	hosts, ours := a.wanted(entry)
	if se == nil || !ours {
		delete(a.told, entry)
		return nil
	}
	have := se.Status.GetAddresses()
	if others := writtenByOthers(se); len(have) > 0 && others != "" {
		a.tell(entry, hosts, have, others)
		return nil
	}
	want, lacking := a.choose(se, entry, hosts)
	if lacking != "" {
		a.say(entry, lacking)
	}
	if slices.EqualFunc(have, want, sameAddress) {
		return nil
	}
	list := []map[string]string{}
	for _, w := range want {
		list = append(list, map[string]string{"value": w.GetValue(), "host": w.GetHost()})
	}
	// A merge patch replaces the list and nothing else, and the version loses
	// no race with another writer.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": se.ResourceVersion},
		"status":   map[string]any{"addresses": list},
	})
	if err == nil {
		_, err = a.cfg.Istio.NetworkingV1().ServiceEntries(se.Namespace).Patch(ctx, se.Name, types.MergePatchType, patch,
			metav1.PatchOptions{FieldManager: allocatorManager}, "status")
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	a.metrics.wrote("serviceentry_addresses", err)
	if err != nil {
		return fmt.Errorf("addresses of ServiceEntry %s: %w", entry, err)
	}
	done := write{over: se.ResourceVersion}
	for _, w := range want {
		if addr, err := netip.ParseAddr(w.GetValue()); err == nil {
			done.addrs = append(done.addrs, addr)
			a.pending[addr] = struct{}{}
		}
	}
	a.writes[entry] = done
	return nil
}

func sameAddress(a, b *networking.ServiceEntryAddress) bool {
	return a.GetValue() == b.GetValue() && a.GetHost() == b.GetHost()
}

// choose keeps what the hosts have and nobody with more right to it has too, and
// adds what they lack; lacking says why something cannot be added.
func (a *allocator) choose(se *networkingv1.ServiceEntry, entry string, hosts []string) (want []*networking.ServiceEntryAddress, lacking string) {
	for _, host := range hosts {
		for _, from := range a.cfg.AllocateFrom {
			addr := a.kept(se, entry, host, from)
			if !addr.IsValid() {
				addr = a.free(entry, host, from, want)
			}
			if !addr.IsValid() {
				lacking = "no address is left in " + from.String() + " for host " + host
				continue
			}
			want = append(want, &networking.ServiceEntryAddress{Value: addr.String(), Host: host})
		}
	}
	return want, lacking
}

// kept is the address of from that host has and keeps.
func (a *allocator) kept(se *networkingv1.ServiceEntry, entry, host string, from netip.Prefix) netip.Addr {
	for _, x := range se.Status.GetAddresses() {
		addr, err := netip.ParseAddr(x.GetValue())
		if err != nil || !from.Contains(addr.Unmap()) || !strings.EqualFold(x.GetHost(), host) {
			continue
		}
		if addr = addr.Unmap(); a.mayKeep(se, entry, host, addr) {
			return addr
		}
	}
	return netip.Addr{}
}

// mayKeep settles who keeps an address that several have: who names it in its
// spec, who has it from another controller, the oldest.
func (a *allocator) mayKeep(se *networkingv1.ServiceEntry, entry, host string, addr netip.Addr) bool {
	for _, x := range se.Status.GetAddresses() { // of two hosts of one entry the first
		if got, err := netip.ParseAddr(x.GetValue()); err == nil && got.Unmap() == addr {
			if !strings.EqualFold(x.GetHost(), host) {
				return false
			}
			break
		}
	}
	for _, other := range list[*networkingv1.ServiceEntry](a.caches.serviceEntries, byAllocated, addr.String()) {
		name := other.Namespace + "/" + other.Name
		switch {
		case name == entry:
		case len(other.Spec.GetAddresses()) > 0, writtenByOthers(other) != "", translate.Older(other, se) < 0:
			return false
		default:
			a.queue.Add(name)
		}
	}
	return true
}

// free is the first address that host may have and nobody has.
func (a *allocator) free(entry, host string, from netip.Prefix, taken []*networking.ServiceEntryAddress) netip.Addr {
	const patience = 1 << 20
	n := 0
	for addr := range translate.Candidates(from, entry+"/"+host) {
		if n++; n > patience {
			break
		}
		text := addr.String()
		_, pending := a.pending[addr]
		if !pending && len(list[*networkingv1.ServiceEntry](a.caches.serviceEntries, byAllocated, text)) == 0 &&
			!slices.ContainsFunc(taken, func(x *networking.ServiceEntryAddress) bool { return x.GetValue() == text }) {
			return addr
		}
	}
	return netip.Addr{}
}

// tell says once that another controller's addresses leave a host without one.
func (a *allocator) tell(entry string, hosts []string, have []*networking.ServiceEntryAddress, others string) {
	for _, host := range hosts {
		if !slices.ContainsFunc(have, func(x *networking.ServiceEntryAddress) bool { return strings.EqualFold(x.GetHost(), host) }) {
			a.say(entry, "host "+host+" has no address: status.addresses is "+others+"'s, who does not add one")
			return
		}
	}
}

func (a *allocator) say(entry, what string) {
	if a.told[entry] != what {
		a.told[entry] = what
		a.cfg.Logger.Warn("a host of a ServiceEntry has no address", "object", entry, "problem", what)
	}
}

// writtenByOthers is the manager beside ours that has written the addresses of
// se, "" for none.
func writtenByOthers(se *networkingv1.ServiceEntry) string {
	for i := range se.ManagedFields {
		if m := se.ManagedFields[i].Manager; m != allocatorManager {
			return cmp.Or(m, "another controller")
		}
	}
	return ""
}

// addressManagers keeps of an object's managed fields who has written
// status.addresses, and nothing else.
func addressManagers(all []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	var out []metav1.ManagedFieldsEntry
	for i := range all {
		e := &all[i]
		var owns struct {
			Status map[string]json.RawMessage `json:"f:status"`
		}
		// Without its fields the entry has been here before.
		if e.FieldsV1 != nil && json.Unmarshal(e.FieldsV1.GetRawBytes(), &owns) == nil && owns.Status["f:addresses"] == nil {
			continue
		}
		out = append(out, metav1.ManagedFieldsEntry{Manager: e.Manager, Operation: e.Operation})
	}
	return out
}
