package ztunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/hbone/pool"
	"github.com/ambitmesh/ambit/ztunnel/dns"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/ambitmesh/ambit/ztunnel/older"
	"github.com/ambitmesh/ambit/ztunnel/outbound"
	"github.com/prometheus/client_golang/prometheus"
)

// Certificates is where identities come from. Prefetch and Forget say which
// are wanted before a connection asks.
type Certificates interface {
	identity.Source
	Prefetch(identity.ID)
	Forget(identity.ID)
}

// Config of a Node.
type Config struct {
	NodeName string // "" takes workloads of any node for local
	Version  string
	Tag      string // what istio_build says instead
	Unfit    error  // why no pod can be served by this process; nil: they can
	Socket   string // the node agent's ZDS socket
	// AdminAddr, StatsAddr and ReadyAddr are host:port; "" leaves one out. With
	// IPv4Only none of them listens to IPv6.
	AdminAddr, StatsAddr, ReadyAddr string
	IPv4Only                        bool
	OwnPorts                        bool          // listeners of our own making are not shared with a successor
	Grace                           time.Duration // how long open connections may go on at the end
	Progress                        time.Duration // how often a long connection is logged; 0: at its end only
	PolicyInfo                      bool          // decisions of policy are logged at level info, not debug

	Store        *mesh.Store
	Synced       <-chan struct{} // closed once Store holds the control plane's state
	Certificates Certificates
	Denied       func(error) bool   // whether an error of Certificates is the CA's refusal; may be nil
	CertStates   func() []CertState // for the dump; may be nil
	DumpConfig   map[string]any     // the key "config" of the dump
	HBONE        hbone.Config
	Pool         pool.Config
	Quotas       Quotas
	Demand       live.Demand // asks for what Store may lack; nil: it lacks nothing
	KeepAlive    live.KeepAlive
	DNS          dns.Settings
	Own          Own
	Inbound      InboundSettings
	Resolve      outbound.Ask // host names of workloads; nil: as the system does
	SOCKS        bool         // a SOCKS5 proxy on the loopback of every pod
	Egress       outbound.Egress
	Registry     *prometheus.Registry
	Logger       *slog.Logger
	Levels       *live.Levels
}

// Node serves the pods of one node.
type Node struct {
	// immutable
	cfg       Config
	table     *live.Table
	pool      *pool.Pool
	quota     *live.Quota // nil: bounds nothing
	older     *older.Watch
	metrics   nodeMetrics
	dns       *dns.Metrics
	names     *outbound.Names // shared by all pods
	ready     *readiness
	ops       chan func(*podSet)
	quit      chan struct{}
	quitNow   func()
	ownerGone chan struct{} // closed when ops is no longer read
}

// New makes a Node; it has no effects before Run but registering metrics.
func New(cfg Config) *Node {
	metrics := live.NewMetrics(cfg.Registry)
	if v := newRevocation(cfg.Certificates, cfg.Registry); v != nil {
		cfg.HBONE.Watch = v.watch
	}
	n := &Node{
		cfg:       cfg,
		table:     live.New(live.Config{Progress: cfg.Progress, PolicyInfo: cfg.PolicyInfo, Store: cfg.Store, Metrics: metrics, Registerer: cfg.Registry, Logger: cfg.Logger}),
		pool:      pool.New(cfg.Pool),
		quota:     cfg.Quotas.quota(cfg.Registry),
		metrics:   newNodeMetrics(cfg.Registry, cmp.Or(cfg.Tag, cfg.Version)),
		dns:       dns.NewMetrics(cfg.Registry),
		names:     outbound.NewNames(cfg.Resolve),
		ready:     newReadiness(descriptors, cfg.Logger, "state manager", "proxy", "dns proxy", "workload proxy manager"),
		ops:       make(chan func(*podSet)),
		quit:      make(chan struct{}),
		ownerGone: make(chan struct{}),
	}
	if cfg.Unfit != nil {
		n.ready.pending("capabilities") // for ever
	}
	n.older = older.New(older.Config{Node: cfg.NodeName, Store: cfg.Store, Table: n.table, Registerer: cfg.Registry, Logger: cfg.Logger})
	cfg.Quotas.report(cfg.Registry, cfg.HBONE.Budget)
	n.quitNow = sync.OnceFunc(func() { close(n.quit) })
	return n
}

// Run serves until ctx ends or /quitquitquit is posted, drains, and returns
// when everything it started has ended. An error means the node cannot do its
// work: an address is taken, or the agent broke the protocol.
func (n *Node) Run(ctx context.Context) error {
	servers, err := n.listen()
	if err != nil {
		return err
	}
	// What is below outlives ctx: connections drain with policy, metrics and
	// the agent's removals still working.
	run, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	start := func(what string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(run); err != nil {
				stop(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	for _, s := range servers {
		start(s.name, s.run)
	}
	wg.Go(func() { n.own(run) })
	start("open connections", n.table.Run)
	start("older connections", n.older.Run)
	start("certificates", n.prefetch)
	start("node agent", n.agent)
	start("own inbound", n.serveOwn)
	n.ready.done("proxy")
	n.ready.done("dns proxy")

	select {
	case <-ctx.Done():
	case <-n.quit:
	case <-run.Done():
	}
	if run.Err() == nil {
		n.cfg.Logger.Info("draining", "open connections", n.table.Len(nil), "deadline", n.cfg.Grace)
		n.ready.pending("proxy")
		n.drain(run)
	}
	stop(errStopped)
	wg.Wait()
	n.pool.Close()
	if err := context.Cause(run); !errors.Is(err, errStopped) {
		return err
	}
	return nil
}

var errStopped = errors.New("stopped")

// agent speaks with the node agent once there is something to serve pods with:
// the mesh's state, and the certificates of the workloads known to be local.
func (n *Node) agent(ctx context.Context) error {
	select {
	case <-n.cfg.Synced:
	case <-ctx.Done():
		return nil
	}
	n.ready.done("state manager")
	n.warm(ctx)
	return handoff.RunClient(ctx, handoff.ClientConfig{
		Path: n.cfg.Socket, Version: n.cfg.Version, Slots: true, Handler: n,
		Ready:  func(ok bool) { n.do(func(s *podSet) { s.connected(ok) }) },
		Logger: n.cfg.Logger,
	})
}

// do runs f on the goroutine that owns the pods and waits for it; after the
// end it does nothing.
func (n *Node) do(f func(*podSet)) bool {
	done := make(chan struct{})
	op := func(s *podSet) { defer close(done); f(s) }
	select {
	case n.ops <- op:
		<-done
		return true
	case <-n.ownerGone:
		return false
	}
}

// Add implements handoff.Handler.
func (n *Node) Add(_ context.Context, p handoff.Pod) error {
	err := errors.New("ztunnel is ending")
	if !n.do(func(s *podSet) { err = s.add(p) }) {
		p.Close()
	}
	return err
}

// Del implements handoff.Handler.
func (n *Node) Del(uid string) { n.do(func(s *podSet) { s.del(uid) }) }

// Retire implements handoff.Handler.
func (n *Node) Retire(uid string) { n.do(func(s *podSet) { s.retire(uid) }) }

// Keep implements handoff.Handler.
func (n *Node) Keep(uid string) { n.do(func(s *podSet) { s.keep(uid) }) }

// SnapshotDone implements handoff.Handler.
func (n *Node) SnapshotDone() { n.do(func(s *podSet) { s.snapshotDone() }) }
