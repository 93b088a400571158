package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// tally is what the events of one `go test -json` add up to.
type tally struct {
	packages, passed int
	failed           []string
	skipped          []skip
	outcomes         outcomes                    // of tests, not of packages
	output           map[string]*strings.Builder // by test, until it ends
}

type skip struct{ test, why string }

type result struct {
	layer string
	left  string // why the layer was left out
	took  time.Duration
	tally
}

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

const module = "github.com/ambitmesh/ambit/"

// read takes in the events and shows one line per package, and everything of
// what failed.
func (t *tally) read(r io.Reader, w io.Writer) error {
	t.output = map[string]*strings.Builder{}
	t.outcomes = outcomes{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			fmt.Fprintf(w, "%s\n", s.Bytes())
			continue
		}
		t.take(e, w)
	}
	return s.Err()
}

func (t *tally) take(e event, w io.Writer) {
	pkg := strings.TrimPrefix(e.Package, module)
	id := pkg + " " + e.Test
	if e.Test != "" && slices.Contains([]string{"pass", "skip", "fail"}, e.Action) {
		t.outcomes.merge(outcomes{pkg: {e.Test: e.Action}})
	}
	switch e.Action {
	case "build-output":
		fmt.Fprint(w, e.Output)
	case "output":
		b := t.output[id]
		if b == nil {
			b = new(strings.Builder)
			t.output[id] = b
		}
		b.WriteString(e.Output)
	case "pass":
		if e.Test != "" {
			t.passed++
		} else {
			t.packages++
			fmt.Fprintf(w, "ok    %-40s %6.1fs\n", pkg, e.Elapsed)
		}
		delete(t.output, id)
	case "skip":
		if e.Test != "" {
			t.skipped = append(t.skipped, skip{id, reason(t.output[id])})
		}
		delete(t.output, id)
	case "fail":
		if b := t.output[id]; b != nil {
			fmt.Fprint(w, b.String())
		}
		if e.Test == "" {
			fmt.Fprintf(w, "FAIL  %-40s %6.1fs\n", pkg, e.Elapsed)
			id = pkg
		}
		t.failed = append(t.failed, id)
		delete(t.output, id)
	}
}

// reason finds what a test said to t.Skip.
func reason(b *strings.Builder) string {
	if b == nil {
		return "no reason given"
	}
	for line := range strings.Lines(b.String()) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		// file_test.go:12: why
		if _, why, ok := strings.Cut(line, ".go:"); ok {
			if _, why, ok = strings.Cut(why, ": "); ok {
				return why
			}
		}
		return line
	}
	return "no reason given"
}

// summarize prints the table and says whether everything that ran passed.
func summarize(w io.Writer, rs []result) bool {
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "layer\tpackages\tpassed\tfailed\tskipped\ttime\t")
	ok := true
	for _, r := range rs {
		if r.left != "" {
			fmt.Fprintf(tw, "%s\t-\t-\t-\t-\tleft out\t\n", r.layer)
			continue
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%d\t%s\t\n", r.layer, r.packages, r.passed, len(r.failed), len(r.skipped), r.took.Round(100*time.Millisecond))
		ok = ok && len(r.failed) == 0
	}
	tw.Flush()
	for _, r := range rs {
		if r.left != "" {
			fmt.Fprintf(w, "left out %s: %s\n", r.layer, r.left)
		}
		for _, s := range r.skipped {
			fmt.Fprintf(w, "skipped  %s: %s: %s\n", r.layer, s.test, s.why)
		}
	}
	for _, r := range rs {
		for _, f := range r.failed {
			fmt.Fprintf(w, "FAILED   %s: %s\n", r.layer, f)
		}
	}
	return ok
}
