package outbound

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/ambitmesh/ambit/ztunnel/socks"
)

const (
	// SOCKSPort is where applications find the SOCKS5 proxy, on their loopback.
	SOCKSPort = 15080
	// socksTimeout is how long a client may take for its request.
	socksTimeout = 10 * time.Second
)

// Lookup resolves a host name as the pod would: to an address of one family.
type Lookup func(ctx context.Context, host string, v6 bool) (netip.Addr, error)

// ServeSOCKS is Serve for a listener whose clients say with SOCKS5 where they want
// to go.
func (p *Proxy) ServeSOCKS(ctx context.Context, ln net.Listener, lookup Lookup) error {
	return live.AcceptLoop(ln, func(c *net.TCPConn) { p.serveSOCKS(ctx, c, lookup) }, p.cfg.Table.AcceptPaused)
}

func (p *Proxy) serveSOCKS(ctx context.Context, c *net.TCPConn, lookup Lookup) {
	defer p.cfg.Table.Metrics().SocketOpened(live.Source)()
	p.cfg.KeepAlive.Set(c)
	src := live.AddrPort(c.RemoteAddr())
	rec := p.cfg.Table.Accept(p.cfg.Pod, live.Source)
	if err := p.cfg.Share.Take(live.CostConn); err != nil {
		live.Reset(c)
		rec.Deny(src, netip.AddrPort{}, err)
		return
	}
	defer p.cfg.Share.Give(live.CostConn)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	dst, err := request5(ctx, c, src, lookup)
	if err != nil {
		// A reply that does not arrive is as good as a connection that ends.
		_ = socks.Reply(c, socks.Code(err))
		stop()
		c.Close()
		rec.Deny(src, dst, &live.Error{Reason: live.BadSOCKS, Err: err})
		return
	}
	snap, self, err := live.Local(ctx, p.cfg.Store, p.cfg.Node, p.cfg.Pod)
	if err == nil && (dst.Addr().IsLoopback() || dst.Addr().IsUnspecified()) && (illegal(dst.Port()) || dst.Port() == SOCKSPort) {
		err = live.Errorf(live.SelfCall, "connection to %s: the port is the mesh's own", dst)
	}
	if err != nil {
		_ = socks.Reply(c, socks.Failed)
		stop()
		c.Close()
		rec.Deny(src, dst, err)
		return
	}
	// The reference's order: granted before anybody is dialled.
	if err := socks.Reply(c, socks.Granted); err != nil || !stop() {
		live.Reset(c)
		rec.Deny(src, dst, &live.Error{Reason: live.ClientReset, Err: err})
		return
	}
	p.carry(ctx, c, rec, snap, self, ownAddress(self, src, dst), dst)
}

// request5 reads the request and finds the address it is about.
func request5(ctx context.Context, c *net.TCPConn, src netip.AddrPort, lookup Lookup) (netip.AddrPort, error) {
	_ = c.SetDeadline(time.Now().Add(socksTimeout))
	req, err := socks.Read(c)
	if err != nil {
		return netip.AddrPort{}, err
	}
	_ = c.SetDeadline(time.Time{})
	if req.Host != "" {
		req.Addr, err = lookup(ctx, req.Host, src.Addr().Is6())
		if err != nil {
			return netip.AddrPort{}, &socks.Error{Code: socks.Unreachable, Err: fmt.Errorf("host name %s: %w", req.Host, err)}
		}
	}
	return netip.AddrPortFrom(req.Addr, req.Port), nil
}

// ownAddress is the client's as others see it: from the pod's own address, of the
// family that is dialled.
func ownAddress(self *mesh.Workload, src, dst netip.AddrPort) netip.AddrPort {
	if !src.Addr().IsLoopback() {
		return src
	}
	for _, a := range self.Addresses {
		if a.Is4() == dst.Addr().Is4() {
			return netip.AddrPortFrom(a, src.Port())
		}
	}
	return src
}
