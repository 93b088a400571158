package ztunnel

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"github.com/ambitmesh/ambit/ztunnel/outbound"
)

// listenSOCKS makes the listener of the SOCKS5 proxy, in the pod and for the pod
// alone. No packet is sent there by capture, so that it is ours in either dialect.
func (p *served) listenSOCKS() error {
	if !p.n.cfg.SOCKS {
		return nil
	}
	return p.pod.NS.Do(func() error {
		lc := net.ListenConfig{Control: p.captured}
		lc.SetMultipathTCP(false)
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		ln, err := lc.Listen(context.Background(), "tcp4", net.JoinHostPort(loopback.String(), strconv.Itoa(outbound.SOCKSPort)))
		if err == nil {
			p.socks = ln
		}
		return err
	})
}
