package inbound

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// ServeHBONE accepts HBONE connections until ln is closed and returns when the
// last has ended. The end of drain makes every connection say GOAWAY and wait
// for its streams; the end of ctx closes them.
func (p *Proxy) ServeHBONE(ctx, drain context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, p.closeAll)
	defer stop()
	return live.AcceptLoop(p.gate.Listen(ln), func(c *net.TCPConn) { p.hbone(ctx, drain, c) }, p.cfg.Table.AcceptPaused)
}

// refuse ends an HBONE connection before a word.
func (p *Proxy) refuse(c *net.TCPConn, why error) {
	src, dst := live.AddrPort(c.RemoteAddr()), live.AddrPort(c.LocalAddr())
	live.Reset(c)
	p.cfg.Table.Accept(p.cfg.Pod, live.Destination).Deny(src, dst, why)
}

func (p *Proxy) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *Proxy) hbone(ctx, drain context.Context, c *net.TCPConn) {
	defer p.cfg.Table.Metrics().SocketOpened(live.Destination)()
	p.mu.Lock()
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.gate.Leave(c)
		c.Close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}()
	if ctx.Err() != nil {
		return // closeAll may have run before c was there
	}
	if err := p.cfg.Share.Take(live.CostTunnel); err != nil {
		p.refuse(c, err)
		return
	}
	defer p.cfg.Share.Give(live.CostTunnel)
	src, dst := live.AddrPort(c.RemoteAddr()), live.AddrPort(c.LocalAddr())
	deny := func(err error) { p.cfg.Table.Accept(p.cfg.Pod, live.Destination).Deny(src, dst, err) }

	_, self, err := live.Local(ctx, p.cfg.Store, p.cfg.Node, p.cfg.Pod)
	if err != nil {
		live.Reset(c)
		deny(err)
		return
	}
	id := self.Identity()
	srv := hbone.Server{
		TLS:         identity.ServerConfig(source{p.cfg.Source, p.cfg.Denied}, id),
		Config:      p.tunnels,
		Handler:     func(in *hbone.Incoming) { p.connect(ctx, in) },
		OnHandshake: func() { p.gate.Leave(c) },
		OnHandshakeError: func(_ netip.AddrPort, err error) {
			var known *live.Error
			if !errors.As(err, &known) {
				known = live.Errorf(live.HandshakeReason(err), "handshake: %w", err)
			}
			deny(known)
		},
		OnRefused: func(_ netip.AddrPort, err error) {
			reason := live.BadRequest
			switch {
			case errors.Is(err, hbone.ErrFull):
				reason = live.StreamLimit
			case errors.Is(err, hbone.ErrMemory):
				reason = live.MemoryPressure
			case errors.Is(err, hbone.ErrShare):
				reason = live.QuotaBacklog
			}
			deny(&live.Error{Reason: reason, Err: err})
		},
	}
	// How the connection ended is told by the records of its streams.
	_ = srv.Serve(drain, c)
}

// source gives failures to obtain our own certificate their reason.
type source struct {
	identity.Source
	denied func(error) bool
}

func (s source) Certificate(ctx context.Context, id identity.ID) (*tls.Certificate, error) {
	c, err := s.Source.Certificate(ctx, id)
	if err != nil {
		reason := live.IdentityUnavailable
		if s.denied(err) {
			reason = live.IdentityDenied
		}
		return nil, live.Errorf(reason, "certificate of %s: %w", id, err)
	}
	return c, nil
}

