package mesh

import (
	"fmt"
	"runtime"
	"testing"
)

// A change of one workload copies parts of tables whose size goes with the square
// root of the mesh: sixteen times the workloads may cost four times as much, and
// nothing may cost sixteen times.
//
//ambit:feature scale-no-quadratic
func TestChangeGrowsWithTheRoot(t *testing.T) {
	const changes = 300
	bytes := func(n int) float64 {
		s := build(nil, many(n))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range changes {
			w := manyWorkload(i % n)
			w.Node = fmt.Sprint("n", i)
			s = build(s, Delta{Workloads: []*Workload{w}})
		}
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / changes
	}
	small, large := bytes(1000), bytes(16_000)
	t.Logf("%.0f bytes per change of 1 000 workloads, %.0f of 16 000", small, large)
	if large > 8*small {
		t.Errorf("%.1f times the bytes for 16 times the workloads", large/small)
	}
}

// A service's endpoints that come in one batch cost in proportion to them.
//
//ambit:feature scale-no-quadratic
func TestBatchGrowsInProportion(t *testing.T) {
	bytes := func(n int) float64 {
		d := Delta{Services: []*Service{{Namespace: "ns", Hostname: "s"}}}
		for i := range n {
			d.Workloads = append(d.Workloads, &Workload{UID: fmt.Sprint(i), Name: fmt.Sprint(i), Services: map[string][]Port{"ns/s": nil}})
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		build(nil, d)
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
	}
	small, large := bytes(1000), bytes(16_000)
	t.Logf("%.0f bytes per endpoint of 1 000, %.0f of 16 000", small, large)
	if large > 2*small {
		t.Errorf("%.1f times the bytes per endpoint for 16 times the endpoints", large/small)
	}
}
