package live

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// pod accepts through g and hands over what it accepted.
func gatedPod(t *testing.T, g *Gate) (addr string, accepted chan *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted = make(chan *net.TCPConn, 100)
	ended := make(chan error, 1)
	go func() { ended <- AcceptLoop(g.Listen(ln), func(c *net.TCPConn) { accepted <- c }, nil) }()
	t.Cleanup(func() {
		ln.Close()
		for len(accepted) > 0 {
			(<-accepted).Close()
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String(), accepted
}

func dialN(t *testing.T, addr string, n int) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// TestGateKeepsOthersWaiting: beyond the limit connections wait, are not refused,
// and do not keep another pod's out.
func TestGateKeepsOthersWaiting(t *testing.T) {
	g, other := NewGate(GateConfig{Limit: 4, Patience: time.Hour}), NewGate(GateConfig{Limit: 4, Patience: time.Hour})
	addr, accepted := gatedPod(t, g)
	otherAddr, otherAccepted := gatedPod(t, other)
	dialN(t, addr, 10)
	var in []*net.TCPConn
	for range 4 {
		in = append(in, <-accepted)
	}
	dialN(t, otherAddr, 1)
	(<-otherAccepted).Close()
	if len(accepted) > 0 {
		t.Fatal("a fifth was accepted")
	}
	for range 6 { // each that ends lets one in
		g.Leave(in[0])
		g.Leave(in[0])
		in[0].Close()
		in = append(in[1:], <-accepted)
	}
	for _, c := range in {
		g.Leave(c)
		c.Close()
	}
}

// TestGateGivesUpTheOldest: clients that stop half-way keep nobody out.
func TestGateGivesUpTheOldest(t *testing.T) {
	g := NewGate(GateConfig{Limit: 2, Patience: 10 * time.Millisecond})
	addr, accepted := gatedPod(t, g)
	dialN(t, addr, 5)
	for range 3 {
		c := <-accepted
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a handshake that says nothing ended with %v", err)
		}
		c.Close()
	}
	for range 2 {
		c := <-accepted
		g.Leave(c)
		c.Close()
	}
}
