package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// job is one attempt to bring one pod into the state it should have.
type job struct {
	a       *Agent
	step    step
	uid     string
	pod     *corev1.Pod // nil when the object is gone
	sandbox sandbox
	held    *held
	before  *enroll.IntendedPod // what the last agent had set up
	adding  bool                // a plugin waits: the sandbox is new

	released bool // nothing is left of what had been set up, the pod lives on
}

type result struct {
	uid, name string
	step      step
	held      *held // what is set up now, also after an error
	err       error
	final     bool // trying again soon is useless
	pending   bool // only a ztunnel is missing
	released  bool // what the last agent or job had set up is gone
}

func (s step) String() string {
	return [...]string{"none", "enrol", "withdraw", "forget"}[s]
}

func (j *job) run(ctx context.Context) result {
	begin := time.Now()
	r := result{uid: j.uid, step: j.step, name: j.name()}
	switch j.step {
	case stepEnrol:
		r.err = j.enrol(ctx)
		var refused *refusal
		r.final = errors.As(r.err, &refused)
		r.pending = errors.Is(r.err, handoff.ErrNoClient)
		if r.err == nil {
			j.a.metrics.enrolSeconds.Observe(time.Since(begin).Seconds())
		}
	case stepWithdraw:
		r.err = j.withdraw(ctx)
	case stepForget:
		r.err = j.forget(ctx)
	}
	r.held, r.released = j.held, j.released
	if r.err == nil {
		j.a.metrics.done(j.step)
	}
	return r
}

func (j *job) name() string {
	switch {
	case j.pod != nil:
		return podName(j.pod)
	case j.held != nil:
		return j.held.name
	}
	return j.uid
}

// refusal is a pod that cannot be captured at all, however often it is tried.
type refusal struct{ reason string }

func (r *refusal) Error() string { return r.reason }

// enrol brings the pod into the mesh. Every step is a no-op when it is done
// already, so the same call enrols, completes and repairs.
func (j *job) enrol(ctx context.Context) error {
	fresh := j.held == nil || !j.held.complete()
	err := j.capture(ctx)
	if err == nil {
		n := len(j.held.older)
		err = j.a.kube.annotate(ctx, j.pod, map[string]string{annotationRedirect: redirectionEnabled, annotationReason: "", annotationOlder: number(n), annotationLimits: j.held.limits()})
		if err == nil {
			j.held.said = true
			j.a.older.heard(j.uid, n)
		}
		if err == nil && fresh {
			j.a.log.Info("pod captured", "pod", podName(j.pod), "uid", j.uid, "container", j.held.containerID, "addresses", j.held.addrs, "olderConnections", n)
		}
		return err
	}
	state := ""
	switch {
	case j.held != nil && j.held.set:
		state = redirectionPending
	case j.before != nil:
		// The agent before captured it and nobody has undone that.
		state = j.pod.Annotations[annotationRedirect]
	}
	said := map[string]string{annotationReason: err.Error()}
	var refused *refusal
	advertised := j.pod.Annotations[annotationRedirect] == redirectionEnabled || j.held != nil && j.held.said
	if errors.As(err, &refused) || !advertised {
		said[annotationRedirect] = state
	}
	// Otherwise "enabled" stays: a pod that peers reach by mTLS must not become
	// one that they reach in plaintext because its agent or ztunnel is away.
	return errors.Join(err, j.a.kube.annotate(ctx, j.pod, said))
}

