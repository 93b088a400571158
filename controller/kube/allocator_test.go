package kube

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// allocating is an allocator over caches that no watch fills.
func allocating(t *testing.T, from ...string) (*translator, *allocator) {
	t.Helper()
	tr := newBench(t)
	for _, f := range from {
		tr.cfg.AllocateFrom = append(tr.cfg.AllocateFrom, netip.MustParsePrefix(f))
	}
	a, err := newAllocator(tr.cfg, tr.caches, tr.metrics)
	if err != nil {
		t.Fatal(err)
	}
	return tr, a
}

func entry(name string, age int, hosts ...string) *networkingv1.ServiceEntry {
	return &networkingv1.ServiceEntry{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(time.Unix(int64(age), 0))},
		Spec:       networking.ServiceEntry{Hosts: hosts, Resolution: networking.ServiceEntry_DNS},
	}
}

// settle does what the allocator does with every entry until nothing changes.
func settle(t *testing.T, tr *translator, a *allocator) map[string]string {
	t.Helper()
	for range 10 {
		changed := false
		for _, se := range tr.set().ServiceEntryList {
			name := se.Namespace + "/" + se.Name
			if len(se.Status.GetAddresses()) > 0 && writtenByOthers(se) != "" {
				continue
			}
			want, _ := a.choose(se, name, translate.AllocateHosts(se))
			if slices.EqualFunc(se.Status.GetAddresses(), want, sameAddress) {
				continue
			}
			changed = true
			se = se.DeepCopy()
			se.Status.Addresses = want
			tr.put(kindServiceEntry, se)
		}
		if !changed {
			return addresses(t, tr)
		}
	}
	t.Fatal("never settles")
	return nil
}

// addresses is what each host has; no address is there twice.
func addresses(t *testing.T, tr *translator) map[string]string {
	t.Helper()
	by, owner := map[string]string{}, map[string]string{}
	for _, se := range tr.set().ServiceEntryList {
		for _, a := range se.Status.GetAddresses() {
			host := se.Name + " " + a.GetHost()
			if other := owner[a.GetValue()]; other != "" {
				t.Errorf("%s is %s's and %s's", a.GetValue(), host, other)
			}
			owner[a.GetValue()] = host
			by[host] += a.GetValue() + " "
		}
	}
	return by
}

// An address stays with its host over restarts, does not depend on the order in
// which entries are seen, and is nobody else's, however full the range is.
//
//ambit:feature workload-allocate-stable
func TestAllocateStable(t *testing.T) {
	const from = "240.240.0.0/27" // 30 addresses for up to 24 hosts
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		tr, a := allocating(t, from, "2001:2::/48")
		for i := range 12 {
			tr.put(kindServiceEntry, entry(fmt.Sprint("e", i), rnd.IntN(3), fmt.Sprintf("h%d.test", i), fmt.Sprintf("x%d.test", i)))
		}
		first := settle(t, tr, a)
		if len(first) != 24 {
			t.Fatalf("seed %d: %d hosts have addresses: %v", seed, len(first), first)
		}
		for host, list := range first {
			if strings.Count(list, ":") == 0 || !strings.Contains(list, "240.240.") {
				t.Errorf("%s has %q, want one of each family", host, list)
			}
		}
		// Another replica, with a cache of its own.
		again, b := allocating(t, from, "2001:2::/48")
		for _, se := range tr.set().ServiceEntryList {
			again.put(kindServiceEntry, se)
		}
		if now := settle(t, again, b); fmt.Sprint(now) != fmt.Sprint(first) {
			t.Errorf("seed %d: after a change of leader\n %v\nwas\n %v", seed, now, first)
		}
		// Some go, others come: whoever stays keeps what it had.
		for i := range 4 {
			again.del(kindServiceEntry, entry(fmt.Sprint("e", i), 0))
			again.put(kindServiceEntry, entry(fmt.Sprint("n", i), 9, fmt.Sprintf("n%d.test", i)))
		}
		now := settle(t, again, b)
		for host, was := range first {
			if is, ok := now[host]; ok && is != was {
				t.Errorf("seed %d: %s had %s and has %s", seed, host, was, is)
			}
		}
	}
}

// An entry that is made again gets the addresses it had.
func TestAllocateAgain(t *testing.T) {
	tr, a := allocating(t, "240.240.0.0/16", "2001:2::/48")
	tr.put(kindServiceEntry, entry("e", 1, "h.test"))
	first := settle(t, tr, a)
	tr.del(kindServiceEntry, entry("e", 1))
	tr.put(kindServiceEntry, entry("e", 2, "h.test"))
	if now := settle(t, tr, a); fmt.Sprint(now) != fmt.Sprint(first) {
		t.Errorf("%v, was %v", now, first)
	}
}

