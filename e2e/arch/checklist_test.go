package arch

import (
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/e2e/claims"
)

// An item is one line of a checklist of what Istio's ambient mode does, or is
// tested for. It is answered by rows of docs/features.md, which may say that
// something is left out on purpose, or it belongs to a part that comes later.
type item struct {
	name  string
	ids   string // of rows, separated by spaces
	later stage
}

// stage is a part of the mesh that is not there yet.
type stage string

const (
	waypoint     stage = "the waypoint"
	ingress      stage = "gateways: ingress and egress of their own"
	multicluster stage = "several clusters in one mesh"
)

// checklist is a section of one of the lists.
type checklist struct {
	name  string
	items []item
}

// TestChecklists: every item is answered, and by rows that exist.
//
//ambit:feature config-checklists
func TestChecklists(t *testing.T) {
	rows, err := claims.Read(root(t))
	if err != nil {
		t.Error(err)
	}
	for _, l := range slices.Concat(ztunnelChecklists, ambientChecklists) {
		seen := map[string]bool{}
		for _, i := range l.items {
			if seen[i.name] {
				t.Errorf("%s: %s: twice", l.name, i.name)
			}
			seen[i.name] = true
			ids := strings.Fields(i.ids)
			switch i.later {
			case "":
				if len(ids) == 0 {
					t.Errorf("%s: %s: no row, and no part that it belongs to", l.name, i.name)
				}
			case waypoint, ingress, multicluster:
			default:
				t.Errorf("%s: %s: no such part: %q", l.name, i.name, i.later)
			}
			for _, id := range ids {
				if !slices.ContainsFunc(rows, func(c claims.Claim) bool { return c.Document == claims.Features && c.ID == id }) {
					t.Errorf("%s: %s: no row %s in %s", l.name, i.name, id, claims.Features)
				}
			}
		}
	}
}
