package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Controller keeps a mesh.Store true to the cluster.
type Controller struct {
	cfg        Config
	caches     *caches
	dirty      *dirtySet
	translator *translator
	writer     *writer
	reported   reported
	synced     chan struct{} // closed once, when the first snapshot is published
}

// New wires a controller; nothing happens before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cs, err := newCaches(&cfg)
	if err != nil {
		return nil, err
	}
	c := &Controller{cfg: cfg, caches: cs, dirty: newDirtySet(), synced: make(chan struct{})}
	m := newMetrics(cfg.Registerer, func() int { return len(cs.services.GetIndexer().ListKeys()) })
	if c.writer, err = newWriter(&c.cfg, cs, m); err != nil {
		return nil, err
	}
	c.translator = newTranslator(&c.cfg, cs, c.dirty, m, c.writer.want)
	if c.reported, err = cs.recordAll(c.dirty); err != nil {
		return nil, err
	}
	return c, nil
}

// Store holds the current snapshot. It is empty until Synced.
func (c *Controller) Store() *mesh.Store { return c.translator.store }

// Synced is closed once the store holds everything the cluster had at start.
// Nothing may be served before: a client would take the absence of an object
// for its removal.
func (c *Controller) Synced() <-chan struct{} { return c.synced }

// Run watches, translates and, while this replica holds the Lease, writes.
// It returns when ctx ends and everything it started has ended.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		c.caches.core.Shutdown()
		c.caches.istio.Shutdown()
		c.writer.shutdown()
	}()
	c.caches.core.Start(ctx.Done())
	c.writer.start(ctx, &wg)
	present, err := c.policyTypes(ctx)
	if err != nil {
		return err
	}
	if present {
		c.caches.istio.Start(ctx.Done())
		err = awaitSync(ctx, c.reported.policies...)
	} else {
		c.cfg.Logger.Warn("the API server has no security.istio.io/v1 types: no policy is enforced until their CRDs are installed")
		wg.Go(func() { c.awaitPolicyTypes(ctx) })
	}
	if err == nil {
		err = awaitSync(ctx, c.reported.core...)
	}
	if err != nil {
		return err
	}
	wg.Go(func() { c.lead(ctx) })
	c.translator.run(ctx, func() { close(c.synced) })
	return nil
}

// policyTypes asks whether the policy CRDs are there. An API server that does
// not answer is asked again: starting without policies because of a lost
// packet would fail open.
func (c *Controller) policyTypes(ctx context.Context) (bool, error) {
	for logged := false; ; logged = true {
		present, err := c.lookForPolicyTypes()
		if err == nil {
			return present, nil
		}
		if !logged {
			c.cfg.Logger.Warn("cannot ask the API server for security.istio.io/v1, trying on", "error", err)
		}
		if !pause(ctx, time.Second) {
			return false, fmt.Errorf("look for security.istio.io/v1: %w", context.Cause(ctx))
		}
	}
}

func (c *Controller) lookForPolicyTypes() (bool, error) {
	types, err := c.cfg.Istio.Discovery().ServerResourcesForGroupVersion("security.istio.io/v1")
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	found := 0
	for _, r := range types.APIResources {
		if r.Name == "authorizationpolicies" || r.Name == "peerauthentications" {
			found++
		}
	}
	return found == 2, nil
}

// awaitPolicyTypes starts the policy informers once the CRDs appear; their
// objects reach the translator like any other change.
func (c *Controller) awaitPolicyTypes(ctx context.Context) {
	for pause(ctx, crdPoll) {
		if present, err := c.lookForPolicyTypes(); err != nil || !present {
			continue
		}
		c.cfg.Logger.Info("security.istio.io/v1 types have appeared")
		c.caches.istio.Start(ctx.Done())
		return
	}
}

// pause waits for d and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
