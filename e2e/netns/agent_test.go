package netns_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/cni/redirect"
	"golang.org/x/sys/unix"
)

// agent is the node agent's half: capture and hand-over. Which pods are
// enrolled is the tests' decision.
type agent struct {
	t      testing.TB
	n      *node
	r      *redirect.Redirector
	server *handoff.Server
	stop   func()

	mu   sync.Mutex
	pods map[string]*enrolled // guarded by mu
}

type enrolled struct {
	pod       *pod
	cfg       redirect.Config
	listeners *redirect.Listeners
	unwatch   func()
}

func (e *enrolled) handoff() handoff.Pod {
	return handoff.Pod{
		UID: e.pod.uid, Name: e.pod.name, Namespace: "demo", ServiceAccount: e.pod.sa, NS: e.pod.ns,
		Listeners: &handoff.Listeners{Outbound: e.listeners.Outbound, Inbound: e.listeners.Inbound, HBONE: e.listeners.HBONE,
			DNSTCP: e.listeners.DNSTCP, DNSUDP: e.listeners.DNSUDP},
	}
}

func newAgent(t testing.TB, n *node) *agent {
	t.Helper()
	a := &agent{t: t, n: n, pods: map[string]*enrolled{}}
	var err error
	a.r, err = redirect.New(redirect.Options{PinRoot: bpffs(t), Clsact: n.w.clsact, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	a.start()
	t.Cleanup(func() { a.stop() })
	return a
}

// start opens the hand-over; stop is the agent dying: its descriptors, and so
// its copies of the listeners, stay with the test.
func (a *agent) start() {
	a.t.Helper()
	s, err := handoff.Listen(a.n.socket(), handoff.ServerConfig{Snapshot: a.snapshot, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	a.server, a.stop = s, func() { cancel(); <-done }
}

func (n *node) socket() string { return filepath.Join(n.w.dir, n.name+".sock") }

func bpffs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Skipf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return filepath.Join(dir, "ambit")
}

func (a *agent) snapshot() []handoff.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []handoff.Pod
	for _, e := range a.pods {
		out = append(out, e.handoff())
	}
	return out
}

func (a *agent) has(p *pod) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pods[p.uid] != nil
}

func (a *agent) take(p *pod) *enrolled {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.pods[p.uid]
	delete(a.pods, p.uid)
	return e
}

// enrol captures p, proves it, and hands p to ztunnel.
func (a *agent) enrol(p *pod) {
	t := a.t
	t.Helper()
	l, err := redirect.Listen(p.ns, p.addrs)
	if err != nil {
		t.Fatal(err)
	}
	if !p.dns {
		l.DNSTCP.Close()
		l.DNSUDP.Close()
		l.DNSTCP, l.DNSUDP = nil, nil
	}
	e := &enrolled{pod: p, listeners: l, cfg: redirect.Config{
		ContainerID: p.uid, UID: p.uid, NS: p.ns, Addrs: p.addrs, Listeners: l,
		ProbePorts: p.probes, Host: a.n.ns, ProbeSources: a.n.prefixes(t)}}
	if err := a.r.Set(e.cfg); err != nil {
		t.Fatalf("capture %s: %v", p.name, err)
	}
	e.unwatch = a.watch(e)
	t.Cleanup(func() {
		if a.take(p) == nil {
			return // released by the test
		}
		e.unwatch()
		if err := a.r.Clear(e.cfg.ContainerID, p.ns); err != nil {
			t.Errorf("clear %s: %v", p.name, err)
		}
		l.Close()
	})
	a.mu.Lock()
	a.pods[p.uid] = e
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := a.server.Add(ctx, e.handoff()); err != nil && !errors.Is(err, handoff.ErrNoClient) {
		t.Fatalf("hand over %s: %v", p.name, err)
	}
	a.prove(ctx, e)
}

// prove wants capture to be proven, and where the node has no way to the pod
// and no end of its device, to be as it was set.
func (a *agent) prove(ctx context.Context, e *enrolled) {
	t := a.t
	t.Helper()
	s, err := redirect.Look(a.n.ns, e.pod.ns)
	if err != nil {
		t.Fatal(err)
	}
	if s.HostEnd() != (e.pod.device != "") || s.Devices[0].HostEnd != e.pod.device {
		t.Fatalf("%s: the node's end is %s, found %+v", e.pod.name, e.pod.device, s)
	}
	if !s.HostEnd() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Second)
		defer cancel()
	}
	err = redirect.Prove(ctx, a.n.ns, e.pod.ns, e.cfg.Addrs)
	var away *redirect.UnreachableError
	if errors.As(err, &away) && !s.HostEnd() {
		err = a.r.Check(e.cfg)
	}
	if err != nil {
		t.Fatalf("%s: %v", e.pod.name, err)
	}
}

// watch sets the pod again when its addresses or devices change, as the node
// agent does.
func (a *agent) watch(e *enrolled) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	first := true
	wg.Go(func() {
		err := redirect.Watch(ctx, e.pod.ns, func([]netip.Addr, []string) {
			if first {
				first = false
				return
			}
			if err := a.r.Set(e.cfg); err != nil {
				a.t.Errorf("capture %s again: %v", e.pod.name, err)
			}
		})
		if err != nil && ctx.Err() == nil {
			a.t.Errorf("watch %s: %v", e.pod.name, err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// interrupt takes p out as an un-label does, and before it has left does
// something and takes it back in.
func (a *agent) interrupt(p *pod, meanwhile func()) {
	t := a.t
	t.Helper()
	a.mu.Lock()
	e := a.pods[p.uid]
	a.mu.Unlock()
	if err := a.r.Drain(e.cfg.ContainerID); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	if err := a.r.Set(e.cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := a.server.Add(ctx, e.handoff()); err != nil {
		t.Fatal(err)
	}
}

// reroute takes what comes in over a device of the pod for the pod's own, as
// the annotation istio.io/reroute-virtual-interfaces asks.
func (a *agent) reroute(p *pod, devices ...string) {
	a.t.Helper()
	a.mu.Lock()
	e := a.pods[p.uid]
	a.mu.Unlock()
	e.cfg.Reroute = devices
	if err := a.r.Set(e.cfg); err != nil {
		a.t.Fatal(err)
	}
}

// release ends capture of p.
func (a *agent) release(p *pod) {
	t := a.t
	t.Helper()
	e := a.take(p)
	e.unwatch()
	if err := a.r.Drain(e.cfg.ContainerID); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := a.server.Del(ctx, p.uid); err != nil {
		t.Fatal(err)
	}
	if err := a.r.Clear(e.cfg.ContainerID, p.ns); err != nil {
		t.Fatal(err)
	}
	e.listeners.Close()
}
