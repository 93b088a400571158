package hbonetest

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// RawServer hands out the server's end of connections after their TLS handshake,
// for tests that say themselves what a server says.
type RawServer struct {
	t      testing.TB
	source identity.Source
	ln     net.Listener
	cfg    hbone.Config
	Conns  chan *tls.Conn
}

// NewRawServer lives until the test ends. cfg is the clients'.
func NewRawServer(t testing.TB, cfg hbone.Config) *RawServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &RawServer{t: t, source: NewCA(t).Source(ServerID, ClientID), ln: ln, cfg: cfg, Conns: make(chan *tls.Conn, 16)}
	t.Cleanup(func() { ln.Close() })
	return s
}

// Dial connects a client; its other end is the next in Conns.
func (s *RawServer) Dial(ctx context.Context) (*hbone.Conn, error) {
	nc, err := net.Dial("tcp", s.ln.Addr().String())
	if err != nil {
		return nil, err
	}
	far, err := s.ln.Accept()
	if err != nil {
		nc.Close()
		return nil, err
	}
	s.t.Cleanup(func() { far.Close() })
	if err := far.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	end := tls.Server(far, identity.ServerConfig(s.source, ServerID))
	done := make(chan error, 1)
	go func() { done <- end.HandshakeContext(ctx) }()
	c, err := hbone.NewClient(ctx, nc, identity.ClientConfig(s.source, ClientID, []identity.ID{ServerID}), s.cfg)
	if err != nil {
		return nil, err
	}
	if err := <-done; err != nil {
		c.Close()
		return nil, err
	}
	s.Conns <- end
	return c, nil
}
