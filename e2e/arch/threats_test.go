package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// reference is a test named in a document: package.Function or
// package.Function/subtest.
var reference = regexp.MustCompile("`([a-z0-9/-]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)(?:/([^`]+))?`")

// rows returns the cells of a table in the section of a document, without its
// head.
func rows(t *testing.T, document, section string) [][]string {
	t.Helper()
	_, text, ok := strings.Cut(document, "\n## "+section+"\n")
	if !ok {
		t.Fatalf("no section %s", section)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	var out [][]string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		out = append(out, cells)
	}
	if len(out) < 3 {
		t.Fatalf("section %s has no table", section)
	}
	return out[2:]
}

// TestThreatModelNamesRealTests: a control is claimed only with a test that
// exists, about actors and assets that are described.
func TestThreatModelNamesRealTests(t *testing.T) {
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
	sources := map[string]string{}
	for _, r := range rows(t, document, "Controls") {
		found := reference.FindAllStringSubmatch(r[3], -1)
		if len(found) == 0 || strings.TrimSpace(reference.ReplaceAllString(r[3], "")) != "" {
			t.Errorf("%q: want tests and nothing else, got %q", r[0], r[3])
		}
		for _, f := range found {
			pkg, function, sub := f[1], f[2], f[3]
			if sources[pkg] == "" {
				sources[pkg] = tests(t, filepath.Join(base, pkg))
			}
			if !strings.Contains(sources[pkg], "\nfunc "+function+"(") {
				t.Errorf("%q: no test %s in %s", r[0], function, pkg)
			}
			if sub != "" && !strings.Contains(sources[pkg], `"`+sub+`"`) {
				t.Errorf("%q: no subtest %q in %s", r[0], sub, pkg)
			}
		}
	}
	for _, actor := range actors {
		if !slices.ContainsFunc(all, func(r []string) bool { return slices.Contains(strings.Split(r[1], ", "), actor) }) {
			t.Errorf("nothing is said about actor %q", actor)
		}
	}
}

// tests returns the text of a folder's test files.
func tests(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		out.WriteByte('\n')
	}
	return out.String()
}
