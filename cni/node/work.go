package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/cri"
	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

type addrs = []netip.Addr

// held is what has been set up for a pod. Exactly one goroutine has it: the
// loop, or the job it was given to.
type held struct {
	uid         string
	name        string
	containerID string
	path        string // of the namespace, on the host
	ns          *netns.NS
	cookie      uint64
	addrs       addrs
	strange     addrs // the API server's, but on no device: those of an earlier sandbox
	listeners   *redirect.Listeners
	sockets     []enroll.IntendedSocket

	set    bool // capture is on
	once   bool // it was at some time, and stays on or comes back without a ztunnel too
	acked  bool // a ztunnel serves it
	proven bool
	said   bool // the pod says so; the watch may not have it yet

	survey    redirect.Survey // how the pod is connected, as last seen
	inspected bool            // inbound capture could not be tried, only compared
	open      []uint16        // ports at which every process of the node passes for the kubelet
	fromStart bool            // captured before any process of it ran, and ever since

	drained bool     // un-enrolment had begun: connections were made past the mesh
	counted bool     // older is known
	older   []uint64 // connections that capture found open, by cookie

	unwatch func() // ends the watch of its addresses and devices and waits
}

func (h *held) complete() bool { return h.set && h.acked && h.proven }

// outdated reports whether the pod runs elsewhere or has other addresses than
// what was set up for.
func (h *held) outdated(s sandbox, now addrs) bool {
	if s.id != "" && s.id != h.containerID {
		return true
	}
	return slices.ContainsFunc(now, func(a netip.Addr) bool { return !slices.Contains(h.addrs, a) && !slices.Contains(h.strange, a) })
}

func (h *held) config(a *Agent, pod *corev1.Pod) redirect.Config {
	cfg := redirect.Config{
		ContainerID: h.containerID,
		UID:         h.uid,
		NS:          h.ns,
		Addrs:       h.addrs,
		Listeners:   h.listeners,
		Host:        a.cfg.Host,
	}
	if pod == nil {
		return cfg
	}
	if cfg.ProbePorts = ProbePorts(pod); len(cfg.ProbePorts) > 0 {
		// Used only where probes cannot be stamped. Without any the pod is
		// refused then, and says so.
		cfg.ProbeSources, _ = redirect.Sources(a.cfg.Host, h.addrs)
	}
	return cfg
}

func (h *held) intended(pod *corev1.Pod) enroll.IntendedPod {
	p := enroll.IntendedPod{UID: h.uid, ContainerID: h.containerID, Cookie: h.cookie, Netns: h.path, Sockets: h.sockets, Older: h.older}
	if pod != nil {
		p.Namespace, p.Name = pod.Namespace, pod.Name
	}
	return p
}

