// Command kubelab makes, drives and ends real Kubernetes clusters inside one
// Linux machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

const usage = `kubelab: a real Kubernetes cluster inside one Linux machine

  kubelab build                 compile Kubernetes and CoreDNS, once (about 5 minutes)
  kubelab up [--nodes 2]        start a cluster; it stays until "down"
          [--api-only]          etcd and the API server, no nodes
          [--image FILE]...     load these image tars into every node
          [--dns=false] [--proxy nftables|iptables] [--short-timers]
  kubelab down                  end it; also cleans up after a crash
  kubelab status                what runs; exit 1 when something does not
  kubelab nodes                 machines as JSON: name, pid, netns, ip
  kubelab kubectl [--] ARG...   kubectl of the same version, on this cluster
  kubelab exec NODE|cp [--] CMD ARG...    in all namespaces of a machine
  kubelab load-image FILE...    OCI layout tars, into every node
  kubelab capture --out FILE    packets between machines as pcap, until SIGINT or SIGTERM
  kubelab logs [NODE/]COMPONENT log of a component; without one, their names
  kubelab dump DIR              logs, events and network state of everything, after a failure
  kubelab cut|heal NODE         take a node off the network, and back
  kubelab reboot NODE           power cut and start on the same disk
  kubelab kubeconfig            path of the kubeconfig

Flags of every command, directly after its name:
  --name demo      several clusters can run side by side
  --state DIR      files of the cluster (default /var/tmp/kubelab/<name>)
  --cache DIR      compiled binaries (KUBELAB_CACHE, default ~/.cache/ambit-kubelab)
`

// target is the cluster that a command is about.
type target struct{ name, state, cache string }

type action struct {
	run   func(ctx context.Context, t target, args []string) error
	flags func(*flag.FlagSet)
}

func main() {
	kubelab.Init()
	if len(os.Args) < 2 || os.Args[1] == "help" || os.Args[1] == "-h" || os.Args[1] == "--help" {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	var up upFlags
	var build buildFlags
	var capture captureFlags
	commands := map[string]action{
		"build":      {run: build.run, flags: build.register},
		"up":         {run: up.run, flags: up.register},
		"supervise":  {run: up.supervise, flags: up.register},
		"down":       {run: down},
		"status":     {run: status},
		"nodes":      {run: nodes},
		"kubectl":    {run: kubectl},
		"exec":       {run: execIn},
		"load-image": {run: loadImage},
		"capture":    {run: capture.run, flags: capture.register},
		"logs":       {run: logs},
		"dump":       {run: dump},
		"cut":        {run: order("cut")},
		"heal":       {run: order("heal")},
		"reboot":     {run: order("reboot")},
		"kubeconfig": {run: kubeconfig},
	}
	name := os.Args[1]
	cmd, ok := commands[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "kubelab: unknown command %q\n\n%s", name, usage)
		os.Exit(2)
	}
	var t target
	fs := flag.NewFlagSet("kubelab "+name, flag.ExitOnError)
	fs.StringVar(&t.name, "name", "demo", "name of the cluster")
	fs.StringVar(&t.state, "state", "", "folder of the cluster's files")
	fs.StringVar(&t.cache, "cache", os.Getenv("KUBELAB_CACHE"), "folder of the compiled binaries")
	if cmd.flags != nil {
		cmd.flags(fs)
	}
	_ = fs.Parse(os.Args[2:])
	if t.state == "" {
		t.state = kubelab.DefaultState(t.name)
	}
	abs, err := filepath.Abs(t.state)
	if err == nil {
		t.state, t.cache = abs, kubelab.DefaultCache(t.cache, os.Getenv("HOME"))
		t.cache, err = filepath.Abs(t.cache)
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		err = cmd.run(ctx, t, fs.Args())
		stop()
	}
	var code exitCode
	if errors.As(err, &code) {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelab:", err)
		os.Exit(1)
	}
}

// exitCode ends the program with a code and without a word.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
