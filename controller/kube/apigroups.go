package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
)

// crdPoll is how often absent types are looked for.
const crdPoll = 5 * time.Second

// apiGroup are types that a cluster may lack, because custom resource
// definitions make them. Each group is looked for on its own: a cluster without
// the Gateway API still has its policies.
type apiGroup struct {
	version   string   // <group>/<version>
	resources []string // which of its types are read
	without   string   // what that means while they are absent
	informers interface {
		Start(stop <-chan struct{})
		Shutdown()
	}
	reported []cache.InformerSynced // as in reported
}

// startGroups starts the informers of the groups that are there and returns
// when these have all that was there; await is to be run for each of the
// others.
func (c *Controller) startGroups(ctx context.Context) (absent []*apiGroup, err error) {
	var present []cache.InformerSynced
	for _, g := range c.caches.groups {
		there, err := c.groupNow(ctx, g)
		if err != nil {
			return nil, err
		}
		if !there {
			c.cfg.Logger.Warn("the API server lacks types: "+g.without+" until their CRDs are installed", "group", g.version, "types", g.resources)
			absent = append(absent, g)
			continue
		}
		g.informers.Start(ctx.Done())
		present = append(present, g.reported...)
	}
	return absent, awaitSync(ctx, present...)
}

// groupNow asks whether g is there. An API server that does not answer is
// asked again: starting without policies because of a lost packet would fail
// open.
func (c *Controller) groupNow(ctx context.Context, g *apiGroup) (bool, error) {
	for logged := false; ; logged = true {
		present, err := c.lookFor(g)
		if err == nil {
			return present, nil
		}
		if !logged {
			c.cfg.Logger.Warn("cannot ask the API server for its types, trying on", "group", g.version, "error", err)
		}
		if !pause(ctx, time.Second) {
			return false, fmt.Errorf("look for %s: %w", g.version, context.Cause(ctx))
		}
	}
}

func (c *Controller) lookFor(g *apiGroup) (bool, error) {
	types, err := c.cfg.Client.Discovery().ServerResourcesForGroupVersion(g.version)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	found := 0
	for i := range types.APIResources {
		if slices.Contains(g.resources, types.APIResources[i].Name) {
			found++
		}
	}
	return found == len(g.resources), nil
}

// await starts g's informers once its types appear; their objects reach the
// translator like any other change.
func (c *Controller) await(ctx context.Context, g *apiGroup) {
	for pause(ctx, crdPoll) {
		if present, err := c.lookFor(g); err != nil || !present {
			continue
		}
		c.cfg.Logger.Info("types have appeared", "group", g.version, "types", g.resources)
		g.informers.Start(ctx.Done())
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
