// Command ambit-cni-node is the node agent of Ambit: it brings the pods of its
// node into the mesh and installs the CNI plugin that asks it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"

	"github.com/ambitmesh/ambit/cni/install"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/node"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "ambit-cni-node:", err)
		os.Exit(1)
	}
}

func run() error {
	o, err := parse(os.Args[1:], os.Getenv)
	if err == flag.ErrHelp {
		return nil
	}
	if err != nil {
		return err
	}
	if o.version {
		fmt.Println("ambit-cni-node", version)
		return nil
	}
	if o.mountBPFFS {
		return redirect.MountBPFFS(filepath.Dir(o.pinRoot), o.hostRoot)
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: o.logLevel}))

	binDir, err := hostDir(o, o.cniBinDir)
	if err != nil {
		return err
	}
	defer binDir.Close()
	confDir, err := hostDir(o, o.cniConfDir)
	if err != nil {
		return err
	}
	defer confDir.Close()
	installer := install.New(install.Config{
		Source: o.pluginSource, BinDir: binDir.path, ConfDir: confDir.path, Entry: o.entry(), Logger: log.With("part", "install"),
	})
	if o.uninstall {
		return releaseNode(o, installer, log)
	}

	host, err := netns.Current()
	if err != nil {
		return err
	}
	defer host.Close()
	capture, err := redirect.New(redirect.Options{
		PinRoot: o.pinRoot, HostRoot: o.hostRoot, Clsact: o.clsact, Logger: log.With("part", "capture"),
	})
	if err != nil {
		return err
	}
	rest, err := restConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	registry := prometheus.NewRegistry()
	cfg := o.node
	cfg.Clsact = capture.Clsact()
	cfg.Client, cfg.Redirector, cfg.Host, cfg.Logger, cfg.Registerer = client, capture, host, log, registry
	if err := cfg.Validate(); err != nil {
		return err
	}
	if o.check {
		fmt.Println("configuration, kernel and mounts are fine")
		return nil
	}

	// ---- everything above reads; everything below changes the node ----
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	agent := node.New(cfg)
	log.Info("ambit-cni-node", "version", version, "node", cfg.Node)
	registerBuild(registry, agent, installer)

	var wg sync.WaitGroup
	wg.Go(func() { serveAdmin(ctx, o.adminAddress, registry, agent, installer, log) })
	wg.Go(func() { keepPlugin(ctx, agent, installer, log) })
	err = agent.Run(ctx)
	cancel()
	wg.Wait()
	return err
}
