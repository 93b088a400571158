// Command ambit-controller watches the API server, serves the mesh to ztunnels
// over xDS and signs their workloads' certificates.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// version is set by the build.
var version = "unknown"

func main() {
	os.Exit(program(os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr))
}

// program is main without the process: exit codes are 0, 1 for a failure and 2
// for a command line that cannot be run.
func program(args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	cfg, err := parse(args, env, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil: // the flag package has printed it
		return 2
	case cfg.showVersion:
		fmt.Fprintln(stdout, version)
		return 0
	}
	if err := cfg.Validate(); err != nil {
		fmt.Fprintln(stderr, "ambit-controller:", err)
		return 2
	}
	if err := identity.Compliance(cfg.compliance).Approve(os.Environ()); err != nil {
		fmt.Fprintln(stderr, "ambit-controller:", err)
		return 1
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.level}))
	klog.SetSlogLogger(log.With("from", "client-go"))
	c, err := newController(cfg, log)
	if err != nil {
		fmt.Fprintln(stderr, "ambit-controller:", err)
		return 2
	}
	if cfg.check {
		fmt.Fprintln(stdout, "configuration is valid")
		return 0
	}
	// Below this line the cluster and the network are touched.

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := c.run(ctx); err != nil {
		log.Error("stopped", "error", err)
		return 1
	}
	return 0
}
