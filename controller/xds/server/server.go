// Package server owns the control plane's half of delta ADS: it brings every
// connected data plane to the current mesh snapshot and knows how far each is.
//
// It keeps no queue per client. A client is one goroutine that remembers the
// snapshot it sent last; when the answer to that has come and the store has
// moved on, it sends the difference. A slow client costs nothing and skips
// intermediate states.
package server

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// Caller is who a verified token belongs to.
type Caller struct{ Namespace, ServiceAccount, PodName, PodUID, Node string }

// Config of a Server.
type Config struct {
	Store *mesh.Store
	// Trust is served to who asks for it; nil: nothing is.
	Trust Trust
	// Authenticate says who calls, from nothing but the verified credentials
	// of ctx. Its error is the reason the client is told.
	Authenticate func(ctx context.Context) (Caller, error)
	// Recheck is how often a stream's credentials are looked at again; 0 means
	// every five minutes. A stream ends when they no longer hold.
	Recheck time.Duration
	// FirstAnswers is how many clients get their first answer at once; 0 means
	// 16. It holds the whole mesh, as does the request of a client that
	// reconnects: a thousand at a time after a restart would need gigabytes.
	FirstAnswers int
	// WholeUpTo is up to how many workloads a client that asks for single names
	// is sent all of them nevertheless: a small mesh is cheaper sent than
	// asked for. It is decided when a stream begins.
	WholeUpTo  int
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are not exposed
}

// recheckEvery is the default of Config.Recheck. A thousand clients then cost
// the API server three reviews a second.
const recheckEvery = 5 * time.Minute

// firstAnswer is how long a client may take over its first answer before the
// next one's turn comes nevertheless.
const firstAnswer = 10 * time.Second

// Server answers delta ADS streams.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	config   Config
	metrics  metrics
	encoded  *encodings
	turns    chan struct{} // taken by a client until its first answer is acknowledged
	stopping chan struct{} // closed by Stop

	mu      sync.Mutex
	clients map[*client]struct{} // guarded by mu
	stopped bool                 // guarded by mu
	running sync.WaitGroup       // handlers, added under mu while not stopped, and their readers
}

// New has no side effects but registering metrics.
func New(c Config) *Server {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Recheck <= 0 {
		c.Recheck = recheckEvery
	}
	if c.FirstAnswers <= 0 {
		c.FirstAnswers = 16
	}
	return &Server{
		config:   c,
		turns:    make(chan struct{}, c.FirstAnswers),
		metrics:  newMetrics(c.Registerer),
		encoded:  newEncodings(),
		stopping: make(chan struct{}),
		clients:  make(map[*client]struct{}),
	}
}

// Register adds the service to g, which should be made with Options.
func (s *Server) Register(g *grpc.Server) {
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// Options are what a gRPC server of this service needs: clients ping every 30
// seconds, and the first request of a client that holds a large mesh names
// every resource.
func Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: 5 * time.Minute}),
		grpc.MaxRecvMsgSize(64 << 20),
		// A client needs a stream of xDS and a few certificates at once.
		grpc.MaxConcurrentStreams(128),
	}
}

// Stop ends all streams in order, so that clients turn to another replica, and
// refuses new ones. Call it before the gRPC server's GracefulStop, which would
// wait for streams that never end.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		close(s.stopping)
	}
}

// Wait returns when no stream is left; call it after the gRPC server stopped.
func (s *Server) Wait() { s.running.Wait() }

// Clients lists the connected clients, oldest first.
func (s *Server) Clients() []ClientStatus {
	s.mu.Lock()
	out := make([]ClientStatus, 0, len(s.clients))
	for c := range s.clients {
		out = append(out, c.status())
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b ClientStatus) int { return a.Connected.Compare(b.Connected) })
	return out
}

// DeltaAggregatedResources serves one client until either side ends.
func (s *Server) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	caller, err := s.authenticate(stream.Context())
	if err != nil {
		s.metrics.refused.Inc()
		s.config.Logger.Warn("xds client refused", "peer", peerOf(stream.Context()), "error", err)
		return err
	}
	workloads, _, _ := s.config.Store.Load().Len()
	whole := s.config.WholeUpTo > 0 && workloads <= s.config.WholeUpTo
	header := metadata.Pairs(wire.HeaderOnDemand, wire.OnDemandNames)
	if whole {
		header.Set(wire.HeaderOnDemand, wire.OnDemandWhole)
	}
	header.Set(wire.HeaderTypes, wire.TypeSettings)
	if _, known := s.config.Store.Load().Settings(); known {
		header.Set(wire.HeaderSettings, wire.SettingsKnown)
	}
	if s.config.Trust != nil {
		header.Append(wire.HeaderTypes, wire.TypeTrust)
	}
	// At once: a client asks for more than Istio's types only when it has read
	// this.
	if err := stream.SendHeader(header); err != nil {
		return err
	}
	c := newClient(s, stream, caller, whole)
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return status.Error(codes.Unavailable, "this controller is stopping")
	}
	s.clients[c] = struct{}{}
	s.running.Add(1)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.clients, c)
		if len(s.clients) == 0 {
			s.encoded.clear() // nobody is left to notice removals
		}
		s.mu.Unlock()
		s.running.Done()
	}()
	return c.run()
}

// authenticate gives every refusal a code.
func (s *Server) authenticate(ctx context.Context) (Caller, error) {
	caller, err := s.config.Authenticate(ctx)
	if err == nil {
		return caller, nil
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.Unknown {
		return Caller{}, err
	}
	return Caller{}, status.Errorf(codes.Unauthenticated, "xds client refused: %v", err)
}

// StreamAggregatedResources is the state-of-the-world form, which nobody here
// speaks.
func (s *Server) StreamAggregatedResources(discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "only delta ADS is served")
}
