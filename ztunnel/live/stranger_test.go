package live

import (
	"fmt"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// TestStrangers: a peer that says to be somebody else each time makes a bounded
// number of metrics, and leaves room for others.
//
//ambit:feature waypoint-baggage
func TestStrangers(t *testing.T) {
	table := &Table{}
	peer := func(i int) identity.ID {
		return identity.ID{TrustDomain: "td", Namespace: "ns", ServiceAccount: fmt.Sprint("sa", i)}
	}
	say := func(id identity.ID, i int) *mesh.Workload {
		w := table.Stranger(Metadata{Workload: fmt.Sprint(i)}.Record(id))
		if w.Identity() != id {
			t.Fatal(w.Identity())
		}
		return w
	}
	if first, again := say(peer(0), 0), say(peer(0), 0); table.Stranger(nil) != nil || first == nil || first != again {
		t.Error("one stranger is not one record")
	}
	parties := func(id identity.ID) int {
		got := map[party]bool{}
		for i := range 2 * maxStrangers {
			got[partyOf(say(id, i), id)] = true
		}
		return len(got)
	}
	if n := parties(peer(0)); n != maxOneStranger+1 {
		t.Errorf("one identity is %d parties", n)
	}
	if w := say(peer(0), 1); w.WorkloadName != "1" {
		t.Errorf("what is kept is forgotten: %v", w)
	}
	if w := say(peer(1), 7); w.WorkloadName != "7" {
		t.Errorf("another identity is kept out: %v", w)
	}
	all := 0
	for i := range 2 * maxStrangers / maxOneStranger {
		for j := range maxOneStranger {
			if say(peer(i), j).WorkloadName != "" {
				all++
			}
		}
	}
	if all != maxStrangers {
		t.Errorf("%d records in all", all)
	}
}
