package kube

import (
	"sync/atomic"

	"k8s.io/client-go/util/workqueue"
)

// duties is a queue of what the holder of the Lease has to look at. Who does not
// hold it takes nothing in: nobody would take it out, and the names of all that
// ever was would gather there. Whoever begins a term queues all there is.
type duties[K comparable] struct {
	workqueue.TypedRateLimitingInterface[K]
	held atomic.Bool // during a term
}

func newDuties[K comparable](retry workqueue.TypedRateLimiter[K]) *duties[K] {
	return &duties[K]{TypedRateLimitingInterface: workqueue.NewTypedRateLimitingQueue(retry)}
}

// Add queues k, during a term.
func (d *duties[K]) Add(k K) {
	if d.held.Load() {
		d.TypedRateLimitingInterface.Add(k)
	}
}

// take begins a term, which the result ends. What is to be queued at the
// beginning is queued after that, or something that changes meanwhile is lost.
func (d *duties[K]) take() (leave func()) {
	d.held.Store(true)
	return func() { d.held.Store(false) }
}
