package kube

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// lead competes for the Lease until ctx ends, and writes while it holds it.
// Losing it only ends the writing; xDS and CA are served by every replica.
func (c *Controller) lead(ctx context.Context) {
	// The elector starts its callback on a goroutine of its own and does not
	// wait for it, so the callback only passes on the term's context.
	terms := make(chan context.Context, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case term := <-terms:
				var parts sync.WaitGroup
				if c.cfg.Leading != nil {
					parts.Go(func() { c.cfg.Leading(term) })
				}
				parts.Go(func() { c.allocator.run(term) })
				parts.Go(func() { c.bindings.run(term) })
				if c.cfg.Untaint != "" {
					parts.Go(func() { c.untaint(term) })
				}
				c.writer.run(term)
				parts.Wait()
			}
		}
	})
	for ctx.Err() == nil {
		le, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Name: LeaseName,
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: c.cfg.Namespace, Name: LeaseName},
				Client:     c.cfg.Client.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: c.cfg.Replica},
			},
			LeaseDuration:   15 * time.Second,
			RenewDeadline:   10 * time.Second,
			RetryPeriod:     2 * time.Second,
			ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(term context.Context) {
					select {
					case terms <- term:
					case <-term.Done():
					}
				},
				OnStoppedLeading: func() {},
				OnNewLeader: func(replica string) {
					c.cfg.Logger.Info("lease holder", "lease", c.cfg.Namespace+"/"+LeaseName, "replica", replica)
				},
			},
		})
		if err != nil { // only for durations that do not fit together
			c.cfg.Logger.Error("cannot compete for the lease, nothing will be written", "error", err)
			return
		}
		le.Run(ctx)
	}
}
