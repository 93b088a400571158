// Command demo shows Ambit at work on one machine: a real two-node Kubernetes,
// an unchanged client and server, and what a label on their namespace does. It
// fails when what it says is not so.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	// Children are told to end when this thread does: one thread for all.
	runtime.LockOSThread()
	var c config
	flag.StringVar(&c.cluster, "cluster", "demo", "name of the kubelab cluster")
	flag.StringVar(&c.out, "out", "out/demo", "folder for the programs and the packet capture")
	flag.BoolVar(&c.down, "down-after", false, "take the cluster down at the end")
	flag.DurationVar(&c.timeout, "timeout", 30*time.Minute, "give up after that long; the first run compiles Kubernetes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := run(ctx, c, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c config, args []string) error {
	switch {
	case len(args) == 0:
		return up(ctx, c)
	case len(args) == 1 && args[0] == "down":
		return down(ctx, c)
	}
	return fmt.Errorf("unknown arguments %q: demo, or demo down", args)
}
