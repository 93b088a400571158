// Command ambit-ztunnel is the node proxy: it carries the TCP of the node's
// enrolled pods over mutually authenticated TLS and applies policy to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	ca "github.com/ambitmesh/ambit/controller/ca/client"
	"github.com/ambitmesh/ambit/controller/mesh"
	xds "github.com/ambitmesh/ambit/controller/xds/client"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

// version is set by the build with -ldflags -X.
var version = "dev"

func main() {
	check := false
	for _, a := range os.Args[1:] {
		switch a {
		case "proxy":
		case "version", "--version":
			fmt.Println("ambit-ztunnel", version, buildInfo())
			return
		case "help", "-h", "--help":
			fmt.Print(page())
			return
		case "--check":
			check = true
		default:
			fmt.Fprintf(os.Stderr, "usage: ambit-ztunnel [proxy] [--check] | version | help\nunknown argument %q\n", a)
			os.Exit(1)
		}
	}
	cfg := readConfig(environ(os.Environ()), os.ReadFile)
	if err := cfg.Validate(); err != nil {
		fmt.Fprintln(os.Stderr, "ambit-ztunnel: bad configuration:")
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if check {
		return
	}
	// Up to here nothing has touched the machine.
	err := identity.Compliance(cfg.Compliance).Approve(os.Environ())
	if err == nil {
		err = run(cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ambit-ztunnel:", err)
		os.Exit(1)
	}
}

func environ(list []string) map[string]string {
	m := make(map[string]string, len(list))
	for _, kv := range list {
		k, v, _ := strings.Cut(kv, "=")
		m[k] = v
	}
	return m
}

func buildInfo() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		return b.GoVersion
	}
	return ""
}

func run(cfg *config) error {
	levels, err := live.NewLevels(cfg.LogLevel)
	if err != nil {
		return err
	}
	log := slog.New(live.NewLogHandler(os.Stdout, cfg.LogFormat == "json", levels))
	for _, w := range cfg.warnings {
		log.Warn(w)
	}
	if err := harden(workers(cfg, runtime.NumCPU())); err != nil {
		log.Warn("process limits", "err", err)
	}
	unfit := rights()
	if unfit != nil {
		log.Error("not ready, and will not be", "err", unfit)
	}
	memory := debug.SetMemoryLimit(-1)
	backlog := backlogLimit(cfg.BacklogLimit, memory)
	cfg.HBONE.Budget = hbone.NewBudget(backlog)
	cfg.Quotas = quotas(cfg.Quotas, backlog, memory, openFiles(), runtime.GOMAXPROCS(0))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	registry := prometheus.NewRegistry()
	store := mesh.NewStore()
	terms, crl := cfg.terms(log, store)
	caConfig := cfg.ca(terms)
	caConfig.Logger, caConfig.Registerer = log.With(live.ScopeKey, "ca"), registry
	source := ca.New(caConfig)
	xdsConfig := cfg.xds(terms, store)
	xdsConfig.Trust, xdsConfig.Logger, xdsConfig.Registerer = source.SetRoots, log.With(live.ScopeKey, "xds"), registry
	client := xds.New(xdsConfig)
	node := ztunnel.New(ztunnel.Config{
		NodeName: cfg.NodeName, Version: version, Unfit: unfit, Tag: cfg.proxyMetadata()["ISTIO_VERSION"], Socket: cfg.Socket,
		AdminAddr: cfg.AdminAddr, StatsAddr: cfg.StatsAddr, ReadyAddr: cfg.ReadyAddr, IPv4Only: !cfg.IPv6, OwnPorts: !cfg.PortReuse, Grace: cfg.Grace, Progress: cfg.Progress, PolicyInfo: cfg.PolicyInfo,
		Store: store, Synced: client.Synced(), Certificates: source, Denied: denied, CertStates: certStates(source),
		Own: cfg.own(), Inbound: cfg.inbound(), DumpConfig: cfg.dump(), DNS: cfg.dns(log), Resolve: cfg.resolve(), SOCKS: cfg.SOCKS5, Egress: cfg.egress(), HBONE: cfg.HBONE, Pool: cfg.Pool, Quotas: cfg.Quotas,
		Demand: demand(client), KeepAlive: cfg.KeepAlive.sockets(), Registry: registry, Logger: log, Levels: levels,
	})
	log.Info("starting", "version", version, "node", cfg.NodeName, "cluster", cfg.ClusterID)

	// The control plane outlives the signal: policy and certificates are
	// needed while connections drain.
	control, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var errs [3]error
	wg.Go(func() { errs[0] = client.Run(control) })
	wg.Go(func() { errs[1] = source.Run(control) })
	wg.Go(func() { errs[2] = crl(control) })
	err = node.Run(ctx)
	end()
	wg.Wait()
	for _, e := range errs {
		if e != nil && !errors.Is(e, context.Canceled) {
			err = errors.Join(err, e)
		}
	}
	log.Info("stopped")
	return err
}
