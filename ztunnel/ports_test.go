package ztunnel

import (
	"net"
	"slices"
	"testing"

	"github.com/ambitmesh/ambit/ztunnel/live"
)

// TestOwnPorts: no peer is let to a listener of ours in the pod, that for DNS
// over TCP included.
func TestOwnPorts(t *testing.T) {
	var want []uint16
	listen := func() net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		want = append(want, live.AddrPort(ln.Addr()).Port())
		return ln
	}
	p := &served{out: listen(), in: listen(), hbone: []net.Listener{listen(), listen()}, dns: dnsSockets{tcp: []net.Listener{listen()}}}
	if got := p.ports(); !slices.Equal(got, want) {
		t.Errorf("ports %v, want %v", got, want)
	}
	p.dns = dnsSockets{}
	if got := p.ports(); !slices.Equal(got, want[:4]) {
		t.Errorf("without DNS: ports %v, want %v", got, want[:4])
	}
}
