package trend

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// series has eighty samples in five minutes, as a soak in CI.
func series(f func(i int, t time.Duration) float64) []Point {
	const n = 80
	var out []Point
	for i := range n {
		t := time.Duration(i) * total / n
		out = append(out, Point{t, f(i, t)})
	}
	return out
}

const total = 5 * time.Minute

// TestJudge: what leaks is seen, and what only looks like it is not, whatever
// the noise; gain is one.
//
//ambit:feature soak-detector
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name  string
		leaks bool
		f     func(r *rand.Rand) func(i int, t time.Duration) float64
	}{
		{"constant", false, func(*rand.Rand) func(int, time.Duration) float64 {
			return func(int, time.Duration) float64 { return 40 }
		}},
		{"noise", false, func(r *rand.Rand) func(int, time.Duration) float64 {
			return func(int, time.Duration) float64 { return 40 + math.Round(3*r.NormFloat64()) }
		}},
		{"noise with outliers", false, func(r *rand.Rand) func(int, time.Duration) float64 {
			return func(i int, _ time.Duration) float64 {
				v := 40 + math.Round(r.NormFloat64())
				if i%9 == 0 {
					v += 300
				}
				return v
			}
		}},
		{"one more, once", false, func(*rand.Rand) func(int, time.Duration) float64 {
			return func(i int, _ time.Duration) float64 {
				if i > 70 {
					return 41
				}
				return 40
			}
		}},
		{"warms up and rests", false, func(r *rand.Rand) func(int, time.Duration) float64 {
			return func(_ int, t time.Duration) float64 {
				return 400 - 300*math.Exp(-t.Seconds()/20) + r.NormFloat64()
			}
		}},
		{"shrinks", false, func(r *rand.Rand) func(int, time.Duration) float64 {
			return func(i int, _ time.Duration) float64 { return 400 - float64(i) + r.NormFloat64() }
		}},
		{"a sawtooth", false, func(*rand.Rand) func(int, time.Duration) float64 {
			return func(i int, _ time.Duration) float64 { return 40 + float64(i%7) }
		}},
		{"one every four seconds", true, func(*rand.Rand) func(int, time.Duration) float64 {
			return func(_ int, t time.Duration) float64 { return 40 + math.Floor(t.Seconds()/4) }
		}},
		{"one every ten seconds, in noise", true, func(r *rand.Rand) func(int, time.Duration) float64 {
			return func(_ int, t time.Duration) float64 {
				return 40 + math.Floor(t.Seconds()/10) + math.Round(r.NormFloat64())
			}
		}},
		{"one every two seconds, with outliers", true, func(r *rand.Rand) func(int, time.Duration) float64 {
			return func(i int, t time.Duration) float64 {
				v := 40 + math.Floor(t.Seconds()/2) + math.Round(r.NormFloat64())
				if i%11 == 0 {
					v -= 200
				}
				return v
			}
		}},
		{"begins after half the time", true, func(*rand.Rand) func(int, time.Duration) float64 {
			return func(_ int, t time.Duration) float64 { return 40 + math.Floor(max(0, t.Seconds()-150)/5) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Always the same noises: what they show does not change by chance.
			wrong := 0
			for seed := range uint64(200) {
				v := Judge(series(c.f(rand.New(rand.NewPCG(seed, 1)))), total, 1)
				if !v.Judged {
					t.Fatal("not judged")
				}
				if v.Leaks != c.leaks {
					wrong++
				}
			}
			if wrong > 0 {
				t.Errorf("%d of 200 are judged wrongly", wrong)
			}
		})
	}
}

func TestSlope(t *testing.T) {
	l, ok := Slope(series(func(_ int, t time.Duration) float64 { return 7 + 90*t.Hours() }))
	if !ok || math.Abs(l.Slope-90) > 1e-6 || math.Abs(l.Low-90) > 1e-6 || math.Abs(l.High-90) > 1e-6 {
		t.Errorf("a straight line of 90 per hour: %+v, %t", l, ok)
	}
	r := rand.New(rand.NewPCG(1, 2))
	l, _ = Slope(series(func(_ int, t time.Duration) float64 { return 90*t.Hours() + r.NormFloat64() }))
	if l.Low > 90 || l.High < 90 || l.Low > l.Slope || l.High < l.Slope {
		t.Errorf("90 per hour in noise: %+v", l)
	}
	for _, points := range [][]Point{nil, make([]Point, 7), make([]Point, 20)} {
		if _, ok := Slope(points); ok {
			t.Errorf("%d points at one time have a slope", len(points))
		}
	}
}

func TestJudgeSaysWhatItCannot(t *testing.T) {
	few := []Point{{0, 1}, {time.Second, 1000}, {2 * time.Second, 2000}}
	if v := Judge(few, 2*time.Second, 1); v.Judged || v.Leaks {
		t.Errorf("three samples: %+v", v)
	}
	steep := series(func(i int, _ time.Duration) float64 { return float64(1000 * i) })
	if v := Judge(steep, total, 0); !v.Judged || v.Leaks || v.Quarter.Slope < 1000 {
		t.Errorf("a series that is only shown: %+v", v)
	}
	if v := Judge(nil, total, 1); v.Judged || v.Leaks {
		t.Errorf("nothing: %+v", v)
	}
}