func (j *job) capture(ctx context.Context) error {
	if err := j.locate(ctx); err != nil {
		return err
	}
	foreign, err := j.examine()
	if err != nil {
		return err
	}
	h := j.held
	if err := j.sockets(ctx); err != nil {
		return err
	}
	if err := j.wish(); err != nil {
		return err
	}
	if h.set {
		cfg := h.config(j.a, j.pod)
		cfg.ProxyCgroups = j.a.proxies.list()
		if err := j.a.kubelet.with(func(ids []uint64) error {
			cfg.ProbeCgroups = ids
			return j.a.cfg.Redirector.Check(cfg)
		}); err != nil {
			j.a.log.Warn("capture has drifted and is repaired", "pod", podName(j.pod), "err", err)
			j.a.metrics.repairs.Inc()
			h.set, h.proven = false, false
			// Connections may have been made past it: they are counted, and
			// ztunnel is handed the pod again to look for them.
			h.drained, h.counted, h.acked = true, false, false
		}
	}
	if !h.set && !h.once && !j.adding && j.before == nil && len(j.a.zds.Clients()) == 0 {
		// Enrolling a pod that runs must not be an outage: with capture on and
		// nobody to serve it, its calls would wait for the first ztunnel.
		return handoff.ErrNoClient
	}
	if !h.set {
		h.once = true
		if err := j.set(); err != nil {
			return err
		}
		h.set = true
		// Not so after a repair: nobody knows what went past meanwhile.
		h.fromStart = j.adding && !h.drained
	}
	j.count()
	if h.unwatch == nil {
		h.unwatch = j.a.watch(ctx, j.uid, podName(j.pod), h.ns, h.survey)
	}
	if !h.acked {
		written := make(chan struct{})
		j.a.events <- event{intend: &intention{h.intended(j.pod), written}}
		<-written // the loop outlives its jobs
	}
	p := handoff.Pod{
		UID: j.uid, Name: j.pod.Name, Namespace: j.pod.Namespace, ServiceAccount: j.pod.Spec.ServiceAccountName,
		NS: h.ns, FromStart: h.fromStart,
	}
	if l := h.listeners; l != nil {
		p.Listeners = &handoff.Listeners{Outbound: l.Outbound, Inbound: l.Inbound, HBONE: l.HBONE, DNSTCP: l.DNSTCP, DNSUDP: l.DNSUDP}
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	j.a.served.put(servedPod{p, h.containerID, h.addrs})
	if h.foreign && h.acked {
		var err error
		if h.acked, err = j.a.cfg.Redirector.Filled(h.containerID, h.addrs); err != nil {
			return err
		}
	}
	if !h.acked {
		if err := j.a.zds.Add(ctx, p); err != nil {
			return err
		}
		h.acked = true
	}
	if !h.proven {
		if err := j.prove(ctx); err != nil {
			return err
		}
		h.proven = true
	}
	if foreign != "" {
		return j.foreign(ctx, foreign)
	}
	return nil
}

// set turns capture on. The pod learns the cgroups of all proxies there are; a
// later one is made known to it by itself.
func (j *job) set() error {
	h := j.held
	if j.a.proxies.checking() {
		ids, err := makers(h.ns, h.sockets)
		if err != nil {
			return err
		}
		j.a.proxies.learn(ids...)
	}
	return j.a.kernel(func() error {
		return j.a.proxies.with(func(ids []uint64) error {
			cfg := h.config(j.a, j.pod)
			cfg.ProxyCgroups = ids
			return j.a.kubelet.with(func(ids []uint64) error {
				cfg.ProbeCgroups = ids
				return j.a.cfg.Redirector.Set(cfg)
			})
		})
	})
}

// count finds the connections that are older than capture, directly after it
// began; an agent that comes later goes by what the one before has found.
func (j *job) count() {
	h := j.held
	if h.counted {
		h.older = j.a.older.of(j.uid)
		return
	}
	h.counted = true
	if j.adding {
		return // the sandbox is new, no process is in it yet
	}
	all, err := h.ns.Connections()
	if err != nil {
		j.a.log.Warn("connections older than capture cannot be counted", "pod", podName(j.pod), "err", err)
		return
	}
	if b := j.before; b != nil && b.ContainerID == h.containerID && b.Cookie == h.cookie && !h.drained {
		h.older = living(b.Older, all)
	} else {
		h.older = nil
		for _, s := range netns.Uncaptured(all) {
			h.older = append(h.older, s.Cookie)
		}
	}
	j.a.older.track(j.uid, h.ns, h.older)
}

// watch has the pod looked at again whenever an address or a device of its
// namespace comes or goes: capture must know all of them.
func (a *Agent) watch(ctx context.Context, uid, name string, ns *netns.NS, seen redirect.Survey) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	first := true
	wg.Go(func() {
		err := redirect.Watch(ctx, ns, func(now addrs, devices []string) {
			if first {
				first = false
				// What came between Set and here would not be told again.
				if seen.Same(now, devices) {
					return
				}
			}
			a.tell(ctx, event{moved: uid})
		})
		if err != nil && ctx.Err() == nil {
			a.log.Warn("addresses of a pod are not watched any more; looked at with the drift check only", "pod", name, "err", err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// listen gets the pod's listeners: back from a ztunnel that has them from the
// agent before, or new ones.
func (j *job) listen() error {
	h := j.held
	if j.before != nil && j.before.ContainerID == h.containerID && j.before.Cookie == h.cookie {
		var clients []client
		for _, c := range j.a.zds.Clients() {
			clients = append(clients, client{c.PID, c.Since})
		}
		l, err := j.a.old.take(clients, *j.before)
		if err != nil {
			j.a.log.Warn("cannot take a pod's listeners back from ztunnel, making new ones", "pod", podName(j.pod), "err", err)
		}
		if l != nil {
			h.listeners, h.sockets = l, j.before.Sockets
			j.a.log.Debug("pod's listeners taken back from ztunnel", "pod", podName(j.pod))
			return nil
		}
	}
	l, err := redirect.Listen(h.ns, h.addrs)
	if errors.Is(err, unix.EADDRINUSE) && h.foreign {
		l, err = redirect.ListenBeside(h.ns, h.addrs)
	}
	if errors.Is(err, unix.EADDRINUSE) && j.before != nil {
		return fmt.Errorf("its listeners are held by a ztunnel that has not connected yet: %w", err)
	}
	if err != nil {
		return err
	}
	if !h.wishes.dns {
		// A socket without a reader would swallow the pod's queries.
		for _, f := range []*os.File{l.DNSTCP, l.DNSUDP} {
			if f != nil {
				f.Close()
			}
		}
		l.DNSTCP, l.DNSUDP = nil, nil
	}
	h.listeners = l
	h.sockets, err = name(l)
	return err
}

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
