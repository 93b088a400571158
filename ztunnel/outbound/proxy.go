package outbound

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/hbone/pool"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// connectTimeout is the reference's, for every TCP connect.
const connectTimeout = 10 * time.Second

// attempts is how many endpoints of a service are tried before a connection is
// given up. Nothing of the application's has been sent before that.
const attempts = 3

// Dialer opens sockets in the pod's namespace; *netns.NS is one.
type Dialer interface {
	DialTCP(ctx context.Context, local, remote netip.AddrPort, o netns.SocketOptions) (*net.TCPConn, error)
}

// Config of a Proxy.
type Config struct {
	Pod    *live.Pod
	Node   string
	Dialer Dialer
	Store  *mesh.Store
	Source identity.Source
	Pool   *pool.Pool // shared by all pods of the node
	// Life names this time of the pod being served in the pool: connections of
	// an earlier one under the same UID must not be used, nor cut ours with them.
	Life  string
	Table *live.Table
	HBONE hbone.Config
	// Denied reports whether an error of Source is the CA's refusal. May be nil.
	Denied func(error) bool
	// Original gives what the application dialled. nil: the accepted socket's
	// local address, which is right where capture does no NAT.
	Original func(*net.TCPConn) netip.AddrPort
	// Ports are those of ztunnel's own listeners in the pod.
	Ports []uint16
	// Share is the pod's of the node's connections; nil bounds nothing.
	Share *live.Share
	// Demand asks for destinations that the store may lack; nil: it lacks none.
	Demand live.Demand
	// KeepAlive of the application's connections and of those to peers.
	KeepAlive live.KeepAlive
	// Names resolves what workloads have instead of an address; nil: one of the
	// Proxy's own.
	Names *Names
	// Egress says what may leave the mesh; the zero value lets everything.
	Egress Egress
}

// Proxy carries what one pod sends.
type Proxy struct{ cfg Config }

// New makes a Proxy.
func New(cfg Config) *Proxy {
	if cfg.Original == nil {
		cfg.Original = func(c *net.TCPConn) netip.AddrPort { return live.AddrPort(c.LocalAddr()) }
	}
	if cfg.Names == nil {
		cfg.Names = NewNames(nil)
	}
	if cfg.Denied == nil {
		cfg.Denied = func(error) bool { return false }
	}
	return &Proxy{cfg}
}

// Serve accepts until ln is closed and returns when the last connection has
// ended. The end of ctx gives up connections that are still being set up; open
// ones are ended through the table.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener) error {
	return live.AcceptLoop(ln, func(c *net.TCPConn) { p.serve(ctx, c) }, p.cfg.Table.AcceptPaused)
}

func (p *Proxy) serve(ctx context.Context, c *net.TCPConn) {
	dst := p.cfg.Original(c)
	if live.IsProof(live.Source, dst) {
		c.Close()
		return
	}
	defer p.cfg.Table.Metrics().SocketOpened(live.Source)()
	p.cfg.KeepAlive.Set(c)
	src := live.AddrPort(c.RemoteAddr())
	rec := p.cfg.Table.Accept(p.cfg.Pod, live.Source)

	if p.uncaptured(src, dst) {
		live.Reset(c)
		rec.Deny(src, dst, live.Errorf(live.SelfCall, "connection to %s: the port is the mesh's own", dst))
		return
	}
	if err := p.cfg.Share.Take(live.CostConn); err != nil {
		live.Reset(c)
		rec.Deny(src, dst, err)
		return
	}
	defer p.cfg.Share.Give(live.CostConn)
	snap, self, err := live.Local(ctx, p.cfg.Store, p.cfg.Node, p.cfg.Pod)
	if err != nil {
		live.Reset(c)
		rec.Deny(src, dst, err)
		return
	}
	p.carry(ctx, c, rec, snap, self, src, dst)
}

