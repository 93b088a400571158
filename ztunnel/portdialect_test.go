package ztunnel

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
)

// TestPortReuse: two ztunnels can listen at once while one follows the other,
// unless that is switched off.
//
//ambit:feature config-port-reuse
func TestPortReuse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("marks sockets: needs root")
	}
	for _, own := range []bool{false, true} {
		p := &served{n: &Node{cfg: Config{OwnPorts: own}}}
		lc := net.ListenConfig{Control: p.captured}
		first, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		second, err := lc.Listen(context.Background(), "tcp4", first.Addr().String())
		if own != errors.Is(err, syscall.EADDRINUSE) || !own && err != nil {
			t.Errorf("ports of its own %t: the second listener: %v", own, err)
		}
		first.Close()
		if err == nil {
			second.Close()
		}
	}
}
