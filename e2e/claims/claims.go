// Package claims owns the documents that say what Ambit does and name the tests
// that show it: docs/features.md and the controls of docs/threat-model.md.
package claims

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Claim is one row.
type Claim struct {
	Document string // below the repository
	Section  string
	ID       string // the first cell
	Tests    []Test
	// LeftOut is why a behaviour is not there on purpose; it has no tests then.
	LeftOut string
}

func (c Claim) String() string { return c.Document + ": " + c.ID }

// Test is a test as a document names it: `package.Function/subtest`.
type Test struct{ Package, Function, Sub string }

func (t Test) String() string {
	if t.Sub == "" {
		return t.Package + "." + t.Function
	}
	return t.Package + "." + t.Function + "/" + t.Sub
}

var reference = regexp.MustCompile("`([a-z0-9/-]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)(?:/([^`]+))?`")

// References reads a cell that may hold names of tests and nothing else.
func References(cell string) ([]Test, error) {
	var out []Test
	for _, f := range reference.FindAllStringSubmatch(cell, -1) {
		out = append(out, Test{f[1], f[2], f[3]})
	}
	if rest := strings.TrimSpace(reference.ReplaceAllString(cell, "")); len(out) == 0 || rest != "" {
		return nil, fmt.Errorf("want names of tests, each in backticks, and nothing else: got %q", cell)
	}
	return out, nil
}

const (
	// Features is the table of behaviours.
	Features = "docs/features.md"
	// Threats has a section of controls, and more tables that claim nothing.
	Threats  = "docs/threat-model.md"
	Controls = "Controls"

	nothing = "–" // in place of tests, of a behaviour that is left out on purpose
)

// Read reads both documents of the repository at root.
func Read(root string) ([]Claim, error) {
	features, err1 := readFeatures(root)
	controls, err2 := readControls(root)
	return append(features, controls...), errors.Join(err1, err2)
}

var id = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`)

func readFeatures(root string) ([]Claim, error) {
	b, err := os.ReadFile(filepath.Join(root, Features))
	if err != nil {
		return nil, err
	}
	var out []Claim
	var errs []error
	seen := map[string]bool{}
	for _, section := range Sections(string(b)) {
		for _, row := range Rows(string(b), section) {
			fail := func(format string, args ...any) {
				errs = append(errs, fmt.Errorf("%s: %q: %s", Features, row[0], fmt.Sprintf(format, args...)))
			}
			if len(row) != 4 || slices.Contains(row, "") {
				fail("%d cells, want 4, none of them empty", len(row))
				continue
			}
			if !id.MatchString(row[0]) {
				fail("an id is words in lower case with dashes between")
			}
			if seen[row[0]] {
				fail("two rows have this id")
			}
			seen[row[0]] = true
			c := Claim{Document: Features, Section: section, ID: row[0]}
			var err error
			if row[2] == nothing {
				c.LeftOut = row[3]
				if len(strings.Fields(row[3])) < 3 {
					fail("what is left out on purpose says why in the last cell")
				}
			} else if c.Tests, err = References(row[2]); err != nil {
				fail("%v", err)
			}
			out = append(out, c)
		}
	}
	return out, errors.Join(errs...)
}

func readControls(root string) ([]Claim, error) {
	b, err := os.ReadFile(filepath.Join(root, Threats))
	if err != nil {
		return nil, err
	}
	var out []Claim
	var errs []error
	for _, row := range Rows(string(b), Controls) {
		tests, err := References(row[len(row)-1])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %q: %w", Threats, row[0], err))
		}
		out = append(out, Claim{Document: Threats, Section: Controls, ID: row[0], Tests: tests})
	}
	return out, errors.Join(errs...)
}

// Sections are the headings of the second order.
func Sections(document string) []string {
	var out []string
	for line := range strings.Lines(document) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			out = append(out, strings.TrimSpace(name))
		}
	}
	return out
}

// Rows returns the cells of the table in a section, without its head. A pipe
// inside of a cell is written \|.
func Rows(document, section string) [][]string {
	_, text, _ := strings.Cut(document, "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	var out [][]string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			continue
		}
		const pipe = "\x00"
		line = strings.TrimSuffix(strings.TrimPrefix(strings.ReplaceAll(line, `\|`, pipe), "|"), "|")
		var cells []string
		for cell := range strings.SplitSeq(line, "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), pipe, "|"))
		}
		out = append(out, cells)
	}
	return out[min(2, len(out)):]
}
