package node

import (
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// collectStale removes, once, pins that belong to no sandbox of this node. It
// waits until every remembered pod has been dealt with.
func (l *loop) collectStale() {
	if !l.collect {
		return
	}
	keep := make(map[string]bool)
	for _, e := range l.pods {
		if e.busy || e.failed > 0 {
			return
		}
		if e.held != nil {
			keep[e.held.containerID] = true
		}
	}
	for _, p := range l.intended {
		keep[p.ContainerID] = true
	}
	l.collect = false
	gone, err := l.a.cfg.Redirector.Collect(func(id string) bool { return keep[id] })
	if err != nil {
		l.a.log.Warn("cannot remove stale pins", "err", err)
	}
	if len(gone) > 0 {
		l.a.log.Info("removed pins of sandboxes that are gone", "containers", gone)
	}
}

// write puts the decisions on disk. What cannot be written is tried again; the
// plugin then goes by the older file while the agent is away.
func (l *loop) write() {
	in := enroll.Intent{Node: l.a.cfg.Node, Boot: l.a.boot, Namespaces: make(map[string]enroll.Enrolment), Proxies: l.a.proxies.list(), Probers: l.a.kubelet.list()}
	for _, ns := range l.a.kube.allNamespaces() {
		if l.a.Leaving() != "" {
			in.Namespaces[ns.Name] = enroll.Outside
			continue
		}
		in.Namespaces[ns.Name] = NamespaceEnrolment(l.a.cfg.Rules, ns.Name, ns.Labels, l.a.kube.podsIn(ns.Name))
	}
	for _, uid := range slices.Sorted(maps.Keys(l.intended)) {
		in.Pods = append(in.Pods, l.intended[uid])
	}
	l.written = time.Now()
	l.dirty = false
	// Most of what happens to pods changes nothing here, and a write waits
	// for the disk.
	if !reflect.DeepEqual(in, l.content) {
		l.save(in)
	}
	for _, w := range l.waiting {
		close(w)
	}
	l.waiting = nil
	l.a.metrics.states(l.pods)
}

// save replaces the file. A disk that stays full is reported once.
func (l *loop) save(in enroll.Intent) {
	err := enroll.WriteIntent(l.a.cfg.Intent, in)
	if err == nil {
		if l.failing != "" {
			l.a.log.Info("the intent file is written again", "path", l.a.cfg.Intent)
		}
		l.content, l.failing = in, ""
		return
	}
	l.dirty = true
	l.a.metrics.intentErrors.Inc()
	if l.failing == "" {
		l.a.log.Error("cannot write the intent file; the plugin goes by the older one while the agent is away", "err", err)
	}
	l.failing = err.Error()
}

// writePause spaces writes of the intent file.
func (l *loop) writePause() time.Duration {
	if l.failing != "" {
		return writeAgain
	}
	return writeEvery
}
