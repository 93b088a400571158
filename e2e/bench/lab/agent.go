package lab

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// agent is the node agent's half: capture and hand-over. Which pods are
// enrolled is the bench's decision.
type agent struct {
	n      *Node
	root   string // of the pins
	r      *redirect.Redirector
	server *handoff.Server
	cancel context.CancelFunc
	done   chan error

	mu   sync.Mutex
	pods map[string]handoff.Pod     // guarded by mu
	caps map[string]redirect.Config // guarded by mu
}

func newAgent(n *Node, pins string) (*agent, error) {
	log := slog.New(slog.DiscardHandler)
	a := &agent{n: n, root: pins, pods: map[string]handoff.Pod{}, caps: map[string]redirect.Config{}, done: make(chan error, 1)}
	var err error
	if a.r, err = redirect.New(redirect.Options{PinRoot: pins, Logger: log}); err != nil {
		return nil, err
	}
	if a.server, err = handoff.Listen(n.socket(), handoff.ServerConfig{Snapshot: a.snapshot, Logger: log}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() { a.done <- a.server.Run(ctx) }()
	return a, nil
}

// stop ends the hand-over, then every capture.
func (a *agent) stop() error {
	a.cancel()
	errs := []error{<-a.done}
	if errors.Is(errs[0], context.Canceled) {
		errs = nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, c := range a.caps {
		errs = append(errs, a.r.Clear(id, c.NS), c.Listeners.Close())
	}
	return errors.Join(errs...)
}

func (a *agent) snapshot() []handoff.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.pods))
}

func (a *agent) capture(p *Pod) (redirect.Config, error) {
	l, err := redirect.Listen(p.NS, []netip.Addr{p.Addr})
	if err != nil {
		return redirect.Config{}, err
	}
	// The data plane is measured without DNS capture.
	_, _ = l.DNSTCP.Close(), l.DNSUDP.Close()
	l.DNSTCP, l.DNSUDP = nil, nil
	cfg := redirect.Config{ContainerID: p.uid, UID: p.uid, NS: p.NS, Addrs: []netip.Addr{p.Addr}, Listeners: l}
	if err := a.r.Set(cfg); err != nil {
		_ = l.Close()
		return redirect.Config{}, err
	}
	a.mu.Lock()
	a.caps[p.uid] = cfg
	a.mu.Unlock()
	return cfg, nil
}

// Capture redirects the pod without a ztunnel and returns the socket that
// takes what the pod's processes dial. It stays owned by the lab.
func (p *Pod) Capture() (*os.File, error) {
	cfg, err := p.Node.agent.capture(p)
	if err != nil {
		return nil, err
	}
	return cfg.Listeners.Outbound, nil
}

func (a *agent) enrol(ctx context.Context, p *Pod) error {
	cfg, err := a.capture(p)
	if err != nil {
		return err
	}
	h := handoff.Pod{UID: p.uid, Name: p.Name, Namespace: Namespace, ServiceAccount: p.Name, NS: p.NS,
		Listeners: &handoff.Listeners{Outbound: cfg.Listeners.Outbound, Inbound: cfg.Listeners.Inbound, HBONE: cfg.Listeners.HBONE}}
	a.mu.Lock()
	a.pods[p.uid] = h
	a.mu.Unlock()
	if err := a.server.Add(ctx, h); err != nil {
		return err
	}
	return redirect.Prove(ctx, a.n.NS, p.NS, cfg.Addrs)
}

// release takes the pod out of the mesh: new connections go direct first, then
// ztunnel lets go of it, then everything in its namespace.
func (a *agent) release(ctx context.Context, p *Pod) error {
	a.mu.Lock()
	cfg, ok := a.caps[p.uid]
	delete(a.caps, p.uid)
	delete(a.pods, p.uid)
	a.mu.Unlock()
	if !ok {
		return nil
	}
	return errors.Join(a.r.Drain(p.uid), a.server.Del(ctx, p.uid), a.r.Clear(p.uid, p.NS), cfg.Listeners.Close())
}

// pins counts the eBPF objects the agent keeps by name.
func (a *agent) pins() (int, error) {
	n := 0
	err := filepath.WalkDir(a.root, func(_ string, d fs.DirEntry, err error) error {
		// A pod that goes meanwhile takes its folder along.
		if err == nil && !d.IsDir() {
			n++
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return n, err
}
