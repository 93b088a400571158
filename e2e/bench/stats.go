package main

import (
	"math"
	"slices"
)

// spread is the middle of some samples and how far apart their halves are.
type spread struct {
	Median  float64   `json:"median"`
	Q1      float64   `json:"q1"`
	Q3      float64   `json:"q3"`
	Samples []float64 `json:"samples"`
}

func spreadOf(samples []float64) spread {
	s := slices.Sorted(slices.Values(samples))
	return spread{Median: quantile(s, 0.5), Q1: quantile(s, 0.25), Q3: quantile(s, 0.75), Samples: samples}
}

// quantile of sorted samples, between neighbours in proportion.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// ratios compares what was measured in the same round.
func ratios(a, b []float64, offset float64) []float64 {
	var r []float64
	for i := range min(len(a), len(b)) {
		if d := b[i] + offset; d > 0 {
			r = append(r, a[i]/d)
		}
	}
	return r
}
