package live

import (
	"context"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// WaitLimit is how long a connection waits for configuration it needs.
const WaitLimit = 5 * time.Second

// Wait calls ok with the current snapshot and again after every change until
// it says yes, WaitLimit has passed or ctx ends. It returns the last snapshot
// asked about and whether ok said yes.
func Wait(ctx context.Context, store *mesh.Store, ok func(*mesh.Snapshot) bool) (*mesh.Snapshot, bool) {
	s := store.Load()
	if ok(s) {
		return s, true
	}
	timer := time.NewTimer(WaitLimit)
	defer timer.Stop()
	for {
		changed := store.Changed()
		s = store.Load()
		if ok(s) {
			return s, true
		}
		select {
		case <-changed:
		case <-timer.C:
			return s, false
		case <-ctx.Done():
			return s, false
		}
	}
}

// Local finds the mesh's record of a pod of this node, waiting for it if need
// be. The snapshot is the one it was found in.
func Local(ctx context.Context, store *mesh.Store, node string, pod *Pod) (*mesh.Snapshot, *mesh.Workload, error) {
	var w *mesh.Workload
	s, ok := Wait(ctx, store, func(s *mesh.Snapshot) bool {
		w = s.LocalWorkload(node, pod.Namespace, pod.Name, pod.ServiceAccount)
		return w != nil
	})
	if !ok {
		return s, nil, Errorf(UnknownWorkload, "workload %s (service account %q, node %q) is not known to the control plane after %s",
			pod, pod.ServiceAccount, node, WaitLimit)
	}
	return s, w, nil
}