// carry takes the application's connection to dst, to its end.
func (p *Proxy) carry(ctx context.Context, c *net.TCPConn, rec *live.Conn, snap *mesh.Snapshot, self *mesh.Workload, src, dst netip.AddrPort) {
	route, up, err := p.connect(ctx, c, snap, self, src, dst)
	facts := live.Facts{
		Src: src, Dst: route.Addr, Original: dst, Source: self, Destination: route.Upstream, Service: route.Service,
	}
	if !facts.Dst.IsValid() {
		facts.Dst = dst
	}
	if route.Kind.tunnelled() {
		facts.HBONE, facts.Authority = true, route.authority()
		facts.SourceID, facts.DestinationID = self.Identity(), route.Upstream.Identity()
		if t, ok := up.(tunnelled); ok {
			facts.DestinationID = t.s.Conn().Peer() // verified, and perhaps one of the service's names
		}
	}
	if route.Kind == Gateway {
		facts.Double = true
		facts.Destination, facts.DestinationID = beyond(&route, up)
		if facts.Destination != route.Remote {
			facts.Destination = p.cfg.Table.Stranger(facts.Destination) // it can say what it likes, and metrics stay
		}
	}
	rec.Open(facts)
	if err != nil {
		live.Reset(c)
		rec.End(err)
		return
	}
	rec.End(up.relay(rec, c))
	up.close()
}

// uncaptured says that the listener was dialled by its own port, which only a
// process of the pod can do. To dial on from here would lead here again, and so
// on without end. A connection within the pod has the address it dials also as
// its source, unless that was bound to another of the pod's; then the one we
// would make has.
func (p *Proxy) uncaptured(src, dst netip.AddrPort) bool {
	return slices.Contains(p.cfg.Ports, dst.Port()) && (src.Addr() == dst.Addr() || dst.Addr().IsLoopback())
}

// connect resolves and dials. Where a service or a waypoint has other endpoints,
// one that does not answer is left out and the next tried.
func (p *Proxy) connect(ctx context.Context, app *net.TCPConn, snap *mesh.Snapshot, self *mesh.Workload, src, dst netip.AddrPort) (Route, carrier, error) {
	var (
		choice Choice
		last   Route
		failed error
	)
	if p.cfg.Demand != nil {
		var err error
		if snap, err = live.Learn(ctx, p.cfg.Demand, p.cfg.Store, p.cfg.Pod, self, dst.Addr()); err != nil {
			return Route{}, nil, err
		}
	}
	for range attempts {
		r := Resolve(snap, self, dst, choice)
		if r.Kind == Refuse && last.Kind == Gateway {
			// No other gateway of that network, but there may be other networks.
			choice.Skip = append(choice.Skip, last.Remote.UID)
			r = Resolve(snap, self, dst, choice)
		}
		if r.Kind == Refuse {
			if failed != nil {
				return last, nil, failed // what happened, not that nothing is left
			}
			return r, nil, r.Refusal
		}
		if err := p.admit(app, snap, self, &r); err != nil {
			return r, nil, err
		}
		up, err := p.dial(ctx, &r, self, src)
		if err == nil {
			return r, up, nil
		}
		last, failed = r, err
		if r.Service == nil && r.Kind != Waypoint || !worthAnother(err) || ctx.Err() != nil {
			break
		}
		choice.Skip = append(choice.Skip, cmp.Or(r.chosen, r.Upstream.UID))
	}
	return last, nil, failed
}

// worthAnother reports whether a failure is the endpoint's own, so that
// another may do better.
func worthAnother(err error) bool {
	var e *live.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Reason {
	case live.ConnectRefused, live.ConnectTimeout, live.ConnectUnreachable, live.HBONETimeout, live.PeerUnavailable,
		live.HandshakeAborted, live.HandshakeTimeout, live.UnexpectedIdentity, live.TunnelLost, live.NameUnresolved:
		return true
	}
	return false
}

func (p *Proxy) dial(ctx context.Context, r *Route, self *mesh.Workload, client netip.AddrPort) (carrier, error) {
	if r.Upstream != nil && !r.Addr.Addr().IsValid() {
		ip, err := p.lookup(ctx, r.Upstream.Hostname, self, client.Addr().Is4())
		if err != nil {
			return nil, live.Errorf(live.NameUnresolved, "%s: %w", r.Upstream.UID, err)
		}
		*r = r.resolved(ip)
	}
	if r.Kind == PassThrough || r.Kind == TCP {
		if err := p.cfg.Share.Take(live.CostConn); err != nil {
			return nil, err
		}
		c, err := p.tcp(ctx, client.Addr(), r.Addr)
		if err != nil {
			p.cfg.Share.Give(live.CostConn)
			return nil, &live.Error{Reason: live.DialReason(err), Err: err}
		}
		return plain{c, p.cfg.Share}, nil
	}
	req := request(r, self, client)
	s, err := p.cfg.Pool.Open(ctx, tunnelKey(p.cfg.Life, r), func(ctx context.Context) (*hbone.Conn, error) {
		return p.tunnel(ctx, client.Addr(), r.Addr, self.Identity(), r.Expect)
	}, req)
	if err != nil {
		return nil, openError(err, req.Authority)
	}
	if r.Kind == Gateway {
		return p.through(ctx, s, r, self, inner(req, self.Network))
	}
	return tunnelled{s}, nil
}

