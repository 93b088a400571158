package ztunnel

import (
	"context"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// local follows which identities this node's workloads have. It is owned by
// one goroutine.
type local struct {
	node  string
	uids  map[string]identity.ID
	count map[identity.ID]int
}

func newLocal(node string) *local {
	return &local{node: node, uids: map[string]identity.ID{}, count: map[identity.ID]int{}}
}

// set takes one workload's current record, nil when it is gone, and returns
// the identity that became wanted or unwanted by it.
func (l *local) set(uid string, w *mesh.Workload) (wanted, unwanted identity.ID) {
	old, had := l.uids[uid]
	if w != nil && (w.Protocol != mesh.ProtocolHBONE || l.node != "" && w.Node != l.node) {
		w = nil
	}
	var id identity.ID
	if w != nil {
		id = w.Identity()
	}
	if had && old == id {
		return
	}
	if w != nil {
		l.uids[uid] = id
		if l.count[id]++; l.count[id] == 1 {
			wanted = id
		}
	} else {
		delete(l.uids, uid)
	}
	if had {
		if l.count[old]--; l.count[old] == 0 {
			delete(l.count, old)
			unwanted = old
		}
	}
	return wanted, unwanted
}

// prefetch keeps the certificates of local workloads at hand, in time
// proportional to what changes.
func (n *Node) prefetch(ctx context.Context) error {
	l := newLocal(n.cfg.NodeName)
	mark := mesh.NewStore().Load().Mark() // of no snapshot of ours: the first round sees everything
	for {
		changed := n.cfg.Store.Changed()
		s := n.cfg.Store.Load()
		n.follow(l, mark, s)
		mark = s.Mark()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *Node) follow(l *local, mark mesh.Mark, s *mesh.Snapshot) {
	apply := func(uid string, w *mesh.Workload) {
		wanted, unwanted := l.set(uid, w)
		if !wanted.IsZero() {
			n.cfg.Certificates.Prefetch(wanted)
		}
		if !unwanted.IsZero() {
			n.cfg.Certificates.Forget(unwanted)
		}
	}
	if ch, ok := n.cfg.Store.Changes(mark, s); ok {
		for _, uid := range ch.Workloads {
			apply(uid, s.Workload(uid))
		}
		return
	}
	for uid := range l.uids {
		if s.Workload(uid) == nil {
			apply(uid, nil)
		}
	}
	for w := range s.AllWorkloads() {
		apply(w.UID, w)
	}
}

// warmLimit bounds how long pods wait for certificates at the start: without
// the CA they are served as far as that goes.
const warmLimit = 10 * time.Second

// warm waits for the certificates of the workloads that are local by now, so
// that a new ztunnel takes over with all it needs.
func (n *Node) warm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, warmLimit)
	defer cancel()
	l := newLocal(n.cfg.NodeName)
	for w := range n.cfg.Store.Load().AllWorkloads() {
		l.set(w.UID, w)
	}
	var wg sync.WaitGroup
	for id := range l.count {
		wg.Go(func() {
			if _, err := n.cfg.Certificates.Certificate(ctx, id); err != nil {
				n.cfg.Logger.Warn("no certificate at start", "identity", id.String(), "err", err)
			}
		})
	}
	wg.Wait()
}
