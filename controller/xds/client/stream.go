package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
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
	if out.err = c.subscribe(stream); out.err != nil && !errors.Is(out.err, io.EOF) {
		return out
	}
	c.config.Logger.Info("xds stream open", "address", c.config.Address)
	c.asked = false
	for {
		r, err := stream.Recv()
		if err != nil {
			if out.err = err; errors.Is(err, io.EOF) {
				out.err = nil
			}
			return out
		}
		out.spoke = true
		if err := c.askTrust(stream); err != nil && !errors.Is(err, io.EOF) {
			out.err = err
			return out
		}
		answer := c.handle(r)
		// EOF from Send means that Recv knows the real reason.
		if err := stream.Send(answer); err != nil && !errors.Is(err, io.EOF) {
			out.err = err
			return out
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
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, fmt.Errorf("open xds stream to %s: %w", c.config.Address, err)
	}
	return s, nil
}

type deltaStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// subscribe asks for everything of each type, telling what is held already.
func (c *Client) subscribe(stream deltaStream) error {
	fields := make(map[string]*structpb.Value, len(c.config.Metadata))
	for k, v := range c.config.Metadata {
		fields[k] = structpb.NewStringValue(v)
	}
	node := &core.Node{Id: c.config.NodeID, Metadata: &structpb.Struct{Fields: fields}}
	for _, t := range types {
		err := stream.Send(&discovery.DeltaDiscoveryRequest{
			Node:                    node,
			TypeUrl:                 t,
			InitialResourceVersions: c.held[t],
		})
		if err != nil {
			return err
		}
	}
	return nil
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
	case wire.TypeTrust:
		refused = c.applyTrust(r)
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
		return answer
	}
	if r.GetTypeUrl() != wire.TypeTrust && c.waiting[r.GetTypeUrl()] {
		delete(c.waiting, r.GetTypeUrl())
		if len(c.waiting) == 0 {
			close(c.synced)
		}
	}
	return answer
}

func (c *Client) count(url string, bytes int) {
	c.metrics.messages.WithLabelValues(url).Inc()
	c.metrics.bytes.WithLabelValues(url).Add(float64(bytes))
}
