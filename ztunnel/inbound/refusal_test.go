package inbound

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

// blackhole is an application that does not answer.
type blackhole struct{ dialling chan struct{} }

func (b blackhole) DialTCP(ctx context.Context, _, _ netip.AddrPort, _ netns.SocketOptions) (*net.TCPConn, error) {
	close(b.dialling)
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// syncBuffer is a log that tests wait on.
type syncBuffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	written chan struct{}
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.b.Write(p)
	s.written <- struct{}{}
	return n, err
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestClientGivesUp: a client that goes while its application is dialled is
// the cause, not the dial that was given up for it.
func TestClientGivesUp(t *testing.T) {
	levels, err := live.NewLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	w := &mesh.Workload{UID: "c//Pod/ns/p", Name: "p", Namespace: "ns", ServiceAccount: "server",
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Protocol: mesh.ProtocolHBONE}
	b := mesh.NewBuilder(nil)
	b.Apply(mesh.Delta{Workloads: []*mesh.Workload{w}})
	store := mesh.NewStore()
	store.Swap(b.Build())
	log := &syncBuffer{written: make(chan struct{}, 10)}
	app := blackhole{make(chan struct{})}
	p := New(Config{
		Pod:    &live.Pod{UID: "u", Name: "p", Namespace: "ns", ServiceAccount: "server"},
		Dialer: app, Store: store,
		Table: live.New(live.Config{Store: store, Metrics: live.NewMetrics(prometheus.NewRegistry()),
			Logger: slog.New(live.NewLogHandler(log, false, levels))}),
	})
	c := hbonetest.Pair(t, hbonetest.Options{}, func(in *hbone.Incoming) { p.connect(context.Background(), in) })
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		_, err := c.Open(ctx, hbone.Request{Authority: "127.0.0.1:80"})
		failed <- err
	}()
	<-app.dialling
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
	}
	<-log.written
	if l := log.String(); !strings.Contains(l, `reason="client_reset"`) || strings.Count(l, "\n") != 1 {
		t.Errorf("log: %s", l)
	}
}
