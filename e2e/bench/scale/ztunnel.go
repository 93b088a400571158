package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/xds/server"
)

// ztunnels has one ztunnel know more and more, and change.
func ztunnels(ctx context.Context, program string, o options) error {
	fmt.Println("| workloads | services | RSS, MB | first state, s | CPU for it, s | changes/s | CPU of them, % of a core | lag p50, ms | lag p99, ms | RSS afterwards, MB |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|")
	for _, n := range []int{1000, 2500, 5000, 10000, 20000} {
		if err := ztunnel(ctx, program, o, n); err != nil {
			return err
		}
	}
	return nil
}

func workload(i, services, generation int) *mesh.Workload {
	return &mesh.Workload{
		UID: fmt.Sprintf("Kubernetes//Pod/shop/pod-%05d", i), Name: fmt.Sprintf("pod-%05d", i), Namespace: "shop",
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, Protocol: mesh.ProtocolHBONE,
		ServiceAccount: fmt.Sprintf("account-%d", i%services), Node: fmt.Sprintf("node-%d", i%200), ClusterID: "Kubernetes",
		CanonicalName: fmt.Sprintf("app-%d", i%services), CanonicalRevision: fmt.Sprintf("v%d", generation), WorkloadName: fmt.Sprintf("app-%d", i%services),
		Services: map[string][]mesh.Port{fmt.Sprintf("shop/app-%d.shop.svc.cluster.local", i%services): {{ServicePort: 80, TargetPort: 8080}}},
		Locality: mesh.Locality{Region: "region", Zone: fmt.Sprintf("zone-%d", i%3)},
	}
}

func service(i int) *mesh.Service {
	name := fmt.Sprintf("app-%d", i)
	return &mesh.Service{Name: name, Namespace: "shop", Hostname: name + ".shop.svc.cluster.local", Canonical: true,
		Ports:     []mesh.Port{{ServicePort: 80, TargetPort: 8080}},
		Addresses: []mesh.NetworkAddress{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 32)}}}
}

func ztunnel(ctx context.Context, program string, o options, workloads int) error {
	services := workloads / 10
	store := mesh.NewStore()
	apply := func(d mesh.Delta) {
		b := mesh.NewBuilder(store.Load())
		b.Apply(d)
		store.Swap(b.Build())
	}
	var all mesh.Delta
	for i := range services {
		all.Services = append(all.Services, service(i))
	}
	for i := range workloads {
		all.Workloads = append(all.Workloads, workload(i, services, 0))
	}
	apply(all)
	all = mesh.Delta{}
	x := server.New(server.Config{Store: store, Logger: slog.New(slog.DiscardHandler),
		Authenticate: func(context.Context) (server.Caller, error) { return server.Caller{Node: "node-0"}, nil }})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	g := grpc.NewServer(server.Options()...)
	x.Register(g)
	go func() { _ = g.Serve(ln) }()
	defer x.Wait()
	defer g.Stop()
	// current is the time until the ztunnel has acknowledged everything.
	current := func(limit time.Duration) (time.Duration, error) {
		began := time.Now()
		want := store.Load().Version()
		for time.Since(began) < limit && ctx.Err() == nil {
			for _, c := range x.Clients() {
				done := len(c.Types) == 2
				for _, t := range c.Types {
					done = done && t.Acked >= want
				}
				if done {
					return time.Since(began), nil
				}
			}
			time.Sleep(200 * time.Microsecond)
		}
		return 0, fmt.Errorf("not current after %s", limit)
	}
	cmd := exec.CommandContext(ctx, program)
	// Node none of theirs: no certificates, which are another matter.
	cmd.Env = []string{"NODE_NAME=elsewhere", "XDS_ADDRESS=http://" + ln.Addr().String(), "INPOD_UDS=" + os.TempDir() + "/none.sock",
		"ADMIN_ADDR=127.0.0.1:0", "STATS_ADDR=127.0.0.1:0", "READINESS_ADDR=127.0.0.1:0", "RUST_LOG=error"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	p := process{cmd}
	defer p.end()
	first, err := current(time.Minute)
	if err != nil {
		return err
	}
	start := p.cpu()
	rss := p.memory("VmRSS")

	const rate = 1000
	var lags []time.Duration
	before, began, changed := p.cpu(), time.Now(), 0
	for tick := range int(o.time / (10 * time.Millisecond)) {
		// Ten changes at a time, as informers bring them.
		var d mesh.Delta
		for range rate / 100 {
			d.Workloads = append(d.Workloads, workload(changed%workloads, services, 1+changed/workloads))
			changed++
		}
		apply(d)
		lag, err := current(10 * time.Second)
		if err != nil {
			return err
		}
		lags = append(lags, lag)
		time.Sleep(time.Until(began.Add(time.Duration(tick+1) * 10 * time.Millisecond)))
	}
	took := time.Since(began)
	fmt.Printf("| %d | %d | %.1f | %.2f | %.2f | %.0f | %.1f | %s | %s | %.1f |\n", workloads, services, rss, first.Seconds(), start.Seconds(),
		float64(changed)/took.Seconds(), 100*(p.cpu()-before).Seconds()/took.Seconds(), ms(quantile(lags, .5)), ms(quantile(lags, .99)), p.memory("VmRSS"))
	return nil
}
