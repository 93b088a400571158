package outbound

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

// TestNames: one question for many who want to know at once, what was said
// counts for a while, a failure for less, and who gives up takes nobody along.
func TestNames(t *testing.T) {
	now := time.Unix(1000, 0)
	var asked atomic.Int32
	hold, asking := make(chan struct{}), make(chan struct{}, 2*maxNames+100)
	var err error
	ttl := 30 * time.Second
	n := &Names{known: map[string]*answer{}, now: func() time.Time { return now }}
	n.ask = func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
		asked.Add(1)
		asking <- struct{}{}
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, 0, errors.New("the resolver's own words")
		}
		return []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fd00::1")}, ttl, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error)
	go func() { _, err := n.lookup(ctx, "a"); first <- err }()
	<-asking
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			all, err := n.lookup(context.Background(), "a")
			if err != nil || len(all) != 2 || all[0] != netip.MustParseAddr("10.0.0.1") {
				t.Errorf("%v, %v", all, err)
			}
		})
	}
	cancel()
	if err := <-first; err == nil {
		t.Error("answered although given up")
	}
	close(hold)
	wg.Wait()
	if k := asked.Load(); k > 2 { // the one given up, and one for the others
		t.Errorf("asked %d times", k)
	}
	before := asked.Load()
	now = now.Add(ttl)
	n.lookup(context.Background(), "a")
	if asked.Load() != before {
		t.Error("asked again although fresh")
	}
	now = now.Add(1)
	err = errors.New("no such host")
	if _, got := n.lookup(context.Background(), "a"); got != err || asked.Load() != before+1 {
		t.Errorf("%v after %d", got, asked.Load())
	}
	now = now.Add(nameMissing + 1)
	err = nil
	if _, got := n.lookup(context.Background(), "a"); got != nil {
		t.Error(got)
	}
	for said, counts := range map[time.Duration]time.Duration{0: nameLeast, time.Hour: nameMost} {
		now = now.Add(nameMost + 1)
		ttl = said
		n.lookup(context.Background(), "a")
		if got := n.known["a"].until.Sub(now); got != counts {
			t.Errorf("a TTL of %s counts for %s, want %s", said, got, counts)
		}
	}
	for i := range 2*maxNames + 1 {
		n.lookup(context.Background(), string(rune('b'+i)))
	}
	if len(n.known) > maxNames {
		t.Errorf("%d names kept", len(n.known))
	}
}

//ambit:feature traffic-families
func TestChooseAddress(t *testing.T) {
	four, six, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.2")
	last := func(n int) int { return n - 1 }
	if got := choose([]netip.Addr{four, six, other}, true, last); got != other {
		t.Error(got)
	}
	if got := choose([]netip.Addr{four, six}, false, last); got != six {
		t.Error(got)
	}
	if got := choose([]netip.Addr{four}, false, last); got != four {
		t.Error(got)
	}
}

// Each connection to a workload that is a host name is counted, whether DNS was
// asked for it or not; the name that does not resolve has a reason.
//
//ambit:feature waypoint-host-name
func TestNamesAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	asked := 0
	n := NewNames(func(_ context.Context, host string) ([]netip.Addr, time.Duration, error) {
		asked++
		if host == "gone.example" {
			return nil, 0, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Hour, nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := New(Config{Names: n, Dialer: plainDialer{}, Table: live.New(live.Config{Store: mesh.NewStore(), Metrics: live.NewMetrics(reg), Logger: log})})
	source := workload("client", func(w *mesh.Workload) { w.WorkloadName = "shell" }, "127.0.0.1")
	port := live.AddrPort(ln.Addr()).Port()
	to := func(host string) Route {
		return Route{Kind: TCP, Addr: netip.AddrPortFrom(netip.Addr{}, port), Upstream: workload("s", func(w *mesh.Workload) { w.Hostname = host })}
	}
	for range 2 {
		r := to("s.example")
		up, err := p.dial(t.Context(), &r, source, addrPort("127.0.0.1:1"))
		if err != nil {
			t.Fatal(err)
		}
		up.(plain).c.Close()
		if r.Addr != live.AddrPort(ln.Addr()) {
			t.Errorf("dialled %s", r.Addr)
		}
	}
	r := to("gone.example")
	var e *live.Error
	if _, err := p.dial(t.Context(), &r, source, addrPort("127.0.0.1:1")); !errors.As(err, &e) || e.Reason != live.NameUnresolved {
		t.Error(err)
	}
	if asked != 2 {
		t.Errorf("DNS was asked %d times", asked)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "istio_on_demand_dns_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["source_workload"] != "shell" || len(labels) != 9 {
				t.Errorf("labels %v", labels)
			}
			got[labels["hostname"]] = m.GetCounter().GetValue()
		}
	}
	if got["s.example"] != 2 || got["gone.example"] != 1 || len(got) != 2 {
		t.Errorf("%v", got)
	}
}

// plainDialer dials where the test runs.
type plainDialer struct{ net.Dialer }

func (d plainDialer) DialTCP(ctx context.Context, _, remote netip.AddrPort, _ netns.SocketOptions) (*net.TCPConn, error) {
	c, err := d.DialContext(ctx, "tcp", remote.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
