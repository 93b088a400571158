package client_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/xds/client"
	"github.com/ambitmesh/ambit/controller/xds/server"
)

// roots is a server.Trust that tests write.
type roots struct {
	mu      sync.Mutex
	pem     string
	changed chan struct{}
}

func newRoots(pem string) *roots { return &roots{pem: pem, changed: make(chan struct{})} }

func (r *roots) set(pem string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pem = pem
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *roots) Bundle() ([]byte, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return []byte(r.pem), "hash of " + r.pem
}

func (r *roots) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// taken is what a data plane was handed.
type taken struct {
	mu  sync.Mutex
	got []string
}

func (k *taken) take(pem []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if strings.HasPrefix(string(pem), "bad") {
		return errors.New("no certificate in it")
	}
	k.got = append(k.got, string(pem))
	return nil
}

func (k *taken) all() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Join(k.got, " ")
}

// TestRootsAreHandedOnAndReported: a new root reaches the data plane at once,
// its having it is known, also after a reconnect and without sending it again;
// one that is refused is not reported.
//
//ambit:feature identity-root-change
func TestRootsAreHandedOnAndReported(t *testing.T) {
	trust := newRoots("one")
	ln := listen(t, "127.0.0.1:0")
	start := func() *control {
		c := &control{store: mesh.NewStore(), grpc: grpc.NewServer(server.Options()...), done: make(chan error, 1)}
		c.xds = server.New(server.Config{Store: c.store, Trust: trust, Registerer: prometheus.NewRegistry(),
			Authenticate: func(context.Context) (server.Caller, error) { return server.Caller{PodUID: "u1"}, nil }})
		c.xds.Register(c.grpc)
		go func() { c.done <- c.grpc.Serve(ln) }()
		return c
	}
	c := start()
	reported := func(want string) {
		t.Helper()
		eventually(t, "reported: "+want, func() bool {
			all := c.xds.Clients()
			return len(all) == 1 && all[0].Roots == want
		})
	}
	var k taken
	_, _ = run(t, client.Config{Address: ln.Addr().String(), Token: secret, Trust: k.take})
	reported("hash of one")
	trust.set("two")
	reported("hash of two")
	trust.set("bad")
	trust.set("bad2")
	trust.set("three")
	reported("hash of three")
	if got := k.all(); got != "one two three" {
		t.Errorf("handed on: %s", got)
	}
	c.stop()
	ln = listen(t, ln.Addr().String())
	c = start()
	defer func() { c.stop() }()
	reported("hash of three")
	trust.set("four")
	reported("hash of four")
	if got := k.all(); got != "one two three four" {
		t.Errorf("after a reconnect: %s", got)
	}
}

// TestRootsAreNotAskedOfOthers: a control plane that does not know the type is
// not asked for it.
//
//ambit:feature identity-root-foreign
func TestRootsAreNotAskedOfOthers(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	c := serve(ln, mesh.NewStore()) // has no roots
	defer c.stop()
	var k taken
	x, store := run(t, client.Config{Address: ln.Addr().String(), Token: secret, Trust: k.take})
	<-x.Synced()
	c.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)}})
	eventually(t, "the stream goes on", func() bool { return store.Load().Workload("c//Pod/ns/a") != nil })
	if all := c.xds.Clients(); len(all) != 1 || all[0].Roots != "" {
		t.Errorf("clients %+v", all)
	}
}
