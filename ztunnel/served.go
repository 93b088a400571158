package ztunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/ztunnel/inbound"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/ambitmesh/ambit/ztunnel/outbound"
)

// served is one pod with its listeners.
type served struct {
	// immutable
	n       *Node
	pod     handoff.Pod
	live    *live.Pod
	life    string // the pool's name for this time of serving the pod
	slots   bool
	out, in net.Listener
	hbone   []net.Listener
	dns     dnsSockets
	socks   net.Listener       // nil: there is no SOCKS5 proxy
	hard    context.CancelFunc // gives up everything
	goAway  context.CancelFunc // HBONE connections finish their streams
	done    chan struct{}      // closed when the last connection has ended
}

func (p *served) dialect() string {
	if p.slots {
		return "the node agent's"
	}
	return "ztunnel's"
}

// serve starts accepting for a pod; life is told apart from every other time of
// doing so. On error nothing is left behind but p,
// which is the caller's.
func (n *Node) serve(p handoff.Pod, life string) (*served, error) {
	v := &served{
		n: n, pod: p, life: life, done: make(chan struct{}),
		live: &live.Pod{UID: p.UID, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount},
	}
	if err := errors.Join(v.open(), v.listenSOCKS()); err != nil {
		v.closeListeners()
		return nil, err
	}
	var original func(*net.TCPConn) netip.AddrPort
	if !v.slots {
		original = originalDestination
	}
	share, tunnels := n.quota.Share(), n.cfg.Quotas.part(n.cfg.HBONE)
	var ctx, drain context.Context
	ctx, v.hard = context.WithCancel(context.Background())
	drain, v.goAway = context.WithCancel(ctx)
	out := outbound.New(outbound.Config{
		Pod: v.live, Node: n.cfg.NodeName, Dialer: p.NS, Store: n.cfg.Store, Source: n.cfg.Certificates,
		Pool: n.pool, Life: life, Table: n.table, HBONE: tunnels, Denied: n.cfg.Denied, Original: original,
		Ports: v.ports(), Share: share, Demand: n.cfg.Demand, KeepAlive: n.cfg.KeepAlive, Names: n.names,
		Egress: n.cfg.Egress,
	})
	in := inbound.New(inbound.Config{
		Pod: v.live, Node: n.cfg.NodeName, Dialer: p.NS, Store: n.cfg.Store, Source: n.cfg.Certificates,
		Table: n.table, HBONE: tunnels, Denied: n.cfg.Denied, Original: original,
		Ports: v.ports(), Share: share, Demand: n.cfg.Demand, KeepAlive: n.cfg.KeepAlive,
		HandshakeRate: n.cfg.Quotas.HandshakeRate, NoLoopback: n.cfg.Inbound.NoLoopback, NoBaggage: n.cfg.Inbound.NoBaggage,
		OwnSource: n.cfg.Inbound.OwnSource,
	})
	var wg sync.WaitGroup
	accept := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				// The listener is gone; the pod's connections on it wait in the
				// kernel until the agent hands the pod over again.
				n.cfg.Logger.Error("pod's listener failed", "pod", p.String(), "listener", what, "err", err)
			}
		})
	}
	accept("outbound", func() error { return out.Serve(ctx, v.out) })
	accept("inbound", func() error { return in.ServePlain(ctx, v.in) })
	for _, ln := range v.hbone {
		accept("hbone", func() error { return in.ServeHBONE(ctx, drain, ln) })
	}
	answers := v.answerer(share)
	v.serveDNS(ctx, answers, accept)
	if v.socks != nil {
		accept("SOCKS5", func() error { return out.ServeSOCKS(ctx, v.socks, answers.Lookup) })
	}
	if !p.FromStart {
		n.older.Add(v.live, v.sockets())
	}
	go func() {
		wg.Wait()
		v.hard()
		answers.Close()
		n.older.Remove(v.live)
		n.pool.CloseSource(life)
		share.Close()
		// A retired pod's listeners are closed already.
		if err := p.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			n.cfg.Logger.Warn("closing the pod's descriptors", "pod", p.String(), "err", err)
		}
		close(v.done)
	}()
	return v, nil
}

// open takes the listeners the agent handed over, or makes them.
func (p *served) open() error {
	l := p.pod.Listeners
	if l == nil {
		return p.listen()
	}
	p.slots = true
	if l.Outbound == nil || l.Inbound == nil || len(l.HBONE) == 0 {
		return errors.New("the node agent left out a listener: outbound, inbound and HBONE are needed")
	}
	take := func(f *os.File) (net.Listener, error) { return net.FileListener(f) }
	var err error
	if p.out, err = take(l.Outbound); err != nil {
		return err
	}
	if p.in, err = take(l.Inbound); err != nil {
		return err
	}
	for _, f := range l.HBONE {
		ln, err := take(f)
		if err != nil {
			return err
		}
		p.hbone = append(p.hbone, ln)
	}
	return p.openDNS()
}

// ports are those the listeners happen to have.
func (p *served) ports() []uint16 {
	ports := []uint16{live.AddrPort(p.out.Addr()).Port(), live.AddrPort(p.in.Addr()).Port()}
	for _, ln := range slices.Concat(p.hbone, p.dns.tcp) {
		ports = append(ports, live.AddrPort(ln.Addr()).Port())
	}
	return ports
}

// closeListeners stops accepting. Closing fails only when it was done before.
func (p *served) closeListeners() {
	for _, ln := range append([]net.Listener{p.out, p.in, p.socks}, p.hbone...) {
		if ln != nil {
			_ = ln.Close()
		}
	}
	p.dns.close()
}

// drain stops accepting. Connections go on; HBONE peers are told to use
// another connection for new ones. In the slot dialect the agent's copies of
// the listeners stay open, so that later clients wait for our successor
// instead of being refused.
func (p *served) drain() {
	p.closeListeners()
	p.goAway()
}

// retire stops accepting, and lets the agent's listeners go as well: their ports
// are wanted. Connections go on.
func (p *served) retire() {
	p.drain()
	if l := p.pod.Listeners; l != nil {
		_ = l.Close() // done closes them once more, which is no error then
	}
}

// stop ends everything at once; done tells when.
func (p *served) stop(why *live.Error) {
	p.closeListeners()
	p.n.table.CutPod(p.live, why)
	p.hard()
}
