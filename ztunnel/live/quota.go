package live

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// What a connection takes of its pod's share. A unit is one descriptor and about
// 16 KiB; an HBONE connection is two certificate chains, two goroutines and a TLS
// state, whatever it carries.
const (
	CostConn   = 1
	CostTunnel = 4
	// costPod are the descriptors of a pod that is served: namespace and listeners,
	// the agent's copies included.
	costPod = 16
)

// Limits are how many units pods may use.
type Limits struct {
	Node int // all together
	Pod  int // one alone
}

// Quota shares out what the node can hold. A nil Quota, and a nil Share of it,
// bounds nothing.
type Quota struct {
	limits Limits // immutable

	mu   sync.Mutex
	used int // guarded by mu; by the connections of all pods
	pods int // guarded by mu
}

// Share is a pod's part of a Quota.
type Share struct {
	q    *Quota // immutable
	used int    // guarded by q.mu
}

// NewQuota makes a Quota. With a Registerer it also reports what is used.
func NewQuota(limits Limits, r prometheus.Registerer) *Quota {
	q := &Quota{limits: limits}
	if r != nil {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ambit_quota_connections_used",
			Help: "Units of the node's connection quota in use; an HBONE connection is four (unstable)"}, func() float64 {
			q.mu.Lock()
			defer q.mu.Unlock()
			return float64(q.used)
		}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ambit_quota_connections_limit",
			Help: "Units of the node's connection quota (unstable)"}, func() float64 { return float64(limits.Node) }))
	}
	return q
}

// Share is for a pod that is going to be served.
func (q *Quota) Share() *Share {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	q.pods++
	q.mu.Unlock()
	return &Share{q: q}
}

// Close is for a pod that is not served any more; what its connections still have
// they give back themselves.
func (s *Share) Close() {
	if s == nil {
		return
	}
	s.q.mu.Lock()
	s.q.pods--
	s.q.mu.Unlock()
}

// Take takes n units, to be given back by Give, or says why it may not.
func (s *Share) Take(n int) error {
	if s == nil {
		return nil
	}
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	limits := Limits{Node: max(0, q.limits.Node-q.pods*costPod), Pod: q.limits.Pod}
	switch r := admit(limits, s.used, q.used, q.pods, n); r {
	case QuotaPod:
		return Errorf(r, "the pod's connections use %d of the %d units it may have", s.used, q.limits.Pod)
	case QuotaNode:
		return Errorf(r, "connections use %d of the node's %d units, and this pod's %d of them", q.used, limits.Node, s.used)
	}
	s.used += n
	q.used += n
	return nil
}

// Give gives n units back.
func (s *Share) Give(n int) {
	if s == nil {
		return
	}
	s.q.mu.Lock()
	s.used -= n
	s.q.used -= n
	s.q.mu.Unlock()
}

// admit decides whether a pod that uses own of the used units may take n more. A
// pod may have much of what is free, up to its limit; but the last quarter is
// for all pods in equal parts, for those only that have not had as much yet. So no
// number of pods that take all they can keeps another one out.
func admit(l Limits, own, used, pods, n int) Reason {
	last := l.Node / 4
	switch {
	case own+n > l.Pod:
		return QuotaPod
	case used+n > l.Node, used+n > l.Node-last && own+n > last/max(pods, 1):
		return QuotaNode
	}
	return ""
}
