package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// ClientStatus describes one connected client.
type ClientStatus struct {
	Caller    Caller
	NodeID    string // what the client calls itself; only for display
	Version   string // what the client says it is; only for display
	Cluster   string // where the client says it is; only for display
	Connected time.Time
	Types     []TypeStatus
	Roots     string // hash of the roots it has said to have; "" for none
}

// TypeStatus is how far one client is with one resource type.
type TypeStatus struct {
	TypeURL      string
	Sent, Acked  uint64 // snapshot versions; equal when the client is current
	AckedTime    time.Time
	LastNACK     string // empty when the last answer was an ACK
	LastNACKTime time.Time
}

// client serves one stream.
type client struct {
	server *Server
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	caller Caller
	since  time.Time
	whole  bool // the mesh is small: even who asks for single names gets all of it

	// Owned by run.
	subs            map[string]*subscription
	trust, settings single
	// behind is when the first change came that the client has not been sent;
	// zero when there is none.
	behind time.Time
	nonce  uint64
	gauge  prometheus.Gauge // that counts this client; nil before its first request

	mu      sync.Mutex
	nodeID  string       // guarded by mu
	version string       // guarded by mu
	types   []TypeStatus // guarded by mu
	roots   string       // guarded by mu
}

// subscription is the state of one type on one stream.
type subscription struct {
	holds   map[string]string // what the client held at first; nil once answered
	sent    *mesh.Snapshot    // nil until answered
	pending map[string]owed   // by nonce: what is not answered yet
	demand  *demand           // of a client that asks for single names; nil: it gets everything
}

// owed is an answer the client owes.
type owed struct {
	version uint64
	since   time.Time // of the change it brings; zero for a first answer
}

// expect makes the first answer speak of names too, even if only to say that
// they do not exist: somebody waits for them.
func (s *subscription) expect(names []string) {
	for _, n := range names {
		if _, ok := s.holds[n]; ok || n == "*" {
			continue
		}
		if s.holds == nil {
			s.holds = make(map[string]string)
		}
		s.holds[n] = ""
	}
}

// gather is how long the answer to a first request waits for the request of
// the other type, so that policies travel before the workloads they protect.
const gather = 100 * time.Millisecond

func newClient(s *Server, stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, caller Caller, whole bool) *client {
	return &client{server: s, stream: stream, caller: caller, whole: whole, since: time.Now(), subs: make(map[string]*subscription),
		trust:    single{typeURL: wire.TypeTrust, name: wire.TrustName},
		settings: single{typeURL: wire.TypeSettings, name: wire.SettingsName},
	}
}