// connect answers one CONNECT. The order of the checks and their statuses are
// the reference's.
func (p *Proxy) connect(ctx context.Context, in *hbone.Incoming) {
	src, dst := unmap(in.RemoteAddr()), unmap(in.LocalAddr())
	rec := p.cfg.Table.Accept(p.cfg.Pod, live.Destination)
	fail := func(status int, err error) {
		if ctx := in.Context(); ctx.Err() != nil && !denied(err) {
			err = relayError(context.Cause(ctx)) // what failed, failed because the client has gone
		}
		in.Reject(status)
		rec.Deny(src, dst, err)
	}
	if in.Method != "CONNECT" {
		fail(400, live.Errorf(live.BadMethod, "method %.20q is not CONNECT", in.Method))
		return
	}
	auth, err := parseAuthority(in.Authority)
	if err != nil {
		fail(400, err)
		return
	}
	// ctx of the stream: a client that gives up is not waited for.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(in.Context(), cancel)()

	snap, self, err := live.Local(ctx, p.cfg.Store, p.cfg.Node, p.cfg.Pod)
	if err != nil {
		fail(503, err)
		return
	}
	if p.cfg.Demand != nil && auth.addr.IsValid() && auth.addr.Addr() != dst.Addr() && self.AppTunnel == nil {
		// Only a waypoint is dialled for another's address.
		if snap, err = live.Learn(ctx, p.cfg.Demand, p.cfg.Store, p.cfg.Pod, self, auth.addr.Addr()); err != nil {
			fail(503, err)
			return
		}
	}
	to, err := target(snap, self, dst.Addr(), auth, !p.cfg.NoLoopback)
	if err == nil {
		err = p.notOurs(to.app.Port())
	}
	if err != nil {
		fail(statusOf(err), err)
		return
	}
	if p.cfg.Demand != nil && in.Get(hbone.ClientHeader) != "" {
		if snap, err = p.waypoints(ctx, snap, self); err != nil {
			fail(503, err)
			return
		}
	}
	var terms *identity.Terms
	if p.cfg.Source != nil {
		terms = p.cfg.Source.Terms()
	}
	conn, err := judged(snap, self, in.Peer(), src, in.Request, terms)
	if err != nil {
		fail(400, err)
		return
	}
	conn.Dst = to.app
	if err := p.cfg.Share.Take(live.CostConn); err != nil {
		fail(503, err)
		return
	}
	defer p.cfg.Share.Give(live.CostConn)
	check := &live.Check{Workload: self, Conn: conn}
	facts := live.Facts{
		Src: src, Dst: dst, Original: to.app, Authority: in.Authority, HBONE: true, Check: check,
		Source: p.sourceOf(snap, self, in.Peer(), src.Addr(), in.Request), SourceID: in.Peer(),
		Destination: self, DestinationID: self.Identity(),
		Service: destinationService(snap, self, in.Get("forwarded"), to.app.Port()),
	}
	if !conn.Through.IsZero() {
		facts.Client, facts.ClientID = conn.Src, conn.Peer
	}
	rec.Open(facts)
	if err := p.authorize(ctx, check); err != nil {
		fail(401, err)
		return
	}
	app, local, err := p.reach(ctx, src, in.Peer(), &to)
	if err != nil {
		fail(503, err)
		return
	}
	defer p.ports.release(local)
	var says []hbone.Header
	if !p.cfg.NoBaggage {
		says = []hbone.Header{{Name: "baggage", Value: live.Baggage(self)}}
	}
	s, err := in.Accept(says...)
	if err != nil {
		live.Reset(app)
		rec.End(relayError(err))
		return
	}
	rec.Count(counter{s})
	rec.OnCut(s.Abort)
	rec.End(relayError(s.Relay(app)))
}

// reach connects to the application, and tells it who the client is if it wants to
// know. The caller releases the port.
func (p *Proxy) reach(ctx context.Context, client netip.AddrPort, id identity.ID, to *hop) (*net.TCPConn, netip.AddrPort, error) {
	from := client
	if to.loopback || p.cfg.OwnSource {
		from = to.dial() // an address of its own: nothing to borrow
	}
	c, local, err := p.dial(ctx, from, to.dial())
	if err != nil || !to.proxy.IsValid() {
		return c, local, err
	}
	// The application has room for it before it has said anything.
	if _, err := c.Write(appendProxyHeader(nil, client, to.proxy, id)); err != nil {
		live.Reset(c)
		p.ports.release(local)
		return nil, netip.AddrPort{}, &live.Error{Reason: live.ConnectFailed, Err: err}
	}
	return c, local, nil
}

// denied reports whether err is policy's word.
func denied(err error) bool {
	var e *live.Error
	return errors.As(err, &e) && (e.Reason == live.PolicyDenied || e.Reason == live.NetworkPolicy)
}

func statusOf(err error) int {
	var e *live.Error
	if errors.As(err, &e) && e.Reason == live.AddressMismatch {
		return 400
	}
	return 503
}

// counter sees a stream from the client's side.
type counter struct{ s *hbone.Stream }

func (c counter) Received() uint64 { return c.s.Received() }
func (c counter) Sent() uint64     { return c.s.Sent() }

// relayError gives the end of a copy its reason. The client is the stream, the
// server the socket.
func relayError(err error) error {
	var (
		known  *live.Error
		conn   *hbone.ConnError
		stream *hbone.StreamError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.Is(err, hbone.ErrMemory):
		return &live.Error{Reason: live.MemoryPressure, Err: err}
	case errors.Is(err, hbone.ErrShare):
		return &live.Error{Reason: live.QuotaBacklog, Err: err}
	case errors.As(err, &conn):
		return &live.Error{Reason: live.TunnelLost, Err: err}
	case errors.As(err, &stream) && stream.Remote:
		return &live.Error{Reason: live.ClientReset, Err: err}
	}
	return &live.Error{Reason: live.ServerReset, Err: err}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
