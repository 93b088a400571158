package live

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/prometheus/client_golang/prometheus"
)

// queue is a listener's backlog without a network, for bubbles of synctest.
type queue struct {
	conns chan net.Conn
	fails func() error // asked before every Accept; may be nil
	once  sync.Once
}

func (q *queue) Accept() (net.Conn, error) {
	if q.fails != nil {
		if err := q.fails(); err != nil {
			return nil, err
		}
	}
	c, ok := <-q.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (q *queue) Close() error   { q.once.Do(func() { close(q.conns) }); return nil }
func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// caller is a connection from a client.
type caller struct {
	net.Conn // nil
	from     string
	expelled chan struct{}
}

func newCaller(from string) *caller { return &caller{from: from, expelled: make(chan struct{})} }

func (c *caller) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.from), 1))
}
func (c *caller) SetDeadline(time.Time) error { close(c.expelled); return nil }

// TestHandshakeRate: a burst at once, then the rate; who comes beyond waits.
//
//ambit:feature hbone-quota-handshakes
func TestHandshakeRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		delayed := 0
		g := NewGate(GateConfig{Limit: 1000, Patience: time.Hour, Rate: 10, Delayed: func() { delayed++ }})
		q := &queue{conns: make(chan net.Conn, 100)}
		for i := range 50 {
			q.conns <- newCaller(fmt.Sprintf("10.0.0.%d", i))
		}
		ln, start := g.Listen(q), time.Now()
		for i := range 50 {
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			g.Leave(c)
			// Two seconds' worth at once, then one every tenth of a second.
			want := time.Duration(max(0, i-19)) * time.Second / 10
			if at := time.Since(start); at < want || at > want+time.Millisecond {
				t.Errorf("%d is accepted after %v, want %v", i, at, want)
			}
		}
		if delayed != 30 {
			t.Errorf("%d waits are counted, want 30", delayed)
		}
	})
}

// TestOneClientsHandshakeRate: a client that makes more than a quarter of the
// handshakes is refused with a reason, another one is not.
//
//ambit:feature hbone-quota-handshakes
func TestOneClientsHandshakeRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := 0
		g := NewGate(GateConfig{Limit: 1000, Patience: time.Hour, Rate: 40, Refused: func(c net.Conn, why *Error) {
			if why.Reason != QuotaHandshakes || !strings.Contains(why.Error(), "10.0.0.1") || c.(*caller).from != "10.0.0.1" {
				t.Errorf("refused: %v", why)
			}
			refused++
		}})
		q := &queue{conns: make(chan net.Conn, 1000)}
		ln := g.Listen(q)
		accepted := map[string]int{}
		for second := range 10 {
			for range 40 {
				q.conns <- newCaller("10.0.0.1")
			}
			q.conns <- newCaller("10.0.0.2")
			for {
				c, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				g.Leave(c)
				accepted[c.(*caller).from]++
				if c.(*caller).from == "10.0.0.2" {
					break
				}
			}
			if accepted["10.0.0.2"] != second+1 {
				t.Fatalf("second %d: %v", second, accepted)
			}
			time.Sleep(time.Second)
		}
		// A burst of two seconds' worth and ten per second.
		if n := accepted["10.0.0.1"]; n < 20+90 || n > 20+110 || n+refused != 400 {
			t.Errorf("%d accepted, %d refused", n, refused)
		}
	})
}

// TestSilentClientDoesNotKeepOthersOut: with the gate full of one client's silent
// connections, another one waits for a quarter of a second at most.
//
//ambit:feature hbone-slow-handshakes
func TestSilentClientDoesNotKeepOthersOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(GateConfig{Limit: 64, Patience: time.Second})
		q := &queue{conns: make(chan net.Conn, 1000)}
		ln := g.Listen(q)
		var silent []*caller
		for range 64 {
			c := newCaller("10.0.0.1")
			silent = append(silent, c)
			q.conns <- c
			ln.Accept()
		}
		start := time.Now()
		for i := range 10 {
			q.conns <- newCaller(fmt.Sprintf("10.0.1.%d", i))
			ln.Accept()
		}
		if d := time.Since(start); d != 250*time.Millisecond {
			t.Errorf("others waited %v", d)
		}
		for i, c := range silent {
			select {
			case <-c.expelled:
				if i >= 10 {
					t.Errorf("%d had to go for ten others", i)
				}
			default:
				if i < 10 {
					t.Errorf("%d did not have to go", i)
				}
			}
		}
		if len(g.under) != 64 {
			t.Errorf("%d under way", len(g.under))
		}
	})
}

// TestSourcesAreForgotten: clients that come and go leave nothing behind for ever.
func TestSourcesAreForgotten(t *testing.T) {
	now := time.Now()
	g := NewGate(GateConfig{Limit: 64, Patience: time.Second, Rate: 1000, Now: func() time.Time { return now }})
	for i := range 10 * maxSources {
		if why := g.tooFast(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now); why != nil {
			t.Fatal(why)
		}
		now = now.Add(10 * time.Millisecond)
	}
	if len(g.sources) > maxSources {
		t.Errorf("%d clients are remembered", len(g.sources))
	}
}

// TestOutOfDescriptors: nothing spins, it is said once a minute and counted, and
// goes on by itself.
//
//ambit:feature hbone-descriptors
func TestOutOfDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		reg := prometheus.NewRegistry()
		m := NewMetrics(reg)
		table := New(Config{Store: mesh.NewStore(), Metrics: m, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		start, tries := time.Now(), 0
		q := &queue{conns: make(chan net.Conn)}
		q.fails = func() error {
			if time.Since(start) < 90*time.Second {
				tries++
				return &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
			}
			q.Close()
			return nil
		}
		if err := AcceptLoop(q, func(*net.TCPConn) {}, table.AcceptPaused); err != nil {
			t.Error(err)
		}
		if tries < 800 || tries > 1000 {
			t.Errorf("tried %d times in 90 s", tries)
		}
		if n := strings.Count(log.String(), "too many open files"); n != 2 {
			t.Errorf("said %d times:\n%s", n, log.String())
		}
		if text, want := gather(t, reg), fmt.Sprintf("ambit_accept_errors_total %d\n", tries); !strings.Contains(text, want) {
			t.Errorf("want %s in:\n%s", want, text)
		}
		if err := AcceptLoop(&queue{fails: func() error { return io.ErrUnexpectedEOF }}, nil, nil); err != io.ErrUnexpectedEOF {
			t.Errorf("another error: %v", err)
		}
	})
}
