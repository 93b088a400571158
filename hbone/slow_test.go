package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// trickle passes on what is written a byte at a time, with a pause before each.
type trickle struct {
	net.Conn
	pause time.Duration
}

func (c trickle) Write(p []byte) (int, error) {
	for i := range p {
		time.Sleep(c.pause)
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// TestSlowClientsEndInTime: however a client spreads its handshake, it is given up when
// the time for all of it has passed, not for each of its pieces.
//
//ambit:feature hbone-slow-handshakes
func TestSlowClientsEndInTime(t *testing.T) {
	const limit = 10 * time.Second
	tlsClient := func(t *testing.T, s *hbonetest.Server, nc net.Conn) *tls.Conn {
		c := tls.Client(nc, identity.ClientConfig(s.Source(), hbonetest.ClientID, []identity.ID{hbonetest.ServerID}))
		if err := c.Handshake(); err != nil {
			t.Error(err)
		}
		return c
	}
	for _, tc := range []struct {
		name string
		op   string
		send func(t *testing.T, s *hbonetest.Server, nc net.Conn)
	}{
		{"nothing", "tls handshake", func(*testing.T, *hbonetest.Server, net.Conn) {}},
		{"TLS a byte at a time", "tls handshake", func(t *testing.T, s *hbonetest.Server, nc net.Conn) {
			c := tls.Client(trickle{nc, 50 * time.Millisecond}, identity.ClientConfig(s.Source(), hbonetest.ClientID, []identity.ID{hbonetest.ServerID}))
			if c.Handshake() == nil {
				t.Error("the handshake was finished")
			}
		}},
		{"half a preface", "read", func(t *testing.T, s *hbonetest.Server, nc net.Conn) {
			io.WriteString(tlsClient(t, s, nc), http2.ClientPreface[:10])
		}},
		{"preface without SETTINGS", "read", func(t *testing.T, s *hbonetest.Server, nc net.Conn) {
			io.WriteString(tlsClient(t, s, nc), http2.ClientPreface)
		}},
		{"preface a byte at a time", "read", func(t *testing.T, s *hbonetest.Server, nc net.Conn) {
			c := tlsClient(t, s, nc)
			for _, b := range []byte(http2.ClientPreface) {
				time.Sleep(time.Second)
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
			}
			t.Error("the preface was finished")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var failed error
				var at time.Duration
				start := time.Now()
				s := hbonetest.NewServer(t, hbonetest.Options{Memory: true, Server: hbone.Config{HandshakeTimeout: limit},
					OnHandshakeError: func(err error) { failed, at = err, time.Since(start) }}, echo)
				nc, err := s.DialRaw()
				if err != nil {
					t.Fatal(err)
				}
				tc.send(t, s, nc)
				time.Sleep(2 * limit)
				nc.Close()
				synctest.Wait()
				var ce *hbone.ConnError
				if !errors.As(failed, &ce) || ce.Op != tc.op {
					t.Fatalf("ended with %v", failed)
				}
				if at < limit || at > limit+2*time.Second {
					t.Errorf("ended after %v: %v", at, failed)
				}
			})
		})
	}
}

// TestSlowServersEndInTime is the client's turn: a server that does not go on holds no
// dial up for longer than its limit.
//
//ambit:feature hbone-slow-handshakes
func TestSlowServersEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		go io.Copy(io.Discard, b)
		start := time.Now()
		src := hbonetest.NewCA(t).Source(hbonetest.ClientID)
		_, err := hbone.NewClient(context.Background(), a, identity.ClientConfig(src, hbonetest.ClientID, nil), hbone.Config{HandshakeTimeout: 3 * time.Second})
		var ce *hbone.ConnError
		if !errors.As(err, &ce) || ce.Op != "tls handshake" || !strings.Contains(err.Error(), "not finished after 3s") {
			t.Errorf("ended with %v", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("after %v", d)
		}
	})
}
