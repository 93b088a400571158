package hbone_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
)

func echo(in *hbone.Incoming) {
	s, err := in.Accept()
	if err != nil {
		return
	}
	io.Copy(s, s)
	s.Close()
}

func ctx5(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func open(t testing.TB, c *hbone.Conn, authority string) *hbone.Stream {
	t.Helper()
	s, err := c.Open(ctx5(t), hbone.Request{Authority: authority})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpenAndEcho(t *testing.T) {
	var got hbone.Request
	c := hbonetest.Pair(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		got = in.Request
		if in.Peer() != hbonetest.ClientID || in.Method != "CONNECT" {
			t.Errorf("peer %v method %q", in.Peer(), in.Method)
		}
		s, err := in.Accept(hbone.Header{Name: "baggage", Value: "a=b"})
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(s, s)
		s.Close()
	})
	s, err := c.Open(ctx5(t), hbone.Request{Authority: "10.0.0.1:80", Header: []hbone.Header{{Name: "Traceparent", Value: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if v := s.ResponseHeader("baggage"); v != "a=b" {
		t.Errorf("response baggage %q", v)
	}
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	s.CloseWrite()
	b, err := io.ReadAll(s)
	if err != nil || string(b) != "hello" {
		t.Fatalf("%q %v", b, err)
	}
	if got.Authority != "10.0.0.1:80" || got.Get("traceparent") != "x" {
		t.Errorf("request %+v", got)
	}
	if c.Peer() != hbonetest.ServerID {
		t.Errorf("peer %v", c.Peer())
	}
	s.Close()
}

//ambit:feature hbone-answers
func TestReject(t *testing.T) {
	c := hbonetest.Pair(t, hbonetest.Options{}, func(in *hbone.Incoming) { in.Reject(401) })
	_, err := c.Open(ctx5(t), hbone.Request{Authority: "10.0.0.1:80"})
	var se *hbone.StreamError
	if !errors.As(err, &se) || se.Status != 401 || !se.Remote {
		t.Fatalf("error %v", err)
	}
	if !c.Usable() {
		t.Error("a rejection made the connection unusable")
	}
}

// tcpPair is two ends of one loopback connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); s.Close() })
	return d.(*net.TCPConn), s.(*net.TCPConn)
}

// tunnel is a whole path: app - relay - connection - relay - server app.
type tunnel struct {
	app, far             *net.TCPConn // the two applications
	clientErr, serverErr chan error
	client, server       *hbone.Stream
}

// tunnels makes tunnels over one connection.
type tunnels struct {
	t    testing.TB
	c    *hbone.Conn
	want chan *tunnel
}

func newTunnels(t testing.TB, o hbonetest.Options) *tunnels {
	ts := &tunnels{t: t, want: make(chan *tunnel, 1)}
	ts.c = hbonetest.Pair(t, o, func(in *hbone.Incoming) {
		tn := <-ts.want
		s, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		a, b := tcpPair(t)
		tn.far = b
		tn.server = s
		ts.want <- tn
		tn.serverErr <- s.Relay(a)
	})
	return ts
}

func (ts *tunnels) open() *tunnel {
	ts.t.Helper()
	tn := &tunnel{clientErr: make(chan error, 1), serverErr: make(chan error, 1)}
	ts.want <- tn
	s := open(ts.t, ts.c, "10.0.0.1:80")
	<-ts.want
	tn.client = s
	a, b := tcpPair(ts.t)
	tn.app = a
	go func() { tn.clientErr <- s.Relay(b) }()
	return tn
}

func (tn *tunnel) wait(t testing.TB) (client, server error) {
	t.Helper()
	for range 2 {
		select {
		case client = <-tn.clientErr:
			tn.clientErr = nil
		case server = <-tn.serverErr:
			tn.serverErr = nil
		case <-time.After(time.Minute):
			t.Fatalf("relay did not end (client ended: %v, server ended: %v)", tn.clientErr == nil, tn.serverErr == nil)
		}
	}
	return client, server
}

// random writes n random bytes and returns their sum.
func random(w io.Writer, seed uint64, n int) (hash.Hash, error) {
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	h := sha256.New()
	buf := make([]byte, 100_000)
	r := rand.New(rnd)
	for n > 0 {
		k := min(n, 1+r.IntN(len(buf)))
		rnd.Read(buf[:k])
		h.Write(buf[:k])
		if _, err := w.Write(buf[:k]); err != nil {
			return h, err
		}
		n -= k
	}
	return h, nil
}

func TestRelayBothWays(t *testing.T) {
	const size = 40 << 20
	ts := newTunnels(t, hbonetest.Options{})
	var wg sync.WaitGroup
	for i := range 4 {
		tn := ts.open()
		for d, ends := range [][2]*net.TCPConn{{tn.app, tn.far}, {tn.far, tn.app}} {
			sum := make(chan hash.Hash, 1)
			wg.Go(func() {
				h, err := random(ends[0], uint64(10*i+d), size/4)
				if err != nil {
					t.Error(err)
				}
				ends[0].CloseWrite()
				sum <- h
			})
			wg.Go(func() {
				h := sha256.New()
				n, err := io.Copy(h, ends[1])
				if err != nil || n != size/4 {
					t.Errorf("tunnel %d direction %d: %d bytes, %v", i, d, n, err)
				}
				if string(h.Sum(nil)) != string((<-sum).Sum(nil)) {
					t.Errorf("tunnel %d direction %d: data differ", i, d)
				}
			})
		}
		wg.Go(func() {
			if c, s := tn.wait(t); c != nil || s != nil {
				t.Errorf("tunnel %d: client %v, server %v", i, c, s)
			}
		})
	}
	wg.Wait()
	if n := ts.c.Streams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
}

func sumOf(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return string(h.Sum(nil)), n, err
}
