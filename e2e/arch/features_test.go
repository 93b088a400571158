package arch

import (
	"slices"
	"testing"

	"github.com/ambitmesh/ambit/e2e/claims"
)

// TestClaimsNameRealTests: every row of docs/features.md names tests that
// exist and declare its id, and every declared id has a row that names the test.
func TestClaimsNameRealTests(t *testing.T) {
	rows, err := claims.Read(root(t))
	if err != nil {
		t.Error(err)
	}
	sources, err := claims.Sources(root(t))
	if err != nil {
		t.Fatal(err)
	}
	type proof struct{ id, pkg, function string }
	named := map[proof]bool{}
	for _, c := range rows {
		for _, test := range c.Tests {
			source := sources[test.Package]
			if !source.Has(test) {
				t.Errorf("%s: no test %s", c, test)
				continue
			}
			if c.Document != claims.Features {
				continue
			}
			named[proof{c.ID, test.Package, test.Function}] = true
			if !slices.Contains(source.Functions[test.Function].Features, c.ID) {
				t.Errorf("%s: %s.%s does not declare it: its comment wants the line //ambit:feature %s", c, test.Package, test.Function, c.ID)
			}
		}
	}
	for pkg, source := range sources {
		for name, f := range source.Functions {
			for _, id := range f.Features {
				if !named[proof{id, pkg, name}] {
					t.Errorf("%s.%s declares %s, and no row of %s with that id names it", pkg, name, id, claims.Features)
				}
			}
		}
	}
}
