package main

import (
	"bytes"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/e2e/claims"
)

func row(id string, tests ...claims.Test) claims.Claim {
	return claims.Claim{Document: claims.Features, Section: "Traffic", ID: id, Tests: tests}
}

var ran = outcomes{
	"a": {"TestGood": "pass", "TestGood/one": "pass", "TestRoot": "skip", "TestBad": "fail",
		"TestSome": "pass", "TestSome/vlan": "skip", "TestSome/veth": "pass",
		"TestLab": "pass", "TestLab/mesh": "pass", "TestLab/mesh/a_pod's_first_byte": "pass", "TestLab/mesh/later": "skip",
		"TestLab/é\\x00": "pass"},
}

func TestUnproven(t *testing.T) {
	for _, c := range []struct {
		test claims.Test
		want string
	}{
		{claims.Test{Package: "a", Function: "TestGood"}, ""},
		{claims.Test{Package: "a", Function: "TestGood", Sub: "one"}, ""},
		{claims.Test{Package: "a", Function: "TestGood", Sub: "two"}, "did not run"},
		{claims.Test{Package: "a", Function: "TestGo"}, "did not run"},
		{claims.Test{Package: "b", Function: "TestGood"}, "did not run"},
		{claims.Test{Package: "a", Function: "TestRoot"}, "was skipped"},
		{claims.Test{Package: "a", Function: "TestBad"}, "failed"},
		{claims.Test{Package: "a", Function: "TestSome"}, "skipped its vlan"},
		{claims.Test{Package: "a", Function: "TestSome", Sub: "veth"}, ""},
		{claims.Test{Package: "a", Function: "TestSome", Sub: "vlan"}, "was skipped"},
		{claims.Test{Package: "a", Function: "TestLab", Sub: "a pod's first byte"}, ""},
		{claims.Test{Package: "a", Function: "TestLab", Sub: "mesh/a pod's first byte"}, ""},
		{claims.Test{Package: "a", Function: "TestLab", Sub: "pod's first byte"}, "did not run"},
		{claims.Test{Package: "a", Function: "TestLab", Sub: "mesh"}, "skipped its later"},
		{claims.Test{Package: "a", Function: "TestLab", Sub: "é\x00"}, ""},
	} {
		if got := ran.why(c.test); got != c.want {
			t.Errorf("%s: %q, want %q", c.test, got, c.want)
		}
	}
}

// TestPrinted asks the testing package itself.
func TestPrinted(t *testing.T) {
	for _, name := range []string{"plain", "a pod's first byte", "tab\tand\u00a0more", "é→\x01"} {
		t.Run(name, func(t *testing.T) {
			if want := "TestPrinted/" + printed(name); t.Name() != want {
				t.Errorf("it prints %q, we expect %q", t.Name(), want)
			}
		})
	}
}

func TestMergeKeepsTheWorstAndTheMost(t *testing.T) {
	o := outcomes{}
	for _, more := range []outcomes{
		{"a": {"skipped once": "skip", "failed once": "fail", "skipped": "skip"}},
		{"a": {"skipped once": "pass", "failed once": "pass", "skipped": "skip"}},
	} {
		o.merge(more)
	}
	for name, want := range map[string]string{"skipped once": "pass", "failed once": "fail", "skipped": "skip"} {
		if got := o["a"][name]; got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestProve(t *testing.T) {
	good := row("traffic-good", claims.Test{Package: "a", Function: "TestGood"})
	root := row("traffic-root", claims.Test{Package: "a", Function: "TestRoot"})
	all := []result{{layer: "unit", tally: tally{outcomes: ran}}}
	part := append([]result{{layer: "netns", left: "needs root"}}, all...)
	for _, c := range []struct {
		name       string
		rows       []claims.Claim
		rs         []result
		chosen, ci bool
		ok         bool
		says       string
	}{
		{"all proven", []claims.Claim{good}, all, false, false, true, "proven   1 rows"},
		{"one is left out on purpose", []claims.Claim{good, {Document: claims.Features, ID: "traffic-pigeons", LeftOut: "they do not find home"}}, all, false, true, true, "proven   1 rows of docs/features.md and docs/threat-model.md; 1 more say"},
		{"one was skipped", []claims.Claim{good, root}, all, false, false, false, "UNPROVEN docs/features.md: traffic-root: a.TestRoot was skipped"},
		{"one was skipped, in CI", []claims.Claim{good, root}, all, false, true, false, "UNPROVEN docs/features.md: traffic-root: a.TestRoot was skipped"},
		{"a layer could not run", []claims.Claim{good, root}, part, false, false, true, "unproven Traffic: traffic-root\n"},
		{"a layer could not run, in CI", []claims.Claim{good}, part, false, true, false, "left out in CI: netns"},
		{"some layers were chosen", []claims.Claim{good, root}, all, true, true, true, "unproven Traffic: traffic-root\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if ok := prove(&b, c.rows, c.rs, c.chosen, c.ci); ok != c.ok {
				t.Errorf("got %t", ok)
			}
			if !strings.Contains(b.String(), c.says) {
				t.Errorf("no %q in\n%s", c.says, b.String())
			}
		})
	}
}

// runs says whether the layer's command line reaches a test.
func (l layer) runs(t claims.Test) bool {
	only := regexp.MustCompile("")
	for _, a := range l.args {
		if run, ok := strings.CutPrefix(a, "-run="); ok {
			only = regexp.MustCompile(run)
		}
	}
	return slices.ContainsFunc(l.args, func(a string) bool {
		if !strings.HasPrefix(a, ".") {
			return false
		}
		pattern, below := strings.CutSuffix(path.Join(l.dir, a), "/...")
		return (t.Package == pattern || below && strings.HasPrefix(t.Package, pattern+"/")) && only.MatchString(t.Function)
	})
}

// TestEveryClaimHasALayer: a test that no layer runs would show only at the end
// of a full run.
func TestEveryClaimHasALayer(t *testing.T) {
	rows, err := claims.Read("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range rows {
		for _, test := range c.Tests {
			if !slices.ContainsFunc(layers, func(l layer) bool { return l.runs(test) }) {
				t.Errorf("%s: no layer runs %s", c, test)
			}
		}
	}
	for _, not := range []claims.Test{{Package: "e2e/kubelab/cmd/kube", Function: "TestX"}, {Package: "e2e/nothing", Function: "TestX"}} {
		if i := slices.IndexFunc(layers, func(l layer) bool { return l.runs(not) }); i >= 0 {
			t.Errorf("layer %s is said to run %s", layers[i].name, not)
		}
	}
}
