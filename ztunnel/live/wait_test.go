package live

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// TestLocalIsWaitedFor: a pod that the control plane has not spoken of yet is
// waited for, up to five seconds, or as long as its connection waits.
//
//ambit:feature model-wait
func TestLocalIsWaitedFor(t *testing.T) {
	pod := &Pod{UID: "u", Name: "echo-1", Namespace: "prod", ServiceAccount: "echo"}
	known := *server
	known.Node = "n1"
	for _, tt := range []struct {
		name           string
		comes, givesUp time.Duration // 0: never
		takes          time.Duration
		reason         Reason
	}{
		{"is there", time.Nanosecond, 0, time.Nanosecond, ""},
		{"comes late", 4 * time.Second, 0, 4 * time.Second, ""},
		{"comes too late", 6 * time.Second, 0, 5 * time.Second, UnknownWorkload},
		{"never comes", 0, 0, 5 * time.Second, UnknownWorkload},
		{"is not waited for", 0, time.Second, time.Second, UnknownWorkload},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := mesh.NewStore()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				at := func(d time.Duration, f func()) {
					if d > 0 {
						timer := time.AfterFunc(d, f)
						t.Cleanup(func() { timer.Stop() })
					}
				}
				at(tt.givesUp, cancel)
				at(tt.comes, func() {
					b := mesh.NewBuilder(store.Load())
					b.Apply(mesh.Delta{Workloads: []*mesh.Workload{client, &known}})
					store.Swap(b.Build())
				})
				began := time.Now()
				_, self, err := Local(ctx, store, "n1", pod)
				if took := time.Since(began); took != tt.takes {
					t.Errorf("took %s, want %s", took, tt.takes)
				}
				var e *Error
				switch {
				case tt.reason == "" && (err != nil || self.Name != "echo-1"):
					t.Errorf("%v %v", self, err)
				case tt.reason != "" && (!errors.As(err, &e) || e.Reason != tt.reason):
					t.Errorf("%v, want %s", err, tt.reason)
				}
			})
		})
	}
}
