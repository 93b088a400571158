package node

import (
	"context"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

const (
	drainFirst = 100 * time.Millisecond
	drainMost  = 2 * time.Second
)

// drain waits until the proxy has no connection of the pod left: ztunnel cuts
// what it has when it is told that the pod is gone.
func (j *job) drain(ctx context.Context) error {
	if j.held.ns == nil {
		return nil // the sandbox is gone, and its connections with it
	}
	begin := time.Now()
	left, err := drained(ctx, j.held.ns, j.a.cfg.DrainWait, (*netns.NS).Connections)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		j.a.log.Warn("connections of a pod that is leaving cannot be counted, so they are not waited for", "pod", podName(j.pod), "uid", j.uid, "err", err)
	case left > 0:
		j.a.metrics.cut.Add(float64(left))
		j.a.log.Warn("connections outlast the time a pod has to leave the mesh, and are cut",
			"pod", podName(j.pod), "uid", j.uid, "connections", left, "after", time.Since(begin).Round(time.Millisecond).String())
	}
	return nil
}

// drained returns how many connections are left when there are none any more,
// or when wait is over.
func drained(ctx context.Context, ns *netns.NS, wait time.Duration, list func(*netns.NS) ([]netns.Socket, error)) (int, error) {
	end := time.Now().Add(wait)
	pause := drainFirst
	none := 0
	for {
		all, err := list(ns)
		if err != nil {
			return 0, err
		}
		left := redirect.Proxied(all)
		if none++; left > 0 {
			none = 0
		}
		// Twice: a stream has no socket yet between the peer's request and
		// the connection to the application.
		if none == 2 || !time.Now().Before(end) {
			return left, nil
		}
		if none == 1 {
			pause = drainFirst
		}
		if !sleep(ctx, min(pause, max(time.Until(end), time.Millisecond))) {
			return left, ctx.Err()
		}
		pause = min(pause*3/2, drainMost)
	}
}
