package server

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// encodings holds the latest wire form per resource, so that a change is
// encoded once and not once per client.
type encodings struct {
	mu        sync.RWMutex
	addresses map[string]encoding // guarded by mu
	policies  map[string]encoding // guarded by mu
}

type encoding struct {
	of       any // the frozen mesh value the resource was made from
	resource *discovery.Resource
}

func newEncodings() *encodings {
	return &encodings{addresses: make(map[string]encoding), policies: make(map[string]encoding)}
}

func (e *encodings) workload(w *mesh.Workload) (*discovery.Resource, error) {
	return e.get(e.addresses, wire.TypeAddress, w.UID, w, func() ([]byte, error) { return wire.MarshalWorkload(w) })
}

func (e *encodings) service(v *mesh.Service) (*discovery.Resource, error) {
	return e.get(e.addresses, wire.TypeAddress, v.Key(), v, func() ([]byte, error) { return wire.MarshalService(v) })
}

func (e *encodings) policy(p *mesh.Policy) (*discovery.Resource, error) {
	return e.get(e.policies, wire.TypeAuthorization, p.Key(), p, func() ([]byte, error) { return wire.MarshalPolicy(p) })
}

func (e *encodings) get(in map[string]encoding, typeURL, name string, of any, marshal func() ([]byte, error)) (*discovery.Resource, error) {
	e.mu.RLock()
	x, ok := in[name]
	e.mu.RUnlock()
	if ok && x.of == of {
		return x.resource, nil
	}
	b, err := marshal()
	if err != nil {
		return nil, err
	}
	r := &discovery.Resource{Name: name, Version: version(b), Resource: &anypb.Any{TypeUrl: typeURL, Value: b}}
	e.mu.Lock()
	in[name] = encoding{of: of, resource: r}
	e.mu.Unlock()
	return r, nil
}

// forget drops the encodings of resources that are gone.
func (e *encodings) forget(typeURL string, names []string) {
	if len(names) == 0 {
		return
	}
	in := e.addresses
	if typeURL == wire.TypeAuthorization {
		in = e.policies
	}
	e.mu.Lock()
	for _, n := range names {
		delete(in, n)
	}
	e.mu.Unlock()
}

func (e *encodings) clear() {
	e.mu.Lock()
	clear(e.addresses)
	clear(e.policies)
	e.mu.Unlock()
}

// version of a resource is a hash of its content: equal on every replica.
func version(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:8])
}
