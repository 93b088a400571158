package node

import (
	"slices"
	"sync"

	"github.com/ambitmesh/ambit/cni/handoff"
)

// served is the set of pods that ztunnel is to serve. Jobs put and remove,
// every new connection of a ztunnel reads. The descriptors in it belong to the
// pod's held, which removes the pod here before it closes them.
type served struct {
	mu   sync.Mutex
	pods map[string]servedPod // guarded by mu; by uid
}

type servedPod struct {
	handoff.Pod
	containerID string
	addrs       addrs
}

func (s *served) put(p servedPod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods == nil {
		s.pods = make(map[string]servedPod)
	}
	s.pods[p.UID] = p
}

func (s *served) get(uid string) (servedPod, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.pods[uid]
	return p, ok
}

func (s *served) remove(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, uid)
}

func (s *served) snapshot() []handoff.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]handoff.Pod, 0, len(s.pods))
	for _, p := range s.pods {
		out = append(out, p.Pod)
	}
	return out
}

// missing are the uids that a former agent had handed over and that this one
// has not yet: a ztunnel that still serves them goes on.
func (s *served) missing(before *[]string) []string {
	if before == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(*before), func(uid string) bool {
		_, ok := s.pods[uid]
		return ok
	})
}