// run is the owner of the client's state; it returns the status of the stream.
func (c *client) run() (err error) {
	log := c.server.config.Logger.With("peer", peerOf(c.stream.Context()), "pod", c.caller.Namespace+"/"+c.caller.PodName, "node", c.caller.Node)
	log.Info("xds client connected")
	defer func() {
		if c.gauge != nil {
			c.gauge.Dec()
		}
		log.Info("xds client gone", "after", time.Since(c.since).Round(time.Millisecond), "node_id", c.status().NodeID, "error", err)
	}()

	// Nothing is read before it is this client's turn: the request waits in
	// the client, where there is one of it.
	select {
	case c.server.turns <- struct{}{}:
	case <-c.stream.Context().Done():
		return c.stream.Context().Err()
	case <-c.server.stopping:
		return nil
	}
	turn := true
	leave := func() {
		if turn {
			turn = false
			<-c.server.turns
		}
	}
	defer leave()
	late := time.NewTimer(firstAnswer)
	defer late.Stop()

	requests := make(chan *discovery.DeltaDiscoveryRequest)
	ended := make(chan error, 1)
	// Recv ends when this handler returns, so nothing can wait for the reader
	// here; Server.Wait does.
	ctx, cancel := context.WithCancel(c.stream.Context())
	defer cancel()
	c.server.running.Add(1)
	go func() {
		defer c.server.running.Done()
		for {
			r, err := c.stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()

	recheck := time.NewTimer(c.untilRecheck())
	defer recheck.Stop()
	checked := make(chan error, 1)
	var gathering <-chan time.Time
	for {
		changed := c.server.config.Store.Changed()
		trustChanged := c.server.trustChanged()
		// The roots go first and wait for nothing: they are what the rest is
		// verified with, and a client may hold up a change of them.
		if err := c.pushTrust(); err != nil {
			return err
		}
		if err := c.pushSettings(c.server.config.Store.Load()); err != nil {
			return err
		}
		if gathering == nil {
			if err := c.push(c.server.config.Store.Load()); err != nil {
				return err
			}
		}
		select {
		case r := <-requests:
			first := len(c.subs) == 0
			if err := c.request(r); err != nil {
				return err
			}
			if first && len(c.subs) > 0 {
				gathering = time.After(gather)
			} else if len(c.subs) > 1 {
				gathering = nil
			}
			if c.settled() {
				leave()
			}
		case <-late.C:
			leave()
		case <-gathering:
			gathering = nil
		case <-changed:
			if c.behind.IsZero() {
				c.behind = time.Now()
			}
		case <-trustChanged:
		case <-recheck.C:
			// The answer may take the API server's time; changes do not wait.
			c.server.running.Go(func() {
				_, err := c.server.authenticate(ctx)
				checked <- err
			})
		case err := <-checked:
			switch status.Code(err) {
			case codes.Unauthenticated, codes.PermissionDenied:
				c.server.metrics.refused.Inc()
				return err
			}
			recheck.Reset(c.untilRecheck()) // an API server that is away ends nothing
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-c.server.stopping:
			return nil
		}
	}
}

// settled reports that the client has acknowledged everything it asked for.
func (c *client) settled() bool {
	for _, sub := range c.subs {
		if sub.sent == nil || len(sub.pending) > 0 {
			return false
		}
	}
	return true
}

// untilRecheck spreads the rechecks of clients that came at once.
func (c *client) untilRecheck() time.Duration {
	return time.Duration(float64(c.server.config.Recheck) * (0.8 + 0.4*rand.Float64()))
}

// request takes in a subscription, an ACK or a NACK.
func (c *client) request(r *discovery.DeltaDiscoveryRequest) error {
	url := r.GetTypeUrl()
	if url == wire.TypeTrust && c.server.config.Trust != nil {
		c.trustRequest(r)
		return nil
	}
	if url == wire.TypeSettings {
		c.singleRequest(&c.settings, "the mesh's settings", r)
		return nil
	}
	if url != wire.TypeAddress && url != wire.TypeAuthorization {
		return status.Errorf(codes.InvalidArgument, "type %q is not served here", url)
	}
	sub := c.subs[url]
	if c.gauge == nil {
		c.gauge = c.server.metrics.connected.WithLabelValues(kindOf(r.GetNode()))
		c.gauge.Inc()
	}
	if sub == nil {
		sub = &subscription{holds: r.GetInitialResourceVersions(), pending: make(map[string]owed)}
		if url == wire.TypeAddress && !c.whole && onDemand(r) {
			sub.demand = newDemand(r, c.caller.Node)
		} else {
			sub.expect(r.GetResourceNamesSubscribe())
		}
		c.subs[url] = sub
		c.mu.Lock()
		c.types = append(c.types, TypeStatus{TypeURL: url})
		if id := r.GetNode().GetId(); id != "" {
			c.nodeID = id
			_, c.version = kindOf(r.GetNode())
		}
		c.mu.Unlock()
		return nil
	}
	if nonce := r.GetResponseNonce(); nonce != "" {
		if o, ok := sub.pending[nonce]; ok {
			delete(sub.pending, nonce)
			c.answered(url, o, r)
		}
	}
	names := r.GetResourceNamesSubscribe()
	if sub.demand != nil {
		sub.demand.giveUp(r.GetResourceNamesUnsubscribe())
		if sub.sent == nil {
			sub.demand.ask(names)
			return nil
		}
	}
	if sub.sent == nil {
		sub.expect(names)
		return nil
	}
	if len(names) > 0 {
		var u update
		if sub.demand != nil {
			u = c.server.namedDemand(sub.demand, names, sub.sent)
		} else {
			u = c.server.named(url, names, sub.sent)
		}
		if !u.empty() {
			return c.send(sub, u, sub.sent)
		}
	}
	return nil
}

func (c *client) answered(url string, o owed, r *discovery.DeltaDiscoveryRequest) {
	reason := ""
	if d := r.GetErrorDetail(); d != nil {
		if reason = d.GetMessage(); reason == "" {
			reason = fmt.Sprintf("refused with code %d and no message", d.GetCode())
		}
		c.server.metrics.rejects.WithLabelValues(metricType(url)).Inc()
		c.server.config.Logger.Error("xds client refused resources", "pod", c.caller.Namespace+"/"+c.caller.PodName,
			"node", c.caller.Node, "type", url, "error", reason)
	} else if !o.since.IsZero() {
		c.server.metrics.converged.Observe(time.Since(o.since).Seconds())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.types {
		t := &c.types[i]
		if t.TypeURL != url {
			continue
		}
		t.LastNACK = reason
		if reason != "" {
			t.LastNACKTime = time.Now()
		} else {
			t.Acked, t.AckedTime = max(t.Acked, o.version), time.Now()
		}
	}
}

// push brings the client to the snapshot to, unless it still owes an answer:
// then the next answer brings it further. New policies go before the addresses
// that need them, removals of policies after.
func (c *client) push(to *mesh.Snapshot) error {
	for _, sub := range c.subs {
		if len(sub.pending) > 0 {
			return nil
		}
	}
	policies, policySub, err := c.next(wire.TypeAuthorization, to)
	if err != nil {
		return err
	}
	addresses, addressSub, err := c.next(wire.TypeAddress, to)
	if err != nil {
		return err
	}
	late := update{typeURL: wire.TypeAuthorization}
	if policies != nil && addresses != nil {
		late.removed, policies.removed = policies.removed, nil
	}
	if policies != nil && (!policies.empty() || policySub.sent == nil || late.empty()) {
		if err := c.deliver(policySub, policies, to); err != nil {
			return err
		}
	}
	if addresses != nil {
		if err := c.deliver(addressSub, addresses, to); err != nil {
			return err
		}
	}
	if !late.empty() {
		err = c.deliver(policySub, &late, to)
	}
	c.behind = time.Time{}
	return err
}

// next is what the client has to be told about one type; nil when it does not
// ask for it or is current.
func (c *client) next(url string, to *mesh.Snapshot) (*update, *subscription, error) {
	sub := c.subs[url]
	if sub == nil || sub.sent == to {
		return nil, sub, nil
	}
	var u update
	switch {
	case sub.sent == nil && sub.demand != nil:
		u = c.server.initialDemand(sub.demand, sub.holds, to)
	case sub.sent == nil:
		u = c.server.initial(url, sub.holds, to)
	case sub.demand != nil:
		u = c.server.changesDemand(sub.demand, sub.sent, to)
	default:
		u = c.server.changes(url, sub.sent, to)
	}
	return &u, sub, nil
}

// deliver sends u if it says anything or is the first word on its type.
func (c *client) deliver(sub *subscription, u *update, to *mesh.Snapshot) error {
	first := sub.sent == nil
	sub.sent, sub.holds = to, nil
	if u.empty() && !first {
		c.current(u.typeURL, to)
		return nil
	}
	return c.send(sub, *u, to)
}

// current notes that the snapshot to differs in nothing the client sees.
func (c *client) current(url string, to *mesh.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.types {
		if t := &c.types[i]; t.TypeURL == url {
			if t.Acked == t.Sent {
				t.Acked = to.Version()
			}
			t.Sent = to.Version()
		}
	}
}

func (c *client) send(sub *subscription, u update, to *mesh.Snapshot) error {
	if !c.behind.IsZero() {
		c.server.metrics.queued.Observe(time.Since(c.behind).Seconds())
	}
	nonce, err := c.reply(u, to.Version())
	sub.pending[nonce] = owed{to.Version(), c.behind}
	c.mu.Lock()
	for i := range c.types {
		if c.types[i].TypeURL == u.typeURL {
			c.types[i].Sent = to.Version()
		}
	}
	c.mu.Unlock()
	return err
}

// reply puts one response on the stream.
func (c *client) reply(u update, version uint64) (nonce string, err error) {
	c.nonce++
	nonce = strconv.FormatUint(c.nonce, 10)
	start := time.Now()
	err = c.stream.Send(&discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: strconv.FormatUint(version, 10),
		TypeUrl:           u.typeURL,
		Nonce:             nonce,
		Resources:         u.resources,
		RemovedResources:  u.removed,
	})
	c.server.metrics.sent(u, time.Since(start))
	return nonce, err
}

func (c *client) status() ClientStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ClientStatus{Caller: c.caller, NodeID: c.nodeID, Version: c.version, Cluster: clusterOf(c.stream.Context()), Connected: c.since, Types: append([]TypeStatus(nil), c.types...), Roots: c.roots}
}

// clusterOf is the cluster that a client says it is in, with the metadata of its
// stream. It is only displayed, and not if it cannot be the name of one.
func clusterOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("clusterid"); len(v) > 0 && len(v[0]) <= 253 {
		return v[0]
	}
	return ""
}

func peerOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return "unknown"
}
