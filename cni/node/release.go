package node

import (
	"context"
)

// withdraw takes a running pod out of the mesh without breaking a connection:
// peers are told first, then new connections go direct, then ours end.
func (j *job) withdraw(ctx context.Context) error {
	d := Decision{}
	if labels, ok := j.a.kube.labels(j.pod.Namespace); ok {
		d = j.a.decide(j.pod, labels)
	}
	reason := ""
	if d.Asked {
		reason = d.Reason
	}
	if err := j.a.kube.annotate(ctx, j.pod, map[string]string{annotationRedirect: "", annotationReason: reason, annotationOlder: "", annotationLimits: ""}); err != nil {
		return err
	}
	if j.held == nil && j.before == nil {
		return nil
	}
	if j.held == nil {
		j.recall()
	}
	j.held.acked, j.held.proven, j.held.said = false, false, false
	if !sleep(ctx, j.a.cfg.PeersWait) {
		return ctx.Err()
	}
	if err := j.a.cfg.Redirector.Drain(j.held.containerID); err != nil {
		return err
	}
	j.held.set, j.held.drained, j.held.counted = false, true, false
	j.a.older.forget(j.uid)
	j.a.log.Info("pod is leaving the mesh, new connections go direct", "pod", podName(j.pod), "uid", j.uid, "reason", d.Reason)
	if err := j.drain(ctx); err != nil {
		return err
	}
	if err := j.forgetHeld(ctx, true); err != nil {
		return err
	}
	j.a.log.Info("pod has left the mesh", "pod", podName(j.pod), "uid", j.uid, "reason", d.Reason)
	return nil
}

// forget removes what is left of a sandbox that is gone.
func (j *job) forget(ctx context.Context) error {
	name := j.name()
	if j.pod != nil && terminal(j.pod) {
		if err := j.a.kube.annotate(ctx, j.pod, map[string]string{annotationRedirect: "", annotationReason: "", annotationOlder: "", annotationLimits: ""}); err != nil {
			return err
		}
	}
	if j.held == nil && j.before != nil && j.pod != nil {
		j.recall()
	}
	if j.held == nil {
		return nil
	}
	if err := j.forgetHeld(ctx, true); err != nil {
		return err
	}
	j.a.log.Info("pod has ended", "pod", name, "uid", j.uid)
	return nil
}

// recall takes what the last agent had set up for what is held.
func (j *job) recall() {
	ns, err := j.a.cfg.HostRoot.Netns(j.before.Netns)
	if err != nil {
		ns = nil // gone with its sandbox; the pins are not
	} else if cookie, err := ns.Cookie(); err != nil || cookie != j.before.Cookie {
		ns.Close()
		ns = nil
	}
	j.held = &held{uid: j.uid, name: podName(j.pod), containerID: j.before.ContainerID, cookie: j.before.Cookie, path: j.before.Netns, ns: ns}
}

// forgetHeld tells ztunnel, then takes capture away, then closes. With tell
// false ztunnel is about to get the successor of the same uid instead.
func (j *job) forgetHeld(ctx context.Context, tell bool) error {
	h := j.held
	j.a.older.forget(j.uid)
	j.a.served.remove(j.uid)
	if j.before != nil {
		j.a.old.drop(*j.before)
	}
	if tell {
		if err := j.a.zds.Del(ctx, j.uid); err != nil {
			// It drops the connection over this and asks for a new snapshot,
			// in which the pod is missing.
			j.a.log.Warn("ztunnel did not confirm the end of a pod", "pod", h.name, "uid", j.uid, "err", err)
		}
	}
	if err := j.a.kernel(func() error { return j.a.cfg.Redirector.Clear(h.containerID, h.ns) }); err != nil {
		return err
	}
	h.close()
	j.held = nil
	return nil
}
