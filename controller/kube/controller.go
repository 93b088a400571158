package kube

import (
	"context"
	"sync"

	"k8s.io/client-go/tools/cache"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Controller keeps a mesh.Store true to the cluster.
type Controller struct {
	cfg        Config
	caches     *caches
	dirty      *dirtySet
	translator *translator
	writer     *writer
	allocator  *allocator
	bindings   *bindings
	reported   []cache.InformerSynced // of the types every cluster has, see record
	synced     chan struct{}          // closed once, when the first snapshot is published
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
	cfg.Registerer.MustRegister(eventCounts{c.dirty})
	if c.writer, err = newWriter(&c.cfg, cs, m); err != nil {
		return nil, err
	}
	if c.allocator, err = newAllocator(&c.cfg, cs, m); err != nil {
		return nil, err
	}
	c.translator = newTranslator(&c.cfg, cs, c.dirty, m, c.writer.want)
	c.translator.external.addresses = c.allocator.want
	c.bindings = newBindings(&c.cfg, cs, m)
	c.translator.statuses = c.bindings.want
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
		c.caches.meshFactory.Shutdown()
		for _, g := range c.caches.groups {
			g.informers.Shutdown()
		}
		c.writer.shutdown()
	}()
	c.caches.core.Start(ctx.Done())
	c.caches.meshFactory.Start(ctx.Done())
	c.writer.start(ctx, &wg)
	c.allocator.start(ctx, &wg)
	wg.Go(func() {
		<-ctx.Done()
		c.bindings.queue.ShutDown()
	})
	absent, err := c.startGroups(ctx)
	if err == nil {
		err = awaitSync(ctx, c.reported...)
	}
	if err != nil {
		return err
	}
	for _, g := range absent {
		wg.Go(func() { c.await(ctx, g) })
	}
	if err := c.awaitSettings(ctx, c.translator.unreadable); err != nil {
		return err
	}
	c.translator.run(ctx, func() {
		close(c.synced)
		// Not before: what is wanted of status is known only now, and whoever
		// leads takes away what nobody wants.
		wg.Go(func() { c.lead(ctx) })
	})
	return nil
}
