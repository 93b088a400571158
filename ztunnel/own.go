package ztunnel

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/ztunnel/inbound"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/ambitmesh/ambit/ztunnel/outbound"
)

// Own is ztunnel's own pod. Where all of it is known, ztunnel serves HBONE for
// itself too, so that its metrics can be had with mutual TLS and under policy,
// by clients that the control plane has told so.
type Own struct{ Name, Namespace, ServiceAccount string }

func (o Own) known() bool { return o.Name != "" && o.Namespace != "" && o.ServiceAccount != "" }

// InboundSettings are those of inbound.Config that users set.
type InboundSettings struct {
	NoLoopback bool // application tunnels with PROXY lead to the pod's address
	NoBaggage  bool // no baggage in answers, none believed
	OwnSource  bool // applications are dialled from their own address, not from the client's
}

// home dials in ztunnel's own namespace, where nothing is captured and a mark would
// mean nothing.
type home struct{ net.Dialer }

func (h *home) DialTCP(ctx context.Context, _, remote netip.AddrPort, _ netns.SocketOptions) (*net.TCPConn, error) {
	c, err := h.DialContext(ctx, "tcp", remote.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// serveOwn serves HBONE for ztunnel's own pod until ctx ends. That nobody can
// listen is told and no more: the node's pods do not depend on it.
func (n *Node) serveOwn(ctx context.Context) error {
	o := n.cfg.Own
	if !o.known() {
		return nil
	}
	network := "tcp"
	if n.cfg.IPv4Only {
		network = "tcp4"
	}
	ln, err := net.Listen(network, net.JoinHostPort("", strconv.Itoa(outbound.HBONEPort)))
	if err != nil {
		n.cfg.Logger.Warn("ztunnel's own endpoints cannot be reached through the mesh", "err", err)
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	select {
	case <-n.cfg.Synced: // until then clients wait in the kernel
	case <-ctx.Done():
		return nil
	}
	share, tunnels := n.quota.Share(), n.cfg.Quotas.part(n.cfg.HBONE)
	defer share.Close()
	in := inbound.New(inbound.Config{
		Pod:  &live.Pod{UID: "ztunnel", Name: o.Name, Namespace: o.Namespace, ServiceAccount: o.ServiceAccount},
		Node: n.cfg.NodeName, Dialer: &home{}, Store: n.cfg.Store, Source: n.cfg.Certificates, Table: n.table, HBONE: tunnels,
		Denied: n.cfg.Denied, Share: share, HandshakeRate: n.cfg.Quotas.HandshakeRate,
		NoLoopback: n.cfg.Inbound.NoLoopback, NoBaggage: n.cfg.Inbound.NoBaggage, OwnSource: true,
	})
	return in.ServeHBONE(ctx, ctx, ln)
}
