package node

import (
	"context"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// entry is what the loop knows about one pod.
type entry struct {
	uid     string
	pod     *corev1.Pod // as last seen; kept after the object is gone
	fresh   time.Time   // until then pod counts although the watch lacks it
	sandbox sandbox     // told by the plugin; zero asks the runtime
	held    *held       // what has been set up; the job's while busy

	busy    bool
	working string             // container the job works on
	cancel  context.CancelFunc // ends a job that un-enrols; nil while another runs
	stays   bool               // that job was ended, the pod is not to leave any more
	again   bool               // something changed while busy
	moved   time.Time          // when to look for what changed in its namespace while busy; zero: nothing did
	waiters []waiter
	leaving []chan<- struct{} // waiting for the sandbox to be cleared
	gone    bool              // the sandbox was removed: clear what is held
	unsaid  bool              // it has ended, and what was written on it is taken back; the watch may not have it yet
	removed bool              // the next sandbox will come with an ADD
	failed  int               // attempts in a row
	retry   time.Time
	look    time.Time // when to check for drift
	refused string    // reason last logged
}

// waiter is an ADD that is not answered yet.
type waiter struct {
	containerID string
	answer      chan<- enroll.Response // buffered
}

// answer tells everybody who waits.
func (e *entry) answer(r enroll.Response) {
	for _, w := range e.waiters {
		w.answer <- r
	}
	e.waiters = nil
}

// captured tells those who wait for this sandbox. An ADD for another one that
// came meanwhile has its turn; one for a sandbox that was superseded has not.
func (e *entry) captured(containerID string) {
	var left []waiter
	for _, w := range e.waiters {
		switch w.containerID {
		case containerID:
			w.answer <- enroll.Response{Outcome: enroll.Captured}
		case e.sandbox.id:
			left = append(left, w)
		default:
			w.answer <- enroll.Response{Outcome: enroll.Refused, Reason: "the pod has another sandbox already"}
		}
	}
	e.waiters = left
}

// loop owns the state of all pods of the node. Its fields are only touched by
// the goroutine in run.
type loop struct {
	a        *Agent
	pods     map[string]*entry // by uid
	intended map[string]enroll.IntendedPod
	dirty    bool              // the intent file is to be written
	waiting  []chan<- struct{} // for it to be written
	written  time.Time
	content  enroll.Intent // as last written
	failing  string        // why it could not be written last
	ending   bool          // jobs fail because they were ended
	collect  bool          // stale pins are to be removed once
	left     bool          // asked to leave, and nothing is captured any more
}

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 15 * time.Second
	writeEvery = 100 * time.Millisecond
	writeAgain = 5 * time.Second // after a failure
	moveSettle = 300 * time.Millisecond
	// freshFor is how long a pod that was read directly may be unknown to
	// the watch, which is behind by one event usually.
	freshFor = 30 * time.Second
)

func newLoop(a *Agent, before enroll.Intent) *loop {
	l := &loop{a: a, pods: make(map[string]*entry), intended: make(map[string]enroll.IntendedPod), dirty: true, collect: true}
	for _, p := range before.Pods {
		l.intended[p.UID] = p
	}
	return l
}

func (l *loop) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, p := range l.a.kube.allPods() {
		l.touch(ctx, string(p.UID))
	}
	// Pods that ended while no agent was here.
	for uid, p := range l.intended {
		if l.a.kube.pod(uid) == nil {
			e := l.entry(uid)
			e.held = &held{containerID: p.ContainerID, uid: uid, name: p.Namespace + "/" + p.Name}
			l.touch(ctx, uid)
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(l.next())
		select {
		case <-ctx.Done():
			l.drainJobs()
			l.write()
			if l.a.Uninstalled() {
				l.abandon()
			}
			l.close()
			return nil
		case e := <-l.a.events:
			l.handle(ctx, e)
		case <-timer.C:
		}
		l.overdue(ctx)
		l.collectStale()
		if len(l.waiting) > 0 || l.dirty && time.Since(l.written) >= l.writePause() {
			l.write()
		}
		if err := l.leave(); err != nil {
			cancel()
			l.drainJobs() // whoever started them waits for them
			l.close()
			return err
		}
	}
}

