package main

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"
)

// The bench's children are this very program.
func TestMain(m *testing.M) {
	if name := os.Getenv(roleEnv); name != "" {
		if err := role(name); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// One tiny round: every row must yield a figure. Whether it is a good one is
// for a quiet machine to say.
//
//ambit:feature bench-rows bench-other
func TestEveryRowYieldsAFigure(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and loads eBPF programs: needs root")
	}
	if testing.Short() {
		t.Skip("builds and runs everything once: not in short mode")
	}
	began := time.Now()
	rep, err := measure(t.Context(), smoke, regexp.MustCompile(""), "", rival{env: []string{"HTTP2_STREAM_WINDOW_SIZE=1048576"}}, func(group string) {
		t.Logf("%5.1fs %s", time.Since(began).Seconds(), group)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rep.Rows {
		for _, m := range r.Metrics {
			s, ok := m.Values[ambit]
			if !ok {
				s, ok = m.Values["here"]
			}
			if !ok || math.IsNaN(s.Median) {
				t.Errorf("%s: no figure for %s", r.What, m.Name)
			}
			if m.Under != "" && m.Under != iptables && m.Under != peace && m.Other == nil {
				t.Errorf("%s: %s is not compared with the other ztunnel", r.What, m.Name)
			}
		}
	}
	if err := rep.write(t.TempDir() + "/bench.json"); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", rep.table())
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		samples        []float64
		median, q1, q3 float64
	}{
		{[]float64{3}, 3, 3, 3},
		{[]float64{4, 1, 3, 2}, 2.5, 1.75, 3.25},
		{[]float64{5, 1, 3}, 3, 2, 4},
	} {
		s := spreadOf(slices.Clone(c.samples))
		if s.Median != c.median || s.Q1 != c.q1 || s.Q3 != c.q3 || !slices.Equal(s.Samples, c.samples) {
			t.Errorf("spreadOf(%v) = %+v", c.samples, s)
		}
	}
	if s := spreadOf(nil); !math.IsNaN(s.Median) {
		t.Errorf("spread of nothing is %+v", s)
	}
}

func TestVerdict(t *testing.T) {
	fill := func(m *metric, ours, other float64) *metric {
		m.samples = map[string][]float64{ambit: {ours, ours, ours}, copied: {other, other, other}}
		return m
	}
	for _, c := range []struct {
		m    *metric
		want string
	}{
		{fill((&metric{}).ratio(ambit, copied, 0).atMost(1.5), 3, 2), "holds"},
		{fill((&metric{}).ratio(ambit, copied, 0).atMost(1.5), 3.1, 2), "misses"},
		{fill((&metric{}).ratio(ambit, copied, 1).atMost(1.5), 4, 2), "holds"},
		{fill((&metric{}).ratio(ambit, copied, 0).atLeast(0.5), 0.9, 2), "misses"},
		{fill((&metric{}).value(ambit).atMost(25), 24, 0), "holds"},
		{fill((&metric{}).ratio(ambit, copied, 0), 3, 2), ""},
	} {
		rep := &report{Rows: []*row{{Metrics: []*metric{c.m}}}}
		rep.finish()
		if c.m.Verdict != c.want {
			t.Errorf("%+v: %q, want %q", c.m, c.m.Verdict, c.want)
		}
	}
}

// A noisy machine cannot show what it cannot show.
//
//ambit:feature bench-noise
func TestDoubt(t *testing.T) {
	for _, c := range []struct {
		m    metric
		want string
	}{
		{metric{Unit: "Gbit/s", Under: copied, Verdict: "holds"}, "too noisy"},
		{metric{Unit: "ms", Verdict: "misses"}, "too noisy"},
		{metric{Unit: "ms", Verdict: "holds"}, "holds"},
		{metric{Unit: "s/GB", Under: copied, Verdict: "misses"}, "misses"},
		{metric{Unit: "µs"}, ""},
	} {
		rep := &report{Rows: []*row{{Metrics: []*metric{&c.m}}}}
		rep.doubt()
		if c.m.Verdict != c.want {
			t.Errorf("%+v: want %q", c.m, c.want)
		}
	}
}

// What others do to the machine is said, whatever the figures are.
//
//ambit:feature bench-noise
func TestNoise(t *testing.T) {
	for _, c := range []struct {
		foreign  []float64
		baseline float64
		noisy    bool
	}{
		{[]float64{0.01, 0.05, 0.9}, 0.1, false},
		{[]float64{0.01, 0.4, 0.9}, 0.1, true},
		{[]float64{0, 0}, 0.4, true},
		{nil, 0, true},
	} {
		if n := judgeNoise(c.foreign, c.baseline, ""); n.TooNoisy != c.noisy || n.Conclusion == "" {
			t.Errorf("%v, %v: %+v", c.foreign, c.baseline, n)
		}
	}
}
