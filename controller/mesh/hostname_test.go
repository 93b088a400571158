package mesh

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestWorkloadByHostname compares the index with a walk over all workloads, while
// they come, go and change their host names.
func TestWorkloadByHostname(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	names := []string{"", "a.example", "b.example"}
	s := build(nil, Delta{})
	for range 300 {
		uid := fmt.Sprint(rnd.IntN(8))
		if rnd.IntN(4) == 0 {
			s = build(s, Delta{RemovedWorkloads: []string{uid}})
		} else {
			s = build(s, Delta{Workloads: []*Workload{{UID: uid, Namespace: fmt.Sprint("ns", rnd.IntN(2)), Hostname: names[rnd.IntN(len(names))]}}})
		}
		for _, ns := range []string{"ns0", "ns1", "ns2"} {
			for _, host := range names {
				var want *Workload
				for w := range s.AllWorkloads() {
					if host != "" && w.Namespace == ns && w.Hostname == host && (want == nil || w.UID < want.UID) {
						want = w
					}
				}
				if got := s.WorkloadByHostname(ns, host); got != want {
					t.Fatalf("%s/%s: %+v, want %+v", ns, host, got, want)
				}
			}
		}
	}
}
