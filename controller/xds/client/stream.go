package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambitmesh/ambit/controller/wire"
)

const (
	connectTimeout = 5 * time.Second
	maxMessage     = 200 << 20
)

// connect runs one stream to its end.
func (c *Client) connect(ctx context.Context) outcome {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.dial()
	if err != nil {
		return outcome{err: err}
	}
	defer func() { _ = conn.Close() }()
	stream, err := c.open(ctx, conn)
	if err != nil {
		return outcome{err: err}
	}
	out := outcome{established: true}
	var halves sync.WaitGroup
	defer halves.Wait()
	defer cancel()
	send := newSender()
	halves.Go(func() { send.run(ctx, stream.Send) })
	responses, ended := make(chan *discovery.DeltaDiscoveryResponse), make(chan error, 1)
	halves.Go(func() { receive(ctx, stream, responses, ended) })
	c.subscribe(send)
	c.config.Logger.Info("xds stream open", "address", c.config.Address)
	c.asked = false
	var wake chan struct{}
	if c.demand != nil {
		wake = c.demand.wake
	}
	for {
		select {
		case r := <-responses:
			out.spoke = true
			header, err := stream.Header()
			if err != nil {
				continue // the stream has failed, which ended will say
			}
			c.askOwn(header, send)
			if c.demand != nil {
				word := header.Get(wire.HeaderOnDemand)
				c.demand.server(len(word) > 0, slices.Contains(word, wire.OnDemandWhole))
			}
			send.put(c.handle(r))
			if c.demand != nil && r.GetTypeUrl() == wire.TypeAddress {
				c.setMode(header)
			}
		case <-wake:
			c.askNames(send)
		case err := <-ended:
			if out.err = err; errors.Is(err, io.EOF) {
				out.err = nil
			}
			return out
		}
	}
}

func receive(ctx context.Context, stream deltaStream, responses chan<- *discovery.DeltaDiscoveryResponse, ended chan<- error) {
	for {
		r, err := stream.Recv()
		if err != nil {
			ended <- err
			return
		}
		select {
		case responses <- r:
		case <-ctx.Done():
			ended <- ctx.Err()
			return
		}
	}
}

// sender puts requests on the stream, so that who has one to send never waits
// for a server that waits for us to read. What queues up is bounded by the
// responses received and the names that may be asked at once.
type sender struct {
	wake chan struct{} // one slot

	mu    sync.Mutex
	queue []*discovery.DeltaDiscoveryRequest // guarded by mu
}

func newSender() *sender { return &sender{wake: make(chan struct{}, 1)} }

func (s *sender) put(r *discovery.DeltaDiscoveryRequest) {
	s.mu.Lock()
	s.queue = append(s.queue, r)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run sends until ctx ends or the stream fails; Recv knows the real reason.
func (s *sender) run(ctx context.Context, send func(*discovery.DeltaDiscoveryRequest) error) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, r := range queue {
			if send(r) != nil {
				return
			}
		}
	}
}

func (c *Client) dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if c.config.TLS != nil {
		t, err := c.config.TLS()
		if err != nil {
			return nil, fmt.Errorf("tls for xds server %s: %w", c.config.Address, err)
		}
		creds = credentials.NewTLS(t)
	}
	dialer := &net.Dialer{
		Timeout:         connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9},
	}
	host := strings.TrimPrefix(strings.TrimPrefix(c.config.Address, "https://"), "http://")
	conn, err := grpc.NewClient("dns:///"+host,
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("xds server %q: %w", c.config.Address, err)
	}
	return conn, nil
}

func (c *Client) open(ctx context.Context, conn *grpc.ClientConn) (deltaStream, error) {
	if c.config.Token != nil {
		token, err := c.config.Token()
		if err != nil {
			return nil, fmt.Errorf("token for xds server %s: %w", c.config.Address, err)
		}
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
	}
	if c.config.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", c.config.ClusterID)
	}
	for k, v := range c.config.Headers {
		ctx = metadata.AppendToOutgoingContext(ctx, k, v)
	}
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, fmt.Errorf("open xds stream to %s: %w", c.config.Address, err)
	}
	return s, nil
}

type deltaStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// subscribe asks for everything of each type, telling what is held already. On
// demand the wildcard is given up in the request that names it, and what was
// asked for on earlier streams is asked for again.
func (c *Client) subscribe(send *sender) {
	for _, t := range types {
		r := &discovery.DeltaDiscoveryRequest{Node: c.node(), TypeUrl: t, InitialResourceVersions: maps.Clone(c.held[t])}
		if c.demand != nil && t == wire.TypeAddress {
			names := c.demand.begin()
			slices.Sort(names)
			r.ResourceNamesSubscribe = append([]string{"*"}, names...)
			r.ResourceNamesUnsubscribe = []string{"*"}
			for _, n := range names {
				if _, ok := r.InitialResourceVersions[n]; !ok {
					r.InitialResourceVersions[n] = ""
				}
			}
		}
		send.put(r)
	}
}

// node is who we are, said once per type and stream.
func (c *Client) node() *core.Node {
	fields := make(map[string]*structpb.Value, len(c.config.Metadata)+len(c.config.JSON)+1)
	for k, v := range c.config.Metadata {
		fields[k] = structpb.NewStringValue(v)
	}
	for k, v := range c.config.JSON {
		if s, err := structpb.NewValue(v); err == nil { // always: it was JSON
			fields[k] = s
		}
	}
	if c.demand != nil {
		fields[wire.MetadataServices] = structpb.NewStringValue("all")
	}
	return &core.Node{Id: c.config.NodeID, Metadata: &structpb.Struct{Fields: fields}}
}

// setMode learns how the server deals with single names, once what it said has
// been applied.
func (c *Client) setMode(header metadata.MD) {
	word := header.Get(wire.HeaderOnDemand)
	c.demand.mode(slices.Contains(word, wire.OnDemandWhole), slices.Contains(word, wire.OnDemandNames))
}

// askNames sends the names that were asked for and those given up since.
func (c *Client) askNames(send *sender) {
	asks, giveUps := c.demand.take()
	if len(asks)+len(giveUps) == 0 {
		return
	}
	for _, n := range giveUps {
		delete(c.held[wire.TypeAddress], n) // it may have come under the name it was asked by
	}
	send.put(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.TypeAddress, ResourceNamesSubscribe: asks, ResourceNamesUnsubscribe: giveUps})
}

// handle applies r and returns the answer: an ACK, or a NACK that names what
// was refused. What was good is applied either way.
func (c *Client) handle(r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	size := 0
	for _, x := range r.GetResources() {
		size += len(x.GetResource().GetValue())
	}
	var refused []string
	switch r.GetTypeUrl() {
	case wire.TypeAddress, wire.TypeAuthorization:
		refused = c.apply(r)
		if c.demand != nil && r.GetTypeUrl() == wire.TypeAddress {
			c.demand.answered(namesOf(r), r.GetRemovedResources())
		}
	case wire.TypeTrust:
		refused = c.applyTrust(r)
	case wire.TypeSettings:
		refused = c.applySettings(r)
	default:
		c.config.Logger.Warn("xds response of a type nobody asked for", "type", r.GetTypeUrl())
		c.count("unknown", size)
		return answer
	}
	c.count(r.GetTypeUrl(), size)
	if len(refused) > 0 {
		text := strings.Join(refused, "; ")
		c.config.Logger.Error("xds resources refused", "type", r.GetTypeUrl(), "count", len(refused), "error", text)
		answer.ErrorDetail = &status.Status{Message: text}
	}
	// A control plane does not send again what was refused, not before it
	// changes. To wait for a response without fault would keep a node from ever
	// being ready for one resource; to go on with nothing would be no state.
	if len(refused) == 0 || len(refused) < len(r.GetResources()) || r.GetTypeUrl() == wire.TypeSettings {
		c.hasState(r.GetTypeUrl())
	}
	return answer
}

// hasState notes that there is a state of one type.
func (c *Client) hasState(typeURL string) {
	if !c.waiting[typeURL] {
		return
	}
	delete(c.waiting, typeURL)
	if len(c.waiting) > 0 {
		return
	}
	select {
	case <-c.synced: // on an earlier stream
	default:
		close(c.synced)
	}
}

// namesOf are the names and aliases of what r brought.
func namesOf(r *discovery.DeltaDiscoveryResponse) []string {
	var out []string
	for _, x := range r.GetResources() {
		out = append(append(out, x.GetName()), x.GetAliases()...)
	}
	return out
}

func (c *Client) count(url string, bytes int) {
	c.metrics.messages.WithLabelValues(url).Inc()
	c.metrics.bytes.WithLabelValues(url).Add(float64(bytes))
}
