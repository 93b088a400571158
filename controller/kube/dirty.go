package kube

import (
	"sync"
	"sync/atomic"
	"time"
)

// kind of a watched object.
type kind uint8

const (
	kindNamespace kind = iota
	kindNode
	kindPod
	kindService
	kindSlice
	kindPolicy // AuthorizationPolicy
	kindPeer   // PeerAuthentication
	kindServiceEntry
	kindWorkloadEntry
	kindGateway
	kindGatewayClass
	kindNetworkPolicy
	kindMeshConfig // the ConfigMap of that name
	kinds          // how many there are
)

func (k kind) String() string {
	return [...]string{"Namespace", "Node", "Pod", "Service", "EndpointSlice", "AuthorizationPolicy", "PeerAuthentication",
		"ServiceEntry", "WorkloadEntry", "Gateway", "GatewayClass", "NetworkPolicy", "ConfigMap"}[k]
}

// key names a watched object.
type key struct {
	kind            kind
	namespace, name string
}

// dirtySet holds the keys of objects that changed since the last drain. It is
// bounded by the number of objects, and adding never blocks.
type dirtySet struct {
	mu   sync.Mutex
	keys map[key]struct{} // guarded by mu
	// since is when the first of keys came; guarded by mu.
	since time.Time
	wake  chan struct{} // one slot

	events [kinds][events]atomic.Uint64 // what the API server said, by kind
}

// event is what happened to an object.
type event uint8

const (
	added event = iota
	updated
	unchanged // an update that says nothing a translation reads
	deleted
	events // how many there are
)

func (e event) String() string { return [...]string{"add", "update", "updatesame", "delete"}[e] }

func newDirtySet() *dirtySet {
	return &dirtySet{keys: make(map[key]struct{}), wake: make(chan struct{}, 1)}
}

func (d *dirtySet) add(k key) {
	d.mu.Lock()
	if len(d.keys) == 0 {
		d.since = time.Now()
	}
	d.keys[k] = struct{}{}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// waiting is for how long the first key has been there; 0 without one.
func (d *dirtySet) waiting() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.keys) == 0 {
		return 0
	}
	return time.Since(d.since)
}

func (d *dirtySet) drain() map[key]struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	keys := d.keys
	d.keys = make(map[key]struct{})
	return keys
}
