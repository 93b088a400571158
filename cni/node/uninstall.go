package node

import (
	"errors"
	"os"
	"time"
)

// farewell is how long connections in the mesh may go on when Ambit is taken
// away: half of the time the agent has to end (terminationGracePeriodSeconds).
const farewell = 5 * time.Second

// Uninstalled reports whether Ambit is being taken away: its own namespace is
// being deleted, or the agents were asked to leave. No agent will come after
// this one, and what it leaves behind would keep pods waiting for somebody who
// never answers. Deleting only the DaemonSet does not count: capture outlives
// the agent on purpose.
//
// The watch that tells was authorized when it began, so it does not matter
// that the right to ask may be deleted together with the namespace.
func (a *Agent) Uninstalled() bool {
	if a.kube == nil {
		return false
	}
	for _, ns := range a.kube.allNamespaces() {
		if ns.Name == a.cfg.Rules.OwnNamespace {
			return ns.DeletionTimestamp != nil || a.Leaving() != ""
		}
	}
	return false
}

// abandon releases every pod: new connections go direct at once, open ones
// have farewell to end. Nothing is written on the pods, because the right to do
// that is going away.
func (l *loop) abandon() {
	containers := make(map[string]*held)
	for _, p := range l.intended {
		containers[p.ContainerID] = nil
	}
	for _, e := range l.pods {
		if e.held != nil {
			containers[e.held.containerID] = e.held
		}
	}
	l.a.log.Info("Ambit is being uninstalled: every pod of this node is released", "pods", len(containers))
	if len(containers) > 0 {
		for id := range containers {
			if err := l.a.cfg.Redirector.Drain(id); err != nil && !errors.Is(err, os.ErrNotExist) {
				l.a.log.Warn("connections of a pod do not go direct yet", "container", id, "err", err)
			}
		}
		time.Sleep(min(l.a.cfg.DrainWait, farewell))
	}
	for _, p := range l.intended {
		if h := containers[p.ContainerID]; h != nil && h.ns != nil {
			continue
		}
		ns, err := l.a.cfg.HostRoot.Netns(p.Netns)
		if err != nil {
			continue // gone, and everything in it
		}
		if err := l.a.cfg.Redirector.Clear(p.ContainerID, ns); err != nil {
			l.a.log.Error("a pod is not released", "pod", p.Namespace+"/"+p.Name, "container", p.ContainerID, "err", err)
		}
		ns.Close()
	}
	for id, h := range containers {
		if h == nil || h.ns == nil {
			continue
		}
		if err := l.a.cfg.Redirector.Clear(id, h.ns); err != nil {
			l.a.log.Error("a pod is not released", "pod", h.name, "container", id, "err", err)
		}
	}
	if _, err := l.a.cfg.Redirector.Collect(func(string) bool { return false }); err != nil {
		l.a.log.Error("pins are left", "err", err)
	}
	if err := os.Remove(l.a.cfg.Intent); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.a.log.Error("the intent file is left", "err", err)
	}
}
