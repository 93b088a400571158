package inbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// connectTimeout is the reference's, for the TCP connect to the application.
const connectTimeout = 10 * time.Second

// Dialer opens sockets in the pod's namespace; *netns.NS is one.
type Dialer interface {
	DialTCP(ctx context.Context, local, remote netip.AddrPort, o netns.SocketOptions) (*net.TCPConn, error)
}

// maxHandshakes is how many HBONE handshakes a pod has under way at most, and
// handshakeTime how long each of them may take when others wait.
const (
	maxHandshakes = 64
	handshakeTime = time.Second
)

// Config of a Proxy.
type Config struct {
	Pod    *live.Pod
	Node   string
	Dialer Dialer
	Store  *mesh.Store
	Source identity.Source
	Table  *live.Table
	HBONE  hbone.Config
	// Denied reports whether an error of Source is the CA's refusal. May be nil.
	Denied func(error) bool
	// Original gives what a plaintext client dialled. nil: the accepted
	// socket's local address, which is right where capture does no NAT.
	Original func(*net.TCPConn) netip.AddrPort
	// Ports are those of ztunnel's own listeners in the pod.
	Ports []uint16
	// Share is the pod's of the node's connections; nil bounds nothing.
	Share *live.Share
	// Demand asks for what a peer names and the store may lack; nil: it lacks none.
	Demand live.Demand
	// KeepAlive of plaintext connections and of those to the application.
	KeepAlive live.KeepAlive
	// HandshakeRate is how many HBONE handshakes the pod gets per second, in the
	// long run; 0: any number.
	HandshakeRate float64
	// NoLoopback: application tunnels with the PROXY protocol are dialled at the
	// pod's address, not at loopback.
	NoLoopback bool
	// NoBaggage: neither say who the destination is nor believe what clients say of
	// themselves in telemetry.
	NoBaggage bool
	// OwnSource: the application is dialled from an address of its own, not from
	// the client's.
	OwnSource bool
}

// Proxy takes what one pod is sent.
type Proxy struct {
	cfg     Config       // immutable
	tunnels hbone.Config // immutable
	ports   spoofed
	gate    *live.Gate // of the pod's HBONE listeners together

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu; HBONE connections, to close them hard
}

// New makes a Proxy.
func New(cfg Config) *Proxy {
	if cfg.Original == nil {
		cfg.Original = func(c *net.TCPConn) netip.AddrPort { return live.AddrPort(c.LocalAddr()) }
	}
	if cfg.Denied == nil {
		cfg.Denied = func(error) bool { return false }
	}
	p := &Proxy{cfg: cfg, tunnels: cfg.HBONE, conns: map[net.Conn]struct{}{}}
	p.tunnels.ReadsClient = true
	p.gate = live.NewGate(live.GateConfig{
		Limit: maxHandshakes, Patience: handshakeTime, Rate: cfg.HandshakeRate,
		Refused: func(c net.Conn, why *live.Error) { p.refuse(c.(*net.TCPConn), why) },
		Delayed: func() { p.cfg.Table.Metrics().HandshakesDelayed() },
	})
	return p
}

// ServePlain accepts plaintext connections until ln is closed and returns when
// the last has ended. The end of ctx gives up connections that are still being
// set up; open ones are ended through the table.
func (p *Proxy) ServePlain(ctx context.Context, ln net.Listener) error {
	return live.AcceptLoop(ln, func(c *net.TCPConn) { p.plain(ctx, c) }, p.cfg.Table.AcceptPaused)
}

