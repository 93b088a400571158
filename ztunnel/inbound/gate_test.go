package inbound

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

// TestHandshakesPassTheGate: a handshake that is over makes room, one that says
// nothing does not.
func TestHandshakesPassTheGate(t *testing.T) {
	w := &mesh.Workload{UID: "c//Pod/ns/p", Name: "p", Namespace: hbonetest.ServerID.Namespace,
		ServiceAccount: hbonetest.ServerID.ServiceAccount, TrustDomain: hbonetest.ServerID.TrustDomain,
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Protocol: mesh.ProtocolHBONE}
	b := mesh.NewBuilder(nil)
	b.Apply(mesh.Delta{Workloads: []*mesh.Workload{w}})
	store := mesh.NewStore()
	store.Swap(b.Build())
	source := hbonetest.NewCA(t).Source(hbonetest.ServerID, hbonetest.ClientID)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	p := New(Config{
		Pod:   &live.Pod{UID: "u", Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount},
		Store: store, Source: source,
		Table: live.New(live.Config{Store: store, Metrics: live.NewMetrics(prometheus.NewRegistry()), Logger: log}),
	})
	p.gate = live.NewGate(live.GateConfig{Limit: 1, Patience: time.Hour})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- p.ServeHBONE(ctx, ctx, ln) }()
	dial := func() net.Conn {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		return nc
	}
	handshake := func(limit time.Duration) error {
		hctx, stop := context.WithTimeout(context.Background(), limit)
		defer stop()
		c, err := hbone.NewClient(hctx, dial(), identity.ClientConfig(source, hbonetest.ClientID, []identity.ID{hbonetest.ServerID}), hbone.Config{})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}
	for range 3 { // connections stay open, only handshakes count
		if err := handshake(20 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	silent := dial()
	if err := handshake(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with the gate full: %v", err)
	}
	silent.Close()
	if err := handshake(20 * time.Second); err != nil {
		t.Error(err)
	}
	ln.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