// close lets all descriptors go; ztunnel's copies and the pins go on.
func (l *loop) close() {
	for _, e := range l.pods {
		if e.held != nil {
			e.held.close()
		}
	}
	l.a.old.release()
}

// drainJobs takes the results of the jobs under way when the agent ends, so
// that the intent file is true.
func (l *loop) drainJobs() {
	l.ending = true
	for _, e := range l.pods {
		for e.busy {
			switch ev := <-l.a.events; {
			case ev.done != nil:
				l.finish(ev.done)
			case ev.intend != nil:
				l.intended[ev.intend.pod.UID] = ev.intend.pod
				l.waiting = append(l.waiting, ev.intend.written)
				l.write()
			}
		}
	}
}

func (l *loop) handle(ctx context.Context, ev event) {
	switch {
	case ev.add != nil:
		l.add(ctx, ev.add)
	case ev.del != nil:
		l.del(ctx, ev.del)
	case ev.check != nil:
		l.check(ev.check)
	case ev.intend != nil:
		l.intended[ev.intend.pod.UID] = ev.intend.pod
		l.waiting = append(l.waiting, ev.intend.written)
		l.dirty = true
	case ev.done != nil:
		e := l.finish(ev.done)
		l.settle(ctx, e)
	case ev.synced != nil:
		l.dirty = true // its cgroup
		for _, uid := range *ev.synced {
			if e := l.pods[uid]; e != nil && e.held != nil && !e.busy && !e.held.acked {
				l.kick(ctx, e)
			}
		}
		l.ztunnels(ctx)
	case ev.gone:
		if len(l.a.zds.Clients()) > 0 {
			// One that stays has listeners of its own, or is to get ours.
			for _, e := range l.pods {
				if e.held != nil && e.held.foreign {
					e.held.acked = false
				}
			}
			l.ztunnels(ctx)
		}
	case ev.moved != "":
		if e := l.pods[ev.moved]; e != nil {
			// Not at once: several changes come together, and the runtime
			// takes lo down just before it sends the DEL.
			at := time.Now().Add(moveSettle)
			if e.busy && e.moved.IsZero() {
				e.moved = at // the job may have looked before
			}
			if e.look.After(at) {
				e.look = at
			}
		}
	case ev.changed == "":
		l.dirty = true
	default:
		l.touch(ctx, ev.changed)
	}
}

// ztunnels tries the pods again that have waited for another ztunnel, and those
// whose listeners are not for the one there is now.
func (l *loop) ztunnels(ctx context.Context) {
	foreign := l.a.foreign()
	for _, e := range slices.Collect(maps.Values(l.pods)) {
		switch {
		case e.busy:
			e.again = true
		case e.failed > 0, e.held != nil && (e.held.foreign != foreign || !e.held.acked):
			l.kick(ctx, e)
		}
	}
}

// kick tries an entry again at once.
func (l *loop) kick(ctx context.Context, e *entry) {
	e.retry = time.Time{}
	l.settle(ctx, e)
}

func (l *loop) entry(uid string) *entry {
	e := l.pods[uid]
	if e == nil {
		e = &entry{uid: uid}
		l.pods[uid] = e
	}
	return e
}

// touch looks at one pod again.
func (l *loop) touch(ctx context.Context, uid string) {
	l.dirty = true
	l.settle(ctx, l.entry(uid))
}

// add answers a plugin's ADD, at once or when the pod is captured.
func (l *loop) add(ctx context.Context, add *addition) {
	labels, known := l.a.kube.labels(add.pod.Namespace)
	if !known {
		add.answer <- enroll.Response{Outcome: enroll.Refused, Reason: "namespace " + add.pod.Namespace + " is not known yet"}
		return
	}
	d := l.a.decide(add.pod, labels)
	if !d.Enrol {
		add.answer <- enroll.Response{Outcome: enroll.Passed, Reason: d.Reason}
		return
	}
	e := l.entry(string(add.pod.UID))
	e.pod, e.fresh = add.pod, time.Now().Add(freshFor)
	e.sandbox = add.sandbox
	e.gone, e.removed = false, false
	e.failed, e.retry = 0, time.Time{}
	e.waiters = append(e.waiters, waiter{add.sandbox.id, add.answer})
	l.settle(ctx, e)
}

