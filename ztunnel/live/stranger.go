package live

import (
	"sync"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// How many records are kept of peers that the mesh does not know, in all and of
// one identity. Each costs metrics that stay, and a peer can say what it likes:
// one must not use up what is there for others.
const (
	maxStrangers   = 4096
	maxOneStranger = 64
)

// strangers are the peers that have said who they are.
type strangers struct {
	mu    sync.Mutex
	known map[party]*mesh.Workload // guarded by mu
	of    map[identity.ID]int      // guarded by mu; how many of known are an identity's
}

// Stranger keeps w, which a peer says to be. Of one too many only the identity is
// kept, which it has proved.
func (t *Table) Stranger(w *mesh.Workload) *mesh.Workload {
	if w == nil {
		return nil
	}
	s := &t.strangers
	s.mu.Lock()
	defer s.mu.Unlock()
	id := w.Identity()
	k := partyOf(w, id)
	if old := s.known[k]; old != nil {
		return old
	}
	if len(s.known) >= maxStrangers || s.of[id] >= maxOneStranger {
		return &mesh.Workload{Namespace: w.Namespace, TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount}
	}
	if s.known == nil {
		s.known, s.of = map[party]*mesh.Workload{}, map[identity.ID]int{}
	}
	s.known[k] = w
	s.of[id]++
	return w
}
