package arch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/e2e/claims"
)

// rows returns the cells of a table that must be there.
func rows(t *testing.T, document, section string) [][]string {
	t.Helper()
	out := claims.Rows(document, section)
	if len(out) == 0 {
		t.Fatalf("section %s has no table", section)
	}
	return out
}

// TestThreatModelIsWhole: every row is about actors and assets that are
// described, and nothing is left out of what is described. That the tests of
// the controls exist is TestClaimsNameRealTests' part.
//
//ambit:feature security-controls
func TestThreatModelIsWhole(t *testing.T) {
	base := root(t)
	b, err := os.ReadFile(filepath.Join(base, "docs/threat-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	document := string(b)
	known := func(section string) (names []string) {
		for _, r := range rows(t, document, section) {
			names = append(names, r[0])
		}
		return names
	}
	actors, assets := known("Actors"), known("Assets")
	all := append(rows(t, document, "Controls"), rows(t, document, "Open")...)
	for _, r := range all {
		if len(r) != 4 {
			t.Errorf("%q: %d cells, want 4", r[0], len(r))
			continue
		}
		for actor := range strings.SplitSeq(r[1], ", ") {
			if actor != "–" && !slices.Contains(actors, actor) {
				t.Errorf("%q: no actor %q", r[0], actor)
			}
		}
		for asset := range strings.SplitSeq(r[2], ", ") {
			if !slices.Contains(assets, asset) {
				t.Errorf("%q: no asset %q", r[0], asset)
			}
		}
	}
	for _, actor := range actors {
		if !slices.ContainsFunc(all, func(r []string) bool { return slices.Contains(strings.Split(r[1], ", "), actor) }) {
			t.Errorf("nothing is said about actor %q", actor)
		}
	}
}
