package hbonetest

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// Options of a pair; the zero value is the ordinary one.
type Options struct {
	Client, Server hbone.Config
	// Memory joins the two by net.Pipe instead of loopback TCP. It works in a
	// synctest bubble.
	Memory bool
	// Authority, if not nil, is used instead of a new CA.
	Authority *CA
	// OnHandshakeError, if not nil, is told of connections that fail early.
	OnHandshakeError func(error)
}

// Pair connects a client to a server with the given handler. Both are closed
// when the test ends; the handlers' streams end with them.
func Pair(t testing.TB, o Options, handler func(*hbone.Incoming)) *hbone.Conn {
	t.Helper()
	s := NewServer(t, o, handler)
	c, err := s.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ServerID and ClientID are who the two ends of a pair are.
var (
	ServerID = ID("server")
	ClientID = ID("client")
)

// Server serves any number of connections.
type Server struct {
	Hbone *hbone.Server
	CA    *CA

	o      Options
	source identity.Source
	ctx    context.Context
	stop   context.CancelFunc
	ln     net.Listener // nil in memory
	served sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	errs  []error
}

// NewServer starts a server that lives until the test ends.
func NewServer(t testing.TB, o Options, handler func(*hbone.Incoming)) *Server {
	t.Helper()
	ca := o.Authority
	if ca == nil {
		ca = NewCA(t)
	}
	src := ca.Source(ServerID, ClientID)
	s := &Server{
		CA: ca, o: o, source: src, conns: map[net.Conn]bool{},
		Hbone: &hbone.Server{TLS: identity.ServerConfig(src, ServerID), Config: o.Server, Handler: handler},
	}
	if o.OnHandshakeError != nil {
		s.Hbone.OnHandshakeError = func(_ netip.AddrPort, err error) { o.OnHandshakeError(err) }
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if !o.Memory {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.ln = ln
		s.served.Go(s.accept)
	}
	t.Cleanup(s.Close)
	return s
}

func (s *Server) accept() {
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.serve(nc)
	}
}

func (s *Server) serve(nc net.Conn) {
	s.mu.Lock()
	s.conns[nc] = true
	s.mu.Unlock()
	s.served.Go(func() {
		err := s.Hbone.Serve(s.ctx, nc)
		s.mu.Lock()
		delete(s.conns, nc)
		s.errs = append(s.errs, err)
		s.mu.Unlock()
	})
}

// Dial connects a client.
func (s *Server) Dial(ctx context.Context) (*hbone.Conn, error) {
	nc, err := s.DialRaw()
	if err != nil {
		return nil, err
	}
	return s.Client(ctx, nc)
}

// Client makes a client out of a connection from DialRaw.
func (s *Server) Client(ctx context.Context, nc net.Conn) (*hbone.Conn, error) {
	return hbone.NewClient(ctx, nc, identity.ClientConfig(s.source, ClientID, []identity.ID{ServerID}), s.o.Client)
}

// DialRaw connects without TLS.
func (s *Server) DialRaw() (net.Conn, error) {
	if s.ln != nil {
		return net.Dial("tcp", s.ln.Addr().String())
	}
	a, b := net.Pipe()
	s.serve(b)
	return a, nil
}

// Source has certificates of both ends.
func (s *Server) Source() identity.Source { return s.source }

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// GoAway drains all connections, present and future.
func (s *Server) GoAway() { s.stop() }

// Errors are what Serve returned for the connections that have ended.
func (s *Server) Errors() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]error(nil), s.errs...)
}

// Close cuts all connections and waits for the handlers.
func (s *Server) Close() {
	s.stop()
	if s.ln != nil {
		s.ln.Close()
	}
	s.mu.Lock()
	for nc := range s.conns {
		nc.Close()
	}
	s.mu.Unlock()
	s.served.Wait()
}