func (p *Proxy) plain(ctx context.Context, c *net.TCPConn) {
	src, dst := live.AddrPort(c.RemoteAddr()), p.cfg.Original(c)
	if live.IsProof(live.Destination, dst) {
		c.Close()
		return
	}
	defer p.cfg.Table.Metrics().SocketOpened(live.Destination)()
	p.cfg.KeepAlive.Set(c)
	rec := p.cfg.Table.Accept(p.cfg.Pod, live.Destination)
	fail := func(err error) {
		live.Reset(c)
		rec.Deny(src, dst, err)
	}
	if err := p.notOurs(dst.Port()); err != nil {
		fail(err)
		return
	}
	const cost = 2 * live.CostConn
	if err := p.cfg.Share.Take(cost); err != nil {
		fail(err)
		return
	}
	defer p.cfg.Share.Give(cost)
	snap, self, err := live.Local(ctx, p.cfg.Store, p.cfg.Node, p.cfg.Pod)
	if err != nil {
		fail(err)
		return
	}
	p.ports.hold(src)
	defer p.ports.release(src)
	check := &live.Check{Workload: self, Conn: authz.Conn{Src: src, Dst: dst}}
	rec.Open(live.Facts{
		Src: src, Dst: dst, Original: dst, Check: check, Destination: self,
		Source: snap.WorkloadAt(self.Network, src.Addr()), Service: destinationService(snap, self, "", dst.Port()),
	})
	if err := p.authorize(ctx, check); err != nil {
		fail(err)
		return
	}
	from := src
	if p.cfg.OwnSource {
		from = dst
	}
	app, local, err := p.dial(ctx, from, dst)
	if err != nil {
		fail(err)
		return
	}
	defer p.ports.release(local)
	pipe := live.NewPipe(c, app)
	rec.Count(pipe)
	rec.OnCut(pipe.Cut)
	rec.End(pipe.Run())
}

// notOurs refuses ports of our own listeners: such a connection would be
// accepted by ourselves, routed again, and so on without end.
func (p *Proxy) notOurs(port uint16) error {
	if illegal(port) || slices.Contains(p.cfg.Ports, port) {
		return live.Errorf(live.SelfCall, "port %d is the mesh's own", port)
	}
	return nil
}

// authorize asks policy, and again for a while when a policy that the workload
// names has not arrived yet.
func (p *Proxy) authorize(ctx context.Context, check *live.Check) error {
	var v authz.Verdict
	asked, ok := live.Wait(ctx, p.cfg.Store, func(s *mesh.Snapshot) bool {
		w := check.Workload
		if cur := s.Workload(w.UID); cur != nil {
			w = cur
		}
		v = authz.Decide(s, w, check.Conn)
		return !v.Pending
	})
	p.cfg.Table.Decided(asked, check)
	switch {
	case ok && v.Allow:
		return nil
	case v.Pending:
		return live.Errorf(live.PolicyPending, "connection closed due to policy rejection: %s", v.Reason)
	}
	if v.Direct {
		return live.Errorf(live.NotByWaypoint, "connection closed due to policy rejection: it came past the waypoint: %s", v.Reason)
	}
	return live.Errorf(live.DenialReason(v), "connection closed due to policy rejection: %s", v.Reason)
}

// A local port may be taken by a ztunnel that drains, or be in TIME_WAIT for a
// minute after a short connection. quietAttempts is how many of those are tried
// that clients do not choose by themselves, dialAttempts how many in all: enough
// when nine of ten are taken.
const (
	quietAttempts = 32
	dialAttempts  = 160
)

// dial connects to the application with the client's address and a port of our
// choice. The caller releases the pair.
func (p *Proxy) dial(ctx context.Context, client, app netip.AddrPort) (*net.TCPConn, netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	o := netns.SocketOptions{Mark: netns.Mark, Transparent: true}
	if client.Addr() == app.Addr() || client.Addr().Is4() != app.Addr().Is4() {
		// The pod calls itself: the address is its own, nothing to borrow.
		c, err := p.cfg.Dialer.DialTCP(ctx, netip.AddrPort{}, app, netns.SocketOptions{Mark: netns.Mark})
		if err != nil {
			return nil, netip.AddrPort{}, &live.Error{Reason: live.DialReason(err), Err: err}
		}
		return c, netip.AddrPort{}, nil
	}
	var last error
	for i := range dialAttempts {
		local, ok := p.ports.take(client, i >= quietAttempts)
		if !ok && i < quietAttempts {
			continue
		}
		if !ok {
			return nil, local, live.Errorf(live.ConnectFailed, "no free source port for client %s to %s", client.Addr(), app)
		}
		c, err := p.cfg.Dialer.DialTCP(ctx, local, app, o)
		if err == nil {
			p.cfg.KeepAlive.Set(c)
			return c, local, nil
		}
		p.ports.release(local)
		last = err
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			break
		}
	}
	return nil, netip.AddrPort{}, &live.Error{Reason: live.DialReason(last), Err: last}
}
