package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

const events = `{"Action":"run","Package":"github.com/ambitmesh/ambit/a","Test":"TestGood"}
{"Action":"pass","Package":"github.com/ambitmesh/ambit/a","Test":"TestGood","Elapsed":0.1}
{"Action":"output","Package":"github.com/ambitmesh/ambit/a","Test":"TestRoot","Output":"=== RUN   TestRoot\n"}
{"Action":"output","Package":"github.com/ambitmesh/ambit/a","Test":"TestRoot","Output":"    a_test.go:12: needs root: makes namespaces\n"}
{"Action":"output","Package":"github.com/ambitmesh/ambit/a","Test":"TestRoot","Output":"--- SKIP: TestRoot (0.00s)\n"}
{"Action":"skip","Package":"github.com/ambitmesh/ambit/a","Test":"TestRoot"}
{"Action":"pass","Package":"github.com/ambitmesh/ambit/a","Elapsed":0.2}
{"Action":"output","Package":"github.com/ambitmesh/ambit/b","Test":"TestBad","Output":"    b_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"github.com/ambitmesh/ambit/b","Test":"TestBad"}
{"Action":"fail","Package":"github.com/ambitmesh/ambit/b"}
{"ImportPath":"github.com/ambitmesh/ambit/c","Action":"build-output","Output":"c.go:1: syntax error\n"}
{"Action":"fail","Package":"github.com/ambitmesh/ambit/c","FailedBuild":"github.com/ambitmesh/ambit/c"}
{"Action":"skip","Package":"github.com/ambitmesh/ambit/d"}
`

func TestTally(t *testing.T) {
	var shown bytes.Buffer
	var got tally
	if err := got.read(strings.NewReader(events), &shown); err != nil {
		t.Fatal(err)
	}
	if got.packages != 1 || got.passed != 1 {
		t.Errorf("%d packages, %d passed", got.packages, got.passed)
	}
	if f := strings.Join(got.failed, "; "); f != "b TestBad; b; c" {
		t.Errorf("failed: %s", f)
	}
	if len(got.skipped) != 1 || got.skipped[0] != (skip{"a TestRoot", "needs root: makes namespaces"}) {
		t.Errorf("skipped: %v", got.skipped)
	}
	for _, want := range []string{"got 1, want 2", "syntax error"} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("%q was not shown", want)
		}
	}
	if strings.Contains(shown.String(), "needs root") {
		t.Error("output of a skipped test belongs into the summary alone")
	}
}

func TestSummarize(t *testing.T) {
	var b bytes.Buffer
	if !summarize(&b, []result{{layer: "unit"}, {layer: "netns", left: "needs root"}}) {
		t.Error("a layer that was left out is not a failure")
	}
	if !strings.Contains(b.String(), "left out netns: needs root") || strings.Contains(b.String(), "FAILED") {
		t.Errorf("got\n%s", b.String())
	}
	if summarize(io.Discard, []result{{layer: "unit", tally: tally{failed: []string{"x"}}}}) {
		t.Error("a failed test is a failure")
	}
}

func TestChoose(t *testing.T) {
	if all, err := choose(""); err != nil || len(all) != len(layers) {
		t.Errorf("all: %d, %v", len(all), err)
	}
	if two, err := choose("arch,unit"); err != nil || len(two) != 2 || two[0].name != "arch" {
		t.Errorf("two: %v, %v", two, err)
	}
	if _, err := choose("nonsense"); err == nil {
		t.Error("an unknown layer must not run nothing and pass")
	}
}
