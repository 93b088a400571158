package netns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/ambitmesh/ambit/ztunnel/older"
	"github.com/prometheus/client_golang/prometheus"
)

// Ten thousand older connections: each is reset and counted, and the log does
// not drown. What it costs is printed.
//
//ambit:feature policy-older-destroyed
func TestManyOlderConnections(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces: needs root")
	}
	const many = 10000
	pod, peer := newNS(t), newNS(t)
	join(t, pod, "eth0", peer, "eth0")
	up(t, pod, "eth0", "10.0.0.1/24")
	up(t, peer, "eth0", "10.0.0.2/24")
	// Nobody accepts: so one descriptor for each connection is enough. A queue
	// holds 4096.
	ports := []uint16{8001, 8002, 8003, 8004}
	for _, port := range ports {
		f, err := pod.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	conns := make([]*net.TCPConn, many)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for worker := range 8 {
		wg.Go(func() {
			for i := worker; i < many; i += 8 {
				c, err := peer.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), ports[i%len(ports)]), netns.SocketOptions{})
				if err != nil {
					errs <- err
					return
				}
				conns[i] = c
			}
		})
	}
	wg.Wait()
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	if len(errs) > 0 {
		t.Fatal(<-errs)
	}

	store, reg := mesh.NewStore(), prometheus.NewRegistry()
	apply := func(d mesh.Delta) {
		b := mesh.NewBuilder(store.Load())
		b.Apply(d)
		store.Swap(b.Build())
	}
	apply(mesh.Delta{Workloads: []*mesh.Workload{
		{UID: "server", Name: "server", Namespace: "demo", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		{UID: "client", Name: "client", Namespace: "demo", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}}})
	var out lockedBuffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	w := older.New(older.Config{Store: store, Registerer: reg, Logger: log,
		Table: live.New(live.Config{Store: store, Metrics: live.NewMetrics(reg), Logger: log})})
	run, stop := context.WithCancel(t.Context())
	wg.Go(func() { w.Run(run) })
	defer wg.Wait()
	defer stop()
	counted := func() float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "ambit_connections_failed_total" {
				return f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		return 0
	}

	began := time.Now()
	all, err := pod.Connections()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(netns.Uncaptured(all)); n != many {
		t.Fatalf("%d connections are seen, want %d", n, many)
	}
	t.Logf("a look at %d connections takes %s", many, time.Since(began).Round(100*time.Microsecond))
	// The policy comes first, so that whenever the pod is looked at all are ended.
	apply(mesh.Delta{Policies: []*mesh.Policy{{Name: "all", Namespace: "demo", Scope: mesh.ScopeNamespace, Action: mesh.Deny, Rules: []mesh.Rule{{}}}}})
	began = time.Now()
	w.Add(&live.Pod{UID: "server", Name: "server", Namespace: "demo"}, pod)
	eventually(t, "all are ended", func() error {
		if n := counted(); n != many {
			return fmt.Errorf("%v are", n)
		}
		return nil
	})
	t.Logf("to find and to reset %d connections takes %s", many, time.Since(began).Round(time.Millisecond))
	for i, c := range conns {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("connection %d: %v, not a reset", i, err)
		}
	}
	if n := strings.Count(out.String(), "connection destroyed"); n == 0 || n > 100 {
		t.Errorf("%d lines", n)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