// tunnelKey keeps apart what must not share a tunnel: what speaks for different
// pods, goes to different ones, or wants another server.
func tunnelKey(life string, r *Route) pool.Key {
	names := make([]string, len(r.Expect))
	for i, id := range r.Expect {
		names[i] = id.String()
	}
	slices.Sort(names)
	return pool.Key{SourceUID: life, DestinationUID: r.Upstream.UID, Addr: r.Addr, Peers: strings.Join(names, ",")}
}

// portAttempts is how many ports are tried where the kernel has none to give.
const portAttempts = 16

// tcp connects from the pod, whose address from is. To a destination that the
// application dialled itself, its connection and ours share the ports of the
// pod's ip_local_port_range. Ours goes beyond that range when it is used up: the
// application's stands already, and is not to be reset for a want of ports. Not
// before, since there are firewalls that know the range.
func (p *Proxy) tcp(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	o := netns.SocketOptions{Mark: netns.Mark}
	c, err := p.cfg.Dialer.DialTCP(ctx, netip.AddrPort{}, to, o)
	if errors.Is(err, syscall.EADDRNOTAVAIL) && from.Is4() == to.Addr().Is4() {
		for range portAttempts {
			port := 1024 + rand.N(65536-1024)
			c, err = p.cfg.Dialer.DialTCP(ctx, netip.AddrPortFrom(from, uint16(port)), to, o)
			if !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE) {
				break
			}
		}
	}
	if err == nil {
		p.cfg.KeepAlive.Set(c)
	}
	return c, err
}

// tunnel makes a new HBONE connection from the pod to addr, as self.
func (p *Proxy) tunnel(ctx context.Context, from netip.Addr, addr netip.AddrPort, self identity.ID, expect []identity.ID) (*hbone.Conn, error) {
	if _, err := p.cfg.Source.Certificate(ctx, self); err != nil {
		reason := live.IdentityUnavailable
		if p.cfg.Denied(err) {
			reason = live.IdentityDenied
		}
		return nil, live.Errorf(reason, "certificate of %s: %w", self, err)
	}
	if err := p.cfg.Share.Take(live.CostTunnel); err != nil {
		return nil, err
	}
	tcp, err := p.tcp(ctx, from, addr)
	if err != nil {
		p.cfg.Share.Give(live.CostTunnel)
		reason := live.DialReason(err)
		if reason == live.ConnectTimeout {
			return nil, live.Errorf(live.HBONETimeout, "connection timed out, maybe a NetworkPolicy is blocking HBONE port %d: %w", addr.Port(), err)
		}
		return nil, &live.Error{Reason: reason, Err: err}
	}
	nc := &shared{TCPConn: tcp, share: p.cfg.Share}
	c, err := hbone.NewClient(ctx, nc, identity.ClientConfig(p.cfg.Source, self, expect), p.cfg.HBONE)
	if err != nil {
		return nil, live.Errorf(live.HandshakeReason(err), "tunnel to %s: %w", addr, err)
	}
	return c, nil
}

// openError gives a failed CONNECT its reason.
func openError(err error, authority string) error {
	var (
		known  *live.Error
		stream *hbone.StreamError
		conn   *hbone.ConnError
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &stream) && stream.Status != 0:
		reason := live.PeerStatus
		switch stream.Status {
		case 400:
			reason = live.PeerBadRequest
		case 401:
			reason = live.PeerDenied
		case 503:
			reason = live.PeerUnavailable
		}
		return live.Errorf(reason, "http status: %d for %s", stream.Status, authority)
	case errors.As(err, &conn):
		// The server verifies our certificate after our own handshake is done
		// (TLS 1.3), so that its refusal shows up here.
		if r := live.HandshakeReason(err); r == live.HandshakeRejected {
			return &live.Error{Reason: r, Err: err}
		}
	}
	return &live.Error{Reason: live.TunnelLost, Err: err}
}
