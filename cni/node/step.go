package node

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// leaves reports whether a pod that is leaving the mesh still is to, as far as
// is known.
func (l *loop) leaves(e *entry) bool {
	p := l.a.kube.pod(e.uid)
	if e.gone || p == nil || terminal(p) {
		return false
	}
	labels, known := l.a.kube.labels(p.Namespace)
	return !known || !l.a.decide(p, labels).Enrol
}

// step is what a pod needs now.
type step int

const (
	stepNone step = iota
	stepEnrol
	stepWithdraw // the pod lives on outside the mesh
	stepForget   // the sandbox is gone
)

func (l *loop) step(e *entry) step {
	if e.gone {
		return stepForget
	}
	if e.pod == nil || terminal(e.pod) {
		_, before := l.intended[e.uid]
		if e.held != nil || e.pod != nil && !e.unsaid && (before || said(e.pod)) {
			return stepForget
		}
		return stepNone
	}
	e.unsaid = false
	labels, known := l.a.kube.labels(e.pod.Namespace)
	if !known {
		// Nothing is decided on half of the facts.
		return stepNone
	}
	d := l.a.decide(e.pod, labels)
	state := e.pod.Annotations[annotationRedirect]
	if !d.Enrol {
		reason := ""
		if d.Asked {
			reason = d.Reason
		}
		_, before := l.intended[e.uid]
		if e.held != nil || state != "" || before || e.pod.Annotations[annotationReason] != reason {
			return stepWithdraw
		}
		return stepNone
	}
	if len(e.waiters) > 0 || e.held == nil || !e.held.complete() ||
		state != redirectionEnabled || e.pod.Annotations[annotationReason] != "" ||
		e.held.outdated(e.sandbox, podAddrs(e.pod)) || e.held.differs(l.a, e.pod) || !time.Now().Before(e.look) {
		if e.held == nil && e.sandbox.id == "" && (e.removed || len(podAddrs(e.pod)) == 0) {
			return stepNone // its ADD, or its addresses, are still to come
		}
		return stepEnrol
	}
	return stepNone
}

// said reports whether a pod still says something about its capture. Its sandbox
// is often removed before the API server has the end of its last container.
func said(p *corev1.Pod) bool {
	for _, a := range []string{annotationRedirect, annotationReason, annotationOlder, annotationLimits} {
		if p.Annotations[a] != "" {
			return true
		}
	}
	return false
}

// release ends an entry that needs nothing.
func (l *loop) release(e *entry) {
	e.answer(enroll.Response{Outcome: enroll.Passed, Reason: "is not to be captured any more"})
	for _, w := range e.leaving {
		close(w)
	}
	e.leaving = nil
	if e.pod == nil && e.held == nil {
		delete(l.pods, e.uid)
		if _, ok := l.intended[e.uid]; ok {
			delete(l.intended, e.uid)
			l.dirty = true
		}
	}
}

// start runs the job for a step.
func (l *loop) start(ctx context.Context, e *entry, s step) {
	j := job{a: l.a, step: s, uid: e.uid, pod: e.pod, sandbox: e.sandbox, held: e.held, adding: len(e.waiters) > 0}
	if p, ok := l.intended[e.uid]; ok {
		j.before = &p
	}
	e.working = e.sandbox.id
	if e.held != nil {
		e.working = e.held.containerID
	} else if j.before != nil && e.working == "" {
		e.working = j.before.ContainerID
	}
	if s == stepWithdraw {
		ctx, e.cancel = context.WithCancel(ctx)
	}
	e.busy = true
	e.held = nil // the job's until it is done
	l.a.jobs.Go(func() {
		r := j.run(ctx)
		// run drains these before it returns, so this always ends.
		l.a.events <- event{done: &r}
	})
}

// finish takes a job's result.
func (l *loop) finish(r *result) *entry {
	e := l.pods[r.uid]
	e.busy, e.working = false, ""
	moved := e.moved
	e.moved = time.Time{}
	superseded := e.stays && r.err != nil
	if e.cancel != nil {
		e.cancel()
	}
	e.cancel, e.stays = nil, false
	e.held = r.held
	l.dirty = true
	if r.held != nil && r.held.set && e.pod != nil {
		l.intended[e.uid] = r.held.intended(e.pod)
	}
	if r.released {
		delete(l.intended, e.uid)
	}
	if superseded {
		e.failed, e.retry = 0, time.Time{}
		l.a.log.Info("pod does not leave the mesh after all", "pod", r.name, "uid", r.uid)
		return e
	}
	if r.err != nil {
		e.failed++
		wait := min(retryFirst<<min(e.failed-1, 10), retryMost)
		e.retry = time.Now().Add(wait)
		l.a.metrics.failed(r.step)
		if e.refused != r.err.Error() && !l.ending {
			e.refused = r.err.Error()
			l.a.log.Warn("pod is not as it should be", "pod", r.name, "uid", r.uid, "want", r.step.String(), "reason", r.err, "attempt", e.failed)
		}
		if len(e.waiters) > 0 && (r.final || e.failed >= 4 && !r.pending) {
			e.answer(enroll.Response{Outcome: enroll.Refused, Reason: r.err.Error()})
		}
		if r.final {
			e.retry = time.Now().Add(retryMost)
		}
		return e
	}
	e.failed, e.retry, e.refused = 0, time.Time{}, ""
	switch r.step {
	case stepEnrol:
		e.look = time.Now().Add(l.a.cfg.DriftEvery)
		if !moved.IsZero() {
			e.look = moved
		}
		e.captured(r.held.containerID)
	case stepWithdraw, stepForget:
		if r.step == stepForget {
			e.gone = false
			e.unsaid = e.pod != nil && terminal(e.pod)
		}
		delete(l.intended, e.uid)
		for _, w := range e.leaving {
			close(w)
		}
		e.leaving = nil
	}
	return e
}
