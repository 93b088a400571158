package kube

import "sync"

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
	wake chan struct{}    // one slot
}

func newDirtySet() *dirtySet {
	return &dirtySet{keys: make(map[key]struct{}), wake: make(chan struct{}, 1)}
}

func (d *dirtySet) add(k key) {
	d.mu.Lock()
	d.keys[k] = struct{}{}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *dirtySet) drain() map[key]struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	keys := d.keys
	d.keys = make(map[key]struct{})
	return keys
}
