package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/ambitmesh/ambit/e2e/claims"
)

// outcomes are how tests ended, by package and full name as go test prints it.
type outcomes map[string]map[string]string

// merge takes in the outcomes of one layer. A test that runs in two layers, once
// with the race detector, has failed if it failed in one of them, and is shown
// by the one that could run it.
func (o outcomes) merge(more outcomes) {
	rank := []string{"", "skip", "pass", "fail"}
	for pkg, tests := range more {
		if o[pkg] == nil {
			o[pkg] = map[string]string{}
		}
		for name, action := range tests {
			if slices.Index(rank, action) > slices.Index(rank, o[pkg][name]) {
				o[pkg][name] = action
			}
		}
	}
}

// why says what is missing for t to show something, or "".
func (o outcomes) why(t claims.Test) string {
	if t.Sub == "" {
		return o.whole(t.Package, t.Function)
	}
	// A document leaves out the groups between function and subtest.
	ending := "/" + printed(t.Sub)
	found := ""
	for name := range o[t.Package] {
		if strings.HasPrefix(name, t.Function+"/") && strings.HasSuffix(name, ending) {
			if found = o.whole(t.Package, name); found != "" {
				return found
			}
			found = name
		}
	}
	if found == "" {
		return "did not run"
	}
	return ""
}

// whole is why for a full name. A skipped subtest leaves its parent unproven: a
// row that means less than all of it names the subtests.
func (o outcomes) whole(pkg, name string) string {
	switch o[pkg][name] {
	case "":
		return "did not run"
	case "fail":
		return "failed"
	case "skip":
		return "was skipped"
	}
	for _, other := range slices.Sorted(maps.Keys(o[pkg])) {
		if rest, ok := strings.CutPrefix(other, name+"/"); ok && o[pkg][other] == "skip" {
			return "skipped its " + rest
		}
	}
	return ""
}

// printed is how go test prints the name of a subtest.
func printed(name string) string {
	var b strings.Builder
	for _, r := range name {
		switch {
		case unicode.IsSpace(r):
			b.WriteByte('_')
		case !strconv.IsPrint(r):
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// gap is a test that does not show what a row claims.
type gap struct {
	row  claims.Claim
	test claims.Test
	why  string
}

func gaps(rows []claims.Claim, o outcomes) []gap {
	var out []gap
	for _, c := range rows {
		for _, t := range c.Tests {
			if why := o.why(t); why != "" {
				out = append(out, gap{c, t, why})
			}
		}
	}
	return out
}

// brief is a line for each section with gaps: of a part of the layers most rows
// are unproven, and nobody is to blame.
func brief(w io.Writer, missing []gap) {
	for _, section := range sections(missing) {
		var ids []string
		for _, g := range missing {
			if g.row.Section == section && !slices.Contains(ids, g.row.ID) {
				ids = append(ids, g.row.ID)
			}
		}
		list := strings.Join(ids, ", ")
		if section == claims.Controls {
			list = fmt.Sprintf("%d rows of %s", len(ids), claims.Threats) // their ids are sentences
		}
		fmt.Fprintf(w, "unproven %s: %s\n", section, list)
	}
}

func sections(missing []gap) []string {
	var out []string
	for _, g := range missing {
		if !slices.Contains(out, g.row.Section) {
			out = append(out, g.row.Section)
		}
	}
	return out
}

// prove prints what the run leaves unproven and says whether that is a failure:
// only of a run of everything. A machine that cannot run a layer is told which
// rows it says nothing about; CI has no such excuse.
func prove(w io.Writer, rows []claims.Claim, rs []result, chosen, ci bool) bool {
	o := outcomes{}
	var left []string
	for _, r := range rs {
		o.merge(r.outcomes)
		if r.left != "" {
			left = append(left, r.layer)
		}
	}
	missing := gaps(rows, o)
	ok := true
	switch {
	case ci && !chosen && len(left) > 0:
		fmt.Fprintf(w, "FAILED   left out in CI: %s\n", strings.Join(left, ", "))
		ok = false
	case chosen || len(left) > 0:
		brief(w, missing)
		return true
	}
	for _, g := range missing {
		fmt.Fprintf(w, "UNPROVEN %s: %s %s\n", g.row, g.test, g.why)
		ok = false
	}
	if ok {
		n := 0 // that claim nothing
		for _, c := range rows {
			if c.LeftOut != "" {
				n++
			}
		}
		fmt.Fprintf(w, "proven   %d rows of %s and %s; %d more say what is left out on purpose\n", len(rows)-n, claims.Features, claims.Threats, n)
	}
	return ok
}
