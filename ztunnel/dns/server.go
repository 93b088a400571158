package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// Namespace opens sockets in the pod's network namespace; *netns.NS is one.
type Namespace interface {
	DialUDP(remote netip.AddrPort, o netns.SocketOptions) (*net.UDPConn, error)
	DialTCP(ctx context.Context, local, remote netip.AddrPort, o netns.SocketOptions) (*net.TCPConn, error)
	Impostor(v6 bool, mark uint32) (*netns.Impostor, error)
}

// Settings are the same for all pods.
type Settings struct {
	// Off: everything is forwarded. A pod whose questions are captured needs
	// somebody who takes them in any case.
	Off    bool
	Domain string // of the cluster; "" means cluster.local
	// PreferredNamespace wins among services of one name that are equal otherwise.
	PreferredNamespace string
	NoIPv6             bool // AAAA questions about the mesh's names have no answer
	// Resolvers are asked when it is not known whom the pod asked: where capture
	// is another agent's and rewrites addresses. They are dialled from the pod.
	Resolvers []netip.AddrPort
}

// Config of a Server.
type Config struct {
	Settings
	Pod       *live.Pod
	Node      string
	Namespace Namespace
	Store     *mesh.Store
	// Share is the pod's of the node's connections; nil bounds nothing.
	Share   *live.Share
	Metrics *Metrics
	Logger  *slog.Logger
	// Original gives what a TCP client dialled. nil: the local address of the
	// accepted socket.
	Original func(*net.TCPConn) netip.AddrPort
	// Rewritten: the addresses of datagrams are not what the client used, and
	// answers go out of the socket that the questions came in at.
	Rewritten bool
}

const (
	// maxWaiting is how many questions of one pod may wait for a resolver.
	maxWaiting = 1024
	// upstreamTimeout is how long a question waits for a resolver in all. It is
	// that of the usual client library for one try.
	upstreamTimeout = 5 * time.Second
	// firstTry is after what part of it a question over UDP is sent once more: a
	// datagram may be lost on the way.
	firstTry = 2 * time.Second
	// tcpIdle is how long a TCP client may be silent, the reference's.
	tcpIdle = 5 * time.Second
	// maxPipelined is how many questions of one TCP client are worked on at once.
	maxPipelined = 64
)

// Server answers one pod.
type Server struct {
	cfg     Config
	rules   rules
	waiting chan struct{} // a token for each question under way
	log     *slog.Logger
	lastLog atomic.Int64 // nanoseconds; when a drop was last told
	context context.Context

	mu        sync.Mutex
	impostors [2]*netns.Impostor // for IPv4 and IPv6, guarded by mu
	closed    bool               // guarded by mu
}

// New makes a Server.
func New(cfg Config) *Server {
	if cfg.Domain == "" {
		cfg.Domain = "cluster.local"
	}
	if cfg.Original == nil {
		cfg.Original = func(c *net.TCPConn) netip.AddrPort { return live.AddrPort(c.LocalAddr()) }
	}
	// In the pod's namespace a loopback address is the pod itself.
	cfg.Resolvers = slices.DeleteFunc(slices.Clone(cfg.Resolvers), func(a netip.AddrPort) bool { return a.Addr().IsLoopback() })
	return &Server{
		cfg: cfg, rules: rules{domain: cfg.Domain, preferred: cfg.PreferredNamespace, noIPv6: cfg.NoIPv6},
		waiting: make(chan struct{}, maxWaiting), log: cfg.Logger.With(live.ScopeKey, "dns"), context: context.Background(),
	}
}

// exchange is one question with what is known of it.
type exchange struct {
	*question
	raw      []byte
	protocol string
	limit    int            // of the answer
	client   netip.AddrPort // who asks
	server   netip.AddrPort // whom; invalid when that is not known
	series   *series        // nil until counted
	self     *mesh.Workload // nil until known
}

