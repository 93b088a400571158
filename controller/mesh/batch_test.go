package mesh

import (
	"fmt"
	"runtime"
	"testing"
)

// TestEndpointBatchIsLinear: endpoints that come and go in one batch cost what
// they are, however many there are. Bytes are counted, not time.
//
//ambit:feature model-batches
func TestEndpointBatchIsLinear(t *testing.T) {
	cost := func(n int) float64 {
		in := Delta{Services: []*Service{{Namespace: "ns", Hostname: "s"}}}
		var out Delta
		for i := range n {
			uid := fmt.Sprint(i)
			in.Workloads = append(in.Workloads, &Workload{UID: uid, Name: uid, Services: map[string][]Port{"ns/s": nil}})
			out.RemovedWorkloads = append(out.RemovedWorkloads, uid)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s := build(nil, in)
		if got := len(s.Endpoints("ns/s")); got != n {
			t.Fatalf("%d endpoints of %d", got, n)
		}
		if s = build(s, out); len(s.Endpoints("ns/s")) != 0 {
			t.Fatal("endpoints are left")
		}
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
	}
	few, many := cost(500), cost(8000)
	t.Logf("%.0f bytes for each of 500, %.0f for each of 8000", few, many)
	if many > 3*few {
		t.Errorf("%.0f bytes for each of 500 endpoints, %.0f for each of 8000", few, many)
	}
}
