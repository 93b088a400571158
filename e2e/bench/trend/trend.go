// Package trend owns the decision whether a series of samples grows: a slope
// that does not mind outliers, with how sure it is, against what may be gained.
package trend

import (
	"math"
	"slices"
	"time"
)

// Point is a value at a time since the beginning.
type Point struct {
	At    time.Duration `json:"at"`
	Value float64       `json:"value"`
}

// Line is the slope of a series per hour. It is above Low with a certainty of
// 99 %, and below High with the same.
type Line struct {
	Slope float64 `json:"slope"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// fewest points that Slope says anything about: with seven the bounds of 99 %
// are the smallest and the largest slope there is.
const fewest = 8

// z of the normal distribution for 99 % on one side.
const z = 2.326

// Slope is Theil's and Sen's: the median of the slopes between all pairs of
// points. Up to a quarter of the points may be anything without moving it, so a
// garbage collection that comes late, or a neighbour's burst, is no leak. Low
// and High are by Kendall's distribution of the signs of those slopes, with
// the correction for equal values (Sen 1968).
func Slope(points []Point) (Line, bool) {
	n := len(points)
	if n < fewest {
		return Line{}, false
	}
	var slopes []float64
	for i, a := range points {
		for _, b := range points[i+1:] {
			if dt := (b.At - a.At).Hours(); dt > 0 {
				slopes = append(slopes, (b.Value-a.Value)/dt)
			}
		}
	}
	if len(slopes) == 0 {
		return Line{}, false
	}
	slices.Sort(slopes)
	half := z * math.Sqrt(variance(points)) / 2
	middle := float64(len(slopes)-1) / 2
	return Line{at(slopes, middle), at(slopes, math.Floor(middle-half)), at(slopes, math.Ceil(middle+half))}, true
}

// variance is that of Kendall's score, for series with equal values.
func variance(points []Point) float64 {
	n := float64(len(points))
	v := n * (n - 1) * (2*n + 5)
	same := map[float64]float64{}
	for _, p := range points {
		same[p.Value]++
	}
	for _, t := range same {
		v -= t * (t - 1) * (2*t + 5)
	}
	return v / 18
}

// at is between neighbours in proportion, and the nearest beyond the ends.
func at(sorted []float64, i float64) float64 {
	i = min(max(i, 0), float64(len(sorted)-1))
	low := int(i)
	if low+1 == len(sorted) {
		return sorted[low]
	}
	return sorted[low] + (i-float64(low))*(sorted[low+1]-sorted[low])
}

// Verdict is what is said about a series.
type Verdict struct {
	First   float64 `json:"first"` // after the warm-up
	Last    float64 `json:"last"`
	Quarter Line    `json:"quarter"` // of the last quarter of the time
	Rest    Line    `json:"rest"`    // of everything after the first quarter, which is warm-up
	Limit   float64 `json:"limit"`   // of a slope, per hour; 0: not judged
	Leaks   bool    `json:"leaks"`
	Judged  bool    `json:"judged"` // false: too few samples
}

// Judge decides whether a series of the length total leaks. gain is what it may
// grow by in the last quarter of it; 0 is a series that is only shown.
//
// It leaks when the last quarter surely grows faster than that, or when
// everything after the warm-up does and the last quarter does not deny it: the
// longer stretch sees a slow leak that the short one cannot tell from noise, the
// short one clears what has grown and come to rest.
func Judge(points []Point, total time.Duration, gain float64) Verdict {
	after := func(t time.Duration) []Point {
		i := slices.IndexFunc(points, func(p Point) bool { return p.At >= t })
		if i < 0 {
			return nil
		}
		return points[i:]
	}
	rest, quarter := after(total/4), after(total-total/4)
	var v Verdict
	if len(rest) > 0 {
		v.First, v.Last = rest[0].Value, rest[len(rest)-1].Value
	}
	var ok1, ok2 bool
	v.Rest, ok1 = Slope(rest)
	v.Quarter, ok2 = Slope(quarter)
	v.Judged = ok1 && ok2
	if gain == 0 {
		return v
	}
	v.Limit = gain / (total / 4).Hours()
	v.Leaks = v.Judged && (v.Quarter.Low > v.Limit || v.Rest.Low > v.Limit && v.Quarter.Slope > v.Limit/2)
	return v
}