// del forgets a sandbox. It is found by its container id alone: when the pod
// has a new sandbox already, that one is not touched.
func (l *loop) del(ctx context.Context, del *deletion) {
	for _, e := range l.pods {
		have := e.working
		if e.held != nil && !e.busy {
			have = e.held.containerID
		}
		if e.sandbox.id != del.containerID && have != del.containerID {
			continue
		}
		if e.sandbox.id == del.containerID || e.sandbox.id == "" {
			e.sandbox, e.removed = sandbox{}, true
			e.answer(enroll.Response{Outcome: enroll.Refused, Reason: "the sandbox is being removed"})
		}
		if have == del.containerID || e.busy && e.sandbox.id == "" {
			// While the pod has another sandbox already, the job that sets
			// that one up takes the old one away first.
			e.gone = e.sandbox.id == ""
			e.leaving = append(e.leaving, del.done)
			l.settle(ctx, e)
			return
		}
		break
	}
	l.a.jobs.Go(func() {
		defer close(del.done)
		if err := l.a.cfg.Redirector.Clear(del.containerID, nil); err != nil {
			l.a.log.Warn("cannot remove what is left of a sandbox", "container", del.containerID, "err", err)
		}
	})
}

func (l *loop) check(c *examination) {
	for _, e := range l.pods {
		if e.busy || e.held == nil || e.held.containerID != c.containerID {
			continue
		}
		cfg := e.held.config(l.a, e.pod)
		cfg.ProxyCgroups, cfg.ProbeCgroups = l.a.proxies.list(), l.a.kubelet.list()
		if err := l.a.cfg.Redirector.Check(cfg); err != nil {
			c.answer <- enroll.Response{Outcome: enroll.Refused, Reason: err.Error()}
			return
		}
		break
	}
	c.answer <- enroll.Response{Outcome: enroll.Done}
}

// settle compares what should be with what is and starts the job that makes it
// so, unless one runs already or a retry is due later.
func (l *loop) settle(ctx context.Context, e *entry) {
	if e.busy {
		e.again = true
		if e.cancel != nil && !l.leaves(e) {
			e.cancel() // its wait for connections may be long
			e.stays = true
		}
		return
	}
	e.again = false
	if p := l.a.kube.pod(e.uid); p != nil {
		e.pod = p
	} else if e.pod != nil && time.Now().After(e.fresh) {
		e.pod = nil
	}
	switch step := l.step(e); step {
	case stepNone:
		l.release(e)
	default:
		if time.Now().Before(e.retry) {
			return
		}
		l.start(ctx, e, step)
	}
}

// next is how long the loop may sleep.
func (l *loop) next() time.Duration {
	wake := time.Now().Add(time.Minute)
	if l.dirty {
		wake = l.written.Add(l.writePause())
	}
	for _, e := range l.pods {
		if e.busy {
			continue
		}
		for _, t := range []time.Time{e.retry, e.look} {
			if !t.IsZero() && t.Before(wake) {
				wake = t
			}
		}
	}
	return max(time.Until(wake), time.Millisecond)
}

// overdue looks at the pods whose retry or drift check has come.
func (l *loop) overdue(ctx context.Context) {
	now := time.Now()
	for _, e := range slices.Collect(maps.Values(l.pods)) {
		if e.busy {
			continue
		}
		if !e.retry.IsZero() && !now.Before(e.retry) {
			e.retry = time.Time{}
			l.settle(ctx, e)
		} else if !e.look.IsZero() && !now.Before(e.look) {
			l.settle(ctx, e)
			if !e.busy {
				e.look = time.Time{} // nothing held any more
			}
		}
	}
}