// local answers what the mesh owns and the pod's record is known for. done says
// that the answer is the last word; otherwise resolve is to be called, which may
// take its time.
func (s *Server) local(x *exchange) (answer []byte, done bool) {
	snap := s.cfg.Store.Load()
	x.self = snap.LocalWorkload(s.cfg.Node, s.cfg.Pod.Namespace, s.cfg.Pod.Name, s.cfg.Pod.ServiceAccount)
	x.series = s.cfg.Metrics.of(x.question, x.protocol, x.self)
	x.series.requests.Inc()
	if x.self == nil || !x.ours || s.cfg.Off {
		return nil, false
	}
	return s.lookup(snap, x)
}

func (s *Server) lookup(snap *mesh.Snapshot, x *exchange) ([]byte, bool) {
	f := find(snap, client{s.cfg.Pod.Namespace, x.self.Network}, s.rules, x.name, x.v6)
	if f.service == nil {
		return nil, false
	}
	answer, err := x.answer(f, x.limit)
	if err != nil {
		s.told(x, "answer cannot be written: "+err.Error(), nil)
		return nil, false // a name that can be read but not written: not ours
	}
	result := "success"
	if len(f.addrs) == 0 {
		result = "no records"
	}
	s.told(x, result, f.addrs)
	return answer, true
}

var errNoResolver = errors.New("no resolver: the question was sent to ztunnel itself, which has none of its own")

// resolve answers what local did not. nil means no answer at all.
func (s *Server) resolve(ctx context.Context, x *exchange) []byte {
	if x.self == nil && x.ours && !s.cfg.Off {
		snap, self, err := live.Local(ctx, s.cfg.Store, s.cfg.Node, s.cfg.Pod)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			// Whether the name is the mesh's depends on who asks.
			s.told(x, "failed: "+err.Error(), nil)
			return x.failure(x.raw)
		}
		x.self = self
		if answer, done := s.lookup(snap, x); done {
			return answer
		}
	}
	started := time.Now()
	x.series.upstream.Inc()
	answer, err := s.forward(ctx, x)
	if ctx.Err() != nil {
		return nil
	}
	x.series.answered(started, err)
	if err != nil {
		s.told(x, "forwarding failed ("+err.Error()+")", nil)
		return x.failure(x.raw)
	}
	s.told(x, "forwarded", nil)
	return answer
}

// told writes the question's line, which is for debugging only.
func (s *Server) told(x *exchange, result string, endpoints []netip.Addr) {
	if !s.log.Enabled(s.context, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{slog.String("src.workload", s.cfg.Pod.Name), slog.String("src.namespace", s.cfg.Pod.Namespace),
		slog.String("query", x.kind()), slog.String("domain", x.name), slog.String("result", result)}
	if len(endpoints) > 0 {
		attrs = append(attrs, slog.Any("endpoints", endpoints))
	}
	s.log.LogAttrs(s.context, slog.LevelDebug, "dns", attrs...)
}

// dropped counts a question for which there is no room, and says so once a minute.
func (s *Server) dropped(why error) {
	s.cfg.Metrics.dropped.Inc()
	now, last := time.Now().UnixNano(), s.lastLog.Load()
	if now-last < int64(time.Minute) || !s.lastLog.CompareAndSwap(last, now) {
		return
	}
	s.log.LogAttrs(s.context, slog.LevelWarn, "DNS questions are dropped, the pod has too many waiting",
		slog.String("pod", s.cfg.Pod.String()), slog.Any("err", why))
}

// send answers a datagram as the server that was asked.
func (s *Server) send(from, to netip.AddrPort, answer []byte) error {
	i, v6 := 0, from.Addr().Unmap().Is6()
	if v6 {
		i = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock() // a send does not wait
	if s.closed {
		return net.ErrClosed
	}
	if s.impostors[i] == nil {
		var err error
		if s.impostors[i], err = s.cfg.Namespace.Impostor(v6, netns.Mark); err != nil {
			return err
		}
	}
	return s.impostors[i].Send(from, to, answer)
}

// Close closes what Serve calls have left for each other. Call it when all have
// returned.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, i := range s.impostors {
		if i != nil {
			_ = i.Close()
		}
	}
}
