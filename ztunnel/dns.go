package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/ztunnel/dns"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// dnsSockets are where a pod's questions arrive; empty when they are not captured.
type dnsSockets struct {
	tcp []net.Listener
	udp []*net.UDPConn
}

func (d *dnsSockets) close() {
	for _, ln := range d.tcp {
		_ = ln.Close() // fails only when it was done before
	}
	for _, c := range d.udp {
		_ = c.Close()
	}
}

// openDNS takes the sockets that the agent handed over. It captures the questions
// if it did, so they are served whatever our own settings say.
func (p *served) openDNS() error {
	l := p.pod.Listeners
	if l.DNSTCP == nil && l.DNSUDP == nil {
		return nil
	}
	if l.DNSTCP == nil || l.DNSUDP == nil {
		return errors.New("the node agent left out one of the two DNS sockets")
	}
	ln, err := net.FileListener(l.DNSTCP)
	if err != nil {
		return fmt.Errorf("DNS over TCP: %w", err)
	}
	p.dns.tcp = append(p.dns.tcp, ln)
	c, err := net.FilePacketConn(l.DNSUDP)
	if err != nil {
		return fmt.Errorf("DNS over UDP: %w", err)
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		_ = c.Close()
		return errors.New("DNS over UDP: not a UDP socket")
	}
	p.dns.udp = append(p.dns.udp, udp)
	return nil
}

// dnsPort is where an agent that is not ours redirects questions to.
const dnsPort = "15053"

// listenDNS makes the sockets where the agent does not.
func (p *served) listenDNS() error {
	if p.n.cfg.DNS.Off {
		return nil
	}
	for _, family := range []struct{ number, host string }{{"4", "127.0.0.1"}, {"6", "::1"}} {
		err := p.pod.NS.Do(func() error {
			lc := net.ListenConfig{Control: p.captured}
			lc.SetMultipathTCP(false)
			addr := net.JoinHostPort(family.host, dnsPort)
			ln, err := lc.Listen(context.Background(), "tcp"+family.number, addr)
			if err != nil {
				return err
			}
			p.dns.tcp = append(p.dns.tcp, ln)
			c, err := lc.ListenPacket(context.Background(), "udp"+family.number, addr)
			if err != nil {
				return err
			}
			p.dns.udp = append(p.dns.udp, c.(*net.UDPConn))
			return nil
		})
		// The pod may have no IPv6, or none on its loopback device.
		if err != nil && (family.number == "4" || !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EAFNOSUPPORT)) {
			return err
		}
	}
	return nil
}

// answerer makes what answers the pod's questions.
func (p *served) answerer(share *live.Share) *dns.Server {
	n := p.n
	cfg := dns.Config{
		Settings: n.cfg.DNS, Pod: p.live, Node: n.cfg.NodeName, Namespace: p.pod.NS, Store: n.cfg.Store, Share: share,
		Metrics: n.dns, Logger: n.cfg.Logger,
	}
	if !p.slots {
		cfg.Original, cfg.Rewritten = originalDestination, true
	}
	return dns.New(cfg)
}

// serveDNS starts answering.
func (p *served) serveDNS(ctx context.Context, s *dns.Server, accept func(string, func() error)) {
	for _, ln := range p.dns.tcp {
		accept("DNS over TCP", func() error { return s.ServeTCP(ctx, ln, p.n.table.AcceptPaused) })
	}
	for _, c := range p.dns.udp {
		accept("DNS over UDP", func() error { return s.ServeUDP(ctx, c) })
	}
}

var _ dns.Namespace = (*netns.NS)(nil)
