package live

import (
	"sync"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// maxStrangers bounds how many records are kept of peers that the mesh does not
// know. Each costs metrics that stay, and a peer can say what it likes.
const maxStrangers = 4096

// strangers are the peers that have said who they are.
type strangers struct {
	mu    sync.Mutex
	known map[party]*mesh.Workload // guarded by mu
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
	k := partyOf(w, w.Identity())
	if old := s.known[k]; old != nil {
		return old
	}
	if len(s.known) >= maxStrangers {
		return &mesh.Workload{Namespace: w.Namespace, TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount}
	}
	if s.known == nil {
		s.known = map[party]*mesh.Workload{}
	}
	s.known[k] = w
	return w
}
