package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// podSet is the set of pods served. Only the goroutine of own touches it.
type podSet struct {
	n        *Node
	pods     map[string]*served     // by UID
	failed   map[string]handoff.Pod // not started; retried
	wanted   map[string]struct{}    // added or kept on this connection before the snapshot's end; nil after it
	ending   map[*served]struct{}   // taken out of pods, connections not all ended
	synced   bool                   // connected, and the snapshot is complete
	draining bool
	lives    uint64 // how often a pod was started
}

const retryPods = 5 * time.Second

// own runs what is asked of the pod set until ctx ends, then ends every pod.
func (n *Node) own(ctx context.Context) {
	defer close(n.ownerGone)
	s := &podSet{
		n: n, pods: map[string]*served{}, failed: map[string]handoff.Pod{},
		wanted: map[string]struct{}{}, ending: map[*served]struct{}{},
	}
	retry := time.NewTicker(retryPods)
	defer retry.Stop()
	for {
		select {
		case op := <-n.ops:
			op(s)
		case <-retry.C:
			s.retry()
		case <-ctx.Done():
			s.end()
			return
		}
		s.report()
	}
}

func (s *podSet) end() {
	for uid := range s.pods {
		s.stop(uid, live.Errorf(live.Drained, "connection closed due to connection drain"))
	}
	for uid := range s.failed {
		s.forget(uid)
	}
	for p := range s.ending {
		<-p.done
	}
	s.ending = map[*served]struct{}{}
	s.report()
}

func (s *podSet) report() {
	for p := range s.ending {
		select {
		case <-p.done:
			delete(s.ending, p)
		default:
		}
	}
	s.n.metrics.active.Set(float64(len(s.pods)))
	s.n.metrics.pending.Set(float64(len(s.failed)))
	if s.synced && len(s.failed) == 0 {
		s.n.ready.done("workload proxy manager")
	} else {
		s.n.ready.pending("workload proxy manager")
	}
}

// connected follows the connection to the agent. A new one begins with a
// snapshot; the pods served go on meanwhile.
func (s *podSet) connected(ok bool) {
	s.synced = ok
	if !ok {
		s.wanted = map[string]struct{}{}
		for uid := range s.failed {
			s.forget(uid)
		}
	}
}

func (s *podSet) add(p handoff.Pod) error {
	if s.wanted != nil {
		s.wanted[p.UID] = struct{}{}
	}
	if s.draining {
		p.Close()
		return errors.New("ztunnel is draining")
	}
	if cur := s.pods[p.UID]; cur != nil {
		if cur.pod.NS.ID() == p.NS.ID() {
			p.Close()
			// The agent says it again when capture was interrupted: connections
			// made meanwhile are older than it.
			if !p.FromStart {
				s.n.older.Add(cur.live, cur.sockets())
			}
			return nil
		}
		s.stop(p.UID, live.Errorf(live.PodRemoved, "connection closed: the pod's network namespace was replaced"))
	}
	s.forget(p.UID)
	if err := s.start(p); err != nil {
		s.failed[p.UID] = p
		return err
	}
	return nil
}

func (s *podSet) start(p handoff.Pod) error {
	s.lives++
	v, err := s.n.serve(p, fmt.Sprintf("%s#%d", p.UID, s.lives))
	if err != nil {
		s.n.cfg.Logger.Error("pod is not served", "pod", p.String(), "err", err, "retry", retryPods)
		return fmt.Errorf("pod %s: %w", p, err)
	}
	s.pods[p.UID] = v
	s.n.metrics.started.Inc()
	s.n.cfg.Logger.Info("pod is served", "pod", p.String(), "listeners", v.dialect())
	return nil
}

func (s *podSet) retry() {
	for _, uid := range slices.Sorted(maps.Keys(s.failed)) {
		p := s.failed[uid]
		if s.start(p) == nil {
			delete(s.failed, uid)
		}
	}
}

func (s *podSet) forget(uid string) {
	if p, ok := s.failed[uid]; ok {
		p.Close()
		delete(s.failed, uid)
	}
}

func (s *podSet) keep(uid string) {
	if s.wanted != nil {
		s.wanted[uid] = struct{}{}
	}
}

func (s *podSet) del(uid string) {
	s.forget(uid)
	if s.wanted != nil {
		delete(s.wanted, uid) // the end of the snapshot takes it
		return
	}
	s.stop(uid, live.Errorf(live.PodRemoved, "connection closed: the pod left the mesh"))
}

// retire leaves new connections of a pod to another ztunnel, which makes its own
// listeners in place of those we hold. What is open goes on.
func (s *podSet) retire(uid string) {
	s.forget(uid)
	if s.wanted != nil {
		delete(s.wanted, uid)
	}
	p := s.pods[uid]
	if p == nil {
		return
	}
	delete(s.pods, uid)
	s.ending[p] = struct{}{}
	p.retire()
	s.n.metrics.stopped.Inc()
	s.n.cfg.Logger.Info("pod is left to another ztunnel", "pod", p.pod.String(), "open connections", s.n.table.Len(p.live))
}

func (s *podSet) snapshotDone() {
	for uid := range s.pods {
		if _, ok := s.wanted[uid]; !ok {
			s.stop(uid, live.Errorf(live.PodRemoved, "connection closed: the pod left the mesh"))
		}
	}
	s.wanted = nil
}

// stop takes a pod out at once. What remains of it ends on its own goroutines.
func (s *podSet) stop(uid string, why *live.Error) {
	p := s.pods[uid]
	if p == nil {
		return
	}
	delete(s.pods, uid)
	s.ending[p] = struct{}{}
	p.stop(why)
	s.n.metrics.stopped.Inc()
	s.n.cfg.Logger.Info("pod is no longer served", "pod", p.pod.String())
}

// drain stops accepting for every pod and waits for the open connections, up
// to the deadline.
func (n *Node) drain(ctx context.Context) {
	var waits []*served
	n.do(func(s *podSet) {
		s.draining = true
		for _, p := range s.pods {
			p.drain()
			waits = append(waits, p)
		}
	})
	deadline := time.NewTimer(n.cfg.Grace)
	defer deadline.Stop()
	for _, p := range waits {
		select {
		case <-p.done:
		case <-deadline.C:
			n.cfg.Logger.Warn("drain deadline passed", "open connections", n.table.Len(nil))
			return
		case <-ctx.Done():
			return
		}
	}
}