// close lets the descriptors go. Sockets end when ztunnel has closed its
// copies too.
func (h *held) close() {
	if h.unwatch != nil {
		h.unwatch()
	}
	if h.listeners != nil {
		h.listeners.Close()
	}
	if h.ns != nil {
		h.ns.Close()
	}
	h.listeners, h.ns = nil, nil
}

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
	if h.listeners == nil {
		if err := j.listen(); err != nil {
			return err
		}
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
		Listeners: &handoff.Listeners{
			Outbound: h.listeners.Outbound, Inbound: h.listeners.Inbound, HBONE: h.listeners.HBONE,
			DNSTCP: h.listeners.DNSTCP, DNSUDP: h.listeners.DNSUDP,
		},
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	j.a.served.put(p)
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

// locate opens the pod's network namespace and settles which sandbox it is.
func (j *job) locate(ctx context.Context) error {
	want := j.sandbox
	if want.id == "" && j.held == nil {
		found, err := j.ask(ctx)
		if err != nil {
			return err
		}
		want = found
	}
	if h := j.held; h != nil && (want.id == "" || want.id == h.containerID) {
		if len(h.strange) > 0 || h.outdated(sandbox{}, podAddrs(j.pod)) {
			now, strange, err := j.addresses(h.ns, h.addrs)
			if err != nil {
				return err
			}
			h.strange = strange
			if len(now) > len(h.addrs) {
				// Another address: programs and listeners are made to know it.
				h.addrs = now
				h.set, h.proven = false, false
			}
		}
		return nil
	}
	ns, err := j.a.cfg.HostRoot.Netns(want.netns)
	if err != nil {
		return err
	}
	cookie, err := ns.Cookie()
	if err != nil {
		ns.Close()
		return err
	}
	if ns.ID() == j.a.cfg.Host.ID() {
		ns.Close()
		return &refusal{"its sandbox is in the node's network namespace"}
	}
	now, strange, err := j.addresses(ns, want.addrs)
	if err == nil && len(now) == 0 {
		err = errors.New("the pod has no address yet")
	}
	if err != nil {
		ns.Close()
		return err
	}
	if j.held != nil {
		// The pod has a new sandbox; the old one's namespace is going away.
		if err := j.forgetHeld(ctx, false); err != nil {
			ns.Close()
			return err
		}
	}
	j.held = &held{uid: j.uid, name: podName(j.pod), containerID: want.id, path: want.netns, ns: ns, cookie: cookie, addrs: now, strange: strange}
	return nil
}

// addresses are those of a sandbox: what is known of it, and what the API server
// says if it can be true. While a pod gets another sandbox the API server has the
// addresses of the former one, at which nobody answers any more.
func (j *job) addresses(ns *netns.NS, known addrs) (now, strange addrs, err error) {
	now = slices.Clone(known)
	for _, a := range podAddrs(j.pod) {
		if slices.Contains(now, a) {
			continue
		}
		if len(known) > 0 {
			s, err := redirect.Look(nil, ns)
			if err != nil {
				return nil, nil, err
			}
			if !slices.Contains(s.Addrs, a) {
				strange = append(strange, a)
				continue
			}
		}
		now = append(now, a)
	}
	return now, strange, nil
}

// ask finds the sandbox of a pod that was there before the agent.
func (j *job) ask(ctx context.Context) (sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	rt, err := j.a.runtime()
	if err != nil {
		return sandbox{}, err
	}
	defer rt.Close()
	s, err := rt.Find(ctx, runtimeUID(j.pod))
	if err != nil {
		return sandbox{}, err
	}
	d, err := rt.Detail(ctx, s.ID)
	if err != nil {
		return sandbox{}, err
	}
	if name, own := cri.OwnStack(s.Handler, d.Runtime); own {
		return sandbox{}, &refusal{fmt.Sprintf("runtime %s does not use this kernel's network stack", name)}
	}
	return sandbox{id: s.ID, netns: d.Netns}, nil
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
	if errors.Is(err, unix.EADDRINUSE) && j.before != nil {
		return fmt.Errorf("its listeners are held by a ztunnel that has not connected yet: %w", err)
	}
	if err != nil {
		return err
	}
	if !j.a.cfg.DNS {
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
		ns, err := j.a.cfg.HostRoot.Netns(j.before.Netns)
		if err != nil {
			ns = nil // gone with its sandbox; the pins are not
		} else if cookie, err := ns.Cookie(); err != nil || cookie != j.before.Cookie {
			ns.Close()
			ns = nil
		}
		j.held = &held{uid: j.uid, name: podName(j.pod), containerID: j.before.ContainerID, cookie: j.before.Cookie, path: j.before.Netns, ns: ns}
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
	if j.held == nil {
		return nil
	}
	if err := j.forgetHeld(ctx, true); err != nil {
		return err
	}
	j.a.log.Info("pod has ended", "pod", name, "uid", j.uid)
	return nil
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

// podAddrs are the addresses the API server knows the pod by.
func podAddrs(p *corev1.Pod) addrs {
	if p == nil {
		return nil
	}
	var out addrs
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
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
