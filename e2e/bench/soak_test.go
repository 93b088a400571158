package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/e2e/bench/trend"
)

// TestSoak runs two rounds: everything is made and ends as it should, and is
// counted. Whether it grows takes longer to say: make soak.
//
//ambit:feature soak-load soak-nothing-left
func TestSoak(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and loads eBPF programs: needs root")
	}
	if testing.Short() {
		t.Skip("builds and runs everything once: not in short mode")
	}
	rep, err := runSoak(t.Context(), 0, 2, "", false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range rep.wrong() {
		t.Error(w)
	}
	kinds := []string{kept, cameAndWent, changed}
	for _, w := range ways {
		kinds = append(kinds, w.name)
	}
	for _, k := range kinds {
		if rep.Counts[k].OK == 0 {
			t.Errorf("%s: none", k)
		}
	}
	for _, owner := range []string{"ztunnel-node-a", "ztunnel-node-b", ours} {
		for _, what := range []string{"goroutines", "descriptors", "sockets", "network namespaces", "live heap, KB", "RSS, KB"} {
			i := slices.IndexFunc(rep.Series, func(s *series) bool { return s.Owner == owner && s.What == what })
			if i < 0 || len(rep.Series[i].Points) < 2 || rep.Series[i].Points[0].Value <= 0 || rep.Series[i].Gain <= 0 {
				t.Errorf("no samples to judge of %s of %s", what, owner)
			}
		}
	}
	if err := rep.write(t.TempDir() + "/soak.json"); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", rep.table())
}

// TestSoakFails: each thing that is wrong is said.
//
//ambit:feature soak-detector
func TestSoakFails(t *testing.T) {
	grows := &series{Owner: "ztunnel-node-a", What: "goroutines", Gain: gainCount}
	rests := &series{Owner: "ztunnel-node-b", What: "goroutines", Gain: gainCount}
	shown := &series{Owner: "kernel", What: "eBPF maps"}
	for i := range soakRounds {
		at := time.Duration(i) * 5 * time.Second
		grows.Points = append(grows.Points, trend.Point{At: at, Value: float64(50 + i)})
		rests.Points = append(rests.Points, trend.Point{At: at, Value: 50})
		shown.Points = append(shown.Points, trend.Point{At: at, Value: float64(50 + i)})
	}
	s := samples{all: []*series{grows, rests, shown}}
	rep := &soakReport{Counts: map[string]counted{"short": {OK: 9}, "pooled": {OK: 9, Failed: 1, First: "reset"}, "none": {}},
		Series: s.judge(5 * time.Minute), Left: []string{"eBPF pins of node-a: 17"}}
	got := strings.Join(rep.wrong(), "\n")
	for _, want := range []string{"pooled: 1 of 10 failed, first: reset", "none: none was made", "goroutines of ztunnel-node-a grow", "eBPF pins of node-a"} {
		if !strings.Contains(got, want) {
			t.Errorf("nothing is said of %q:\n%s", want, got)
		}
	}
	for _, not := range []string{"short", "node-b", "kernel"} {
		if strings.Contains(got, not) {
			t.Errorf("%q is blamed:\n%s", not, got)
		}
	}
	if l := rep.unjudged(); len(l) > 0 {
		t.Errorf("not judged: %s", l)
	}
	if l := (&soakReport{Series: []*series{{Owner: "a", What: "b", Gain: 1}, shown}}).unjudged(); len(l) != 1 {
		t.Errorf("of one series without samples: %q", l)
	}
	if l := s.leaking(rep.Series); !slices.Equal(l, []string{"ztunnel-node-a"}) {
		t.Errorf("profiles of %v", l)
	}
	if !strings.Contains(rep.table(), "GROWS") {
		t.Error("the table does not show it")
	}
}

func TestCounted(t *testing.T) {
	var c counted
	for _, err := range []error{nil, errors.New("one"), nil, errors.New("two")} {
		c.add(err)
	}
	c.merge(counted{OK: 1, Failed: 1, First: "three"})
	if c != (counted{OK: 3, Failed: 3, First: "one"}) {
		t.Errorf("%+v", c)
	}
	var d counted
	d.merge(c)
	if d != c {
		t.Errorf("%+v", d)
	}
}
