package live

import (
	"fmt"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// TestStrangers: a peer that says to be somebody else each time makes a bounded
// number of metrics.
//
//ambit:feature waypoint-baggage
func TestStrangers(t *testing.T) {
	table := &Table{}
	id := identity.ID{TrustDomain: "td", Namespace: "ns", ServiceAccount: "sa"}
	say := func(i int) *mesh.Workload { return table.Stranger(Metadata{Workload: fmt.Sprint(i)}.Record(id)) }
	if first, again := say(0), say(0); table.Stranger(nil) != nil || first == nil || first != again {
		t.Error("one stranger is not one record")
	}
	parties := map[party]bool{}
	for i := range 2 * maxStrangers {
		w := say(i)
		if w.Identity() != id {
			t.Fatal(w.Identity())
		}
		parties[partyOf(w, id)] = true
	}
	if len(parties) != maxStrangers+1 {
		t.Errorf("%d parties", len(parties))
	}
}