//ambit:feature workload-allocate-conflict
func TestAllocateConflicts(t *testing.T) {
	with := func(se *networkingv1.ServiceEntry, manager string, pairs ...string) *networkingv1.ServiceEntry {
		for i := 0; i < len(pairs); i += 2 {
			se.Status.Addresses = append(se.Status.Addresses, &networking.ServiceEntryAddress{Value: pairs[i], Host: pairs[i+1]})
		}
		if manager != "" {
			se.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: manager}}
		}
		return se
	}
	const one = "240.240.0.9"
	static := entry("named", 9, "named.test")
	static.Spec.Addresses = []string{one}
	for _, c := range []struct {
		name    string
		entries []*networkingv1.ServiceEntry
		keeps   string // who has the address in the end, of those that may have it
	}{
		{"the older of two", []*networkingv1.ServiceEntry{
			with(entry("young", 2, "y.test"), allocatorManager, one, "y.test"), with(entry("old", 1, "o.test"), allocatorManager, one, "o.test")}, "old o.test"},
		{"the first of two hosts", []*networkingv1.ServiceEntry{
			with(entry("e", 1, "a.test", "b.test"), allocatorManager, one, "a.test", one, "b.test")}, "e a.test"},
		{"another controller's, though younger", []*networkingv1.ServiceEntry{
			with(entry("young", 2, "y.test"), "pilot-discovery", one, "y.test"), with(entry("old", 1, "o.test"), allocatorManager, one, "o.test")}, "young y.test"},
		{"one that an entry names itself", []*networkingv1.ServiceEntry{
			static, with(entry("old", 1, "o.test"), allocatorManager, one, "o.test")}, ""},
		{"not of our range", []*networkingv1.ServiceEntry{with(entry("e", 1, "h.test"), allocatorManager, "192.0.2.1", "h.test")}, ""},
		{"of a host that has gone", []*networkingv1.ServiceEntry{with(entry("e", 1, "h.test"), allocatorManager, one, "gone.test")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, a := allocating(t, "240.240.0.0/24")
			for _, se := range c.entries {
				tr.put(kindServiceEntry, se)
			}
			now := settle(t, tr, a)
			for _, se := range c.entries {
				for _, h := range translate.AllocateHosts(se) {
					host := se.Name + " " + h
					switch has := now[host]; {
					case has == "":
						t.Errorf("%s has none", host)
					case (has == one+" ") != (host == c.keeps):
						t.Errorf("%s has %s, want %s to have %s", host, has, c.keeps, one)
					}
				}
			}
		})
	}
}

// A full range costs the hosts that come last their address and nobody else's.
//
//ambit:feature workload-allocate-conflict
func TestAllocateFull(t *testing.T) {
	tr, a := allocating(t, "240.240.0.0/28")
	for i := range 20 {
		tr.put(kindServiceEntry, entry(fmt.Sprint("e", i), 1, fmt.Sprintf("h%d.test", i)))
	}
	if now := settle(t, tr, a); len(now) != 14 {
		t.Errorf("%d hosts have addresses, want all 14 of the range in use: %v", len(now), now)
	}
	se := tr.set().ServiceEntryList
	i := slices.IndexFunc(se, func(se *networkingv1.ServiceEntry) bool { return len(se.Status.GetAddresses()) == 0 })
	if _, lacking := a.choose(se[i], "ns/"+se[i].Name, se[i].Spec.Hosts); lacking == "" {
		t.Error("nothing says that the range is full")
	}
}

// Who wrote status.addresses survives the trimming of the caches, twice over;
// who wrote anything else does not.
func TestAddressManagers(t *testing.T) {
	field := func(manager, raw string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, Subresource: "status", FieldsV1: &metav1.FieldsV1{Raw: []byte(raw)}}
	}
	se := entry("e", 1, "h.test")
	se.ManagedFields = []metav1.ManagedFieldsEntry{
		field("kubectl", `{"f:spec":{"f:addresses":{},"f:hosts":{}}}`),
		field("ambit-controller", `{"f:status":{"f:conditions":{}}}`),
		field("pilot-discovery", `{"f:status":{".":{},"f:addresses":{}}}`),
	}
	for range 2 {
		if _, err := trim(se); err != nil {
			t.Fatal(err)
		}
		if got := writtenByOthers(se); got != "pilot-discovery" || len(se.ManagedFields) != 1 {
			t.Errorf("%q of %v", got, se.ManagedFields)
		}
	}
	se.ManagedFields = []metav1.ManagedFieldsEntry{field(allocatorManager, `{"f:status":{"f:addresses":{}}}`)}
	if _, err := trim(se); err != nil || writtenByOthers(se) != "" {
		t.Errorf("%q, %v", writtenByOthers(se), err)
	}
}
