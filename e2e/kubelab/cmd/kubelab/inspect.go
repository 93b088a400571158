package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

// running reads the state of a cluster that must be there.
func running(t target) (kubelab.State, error) {
	s, err := kubelab.ReadState(t.state)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("cluster %q is not running (kubelab up --name %s)", t.name, t.name)
	}
	if err == nil && !s.Supervisor.Alive() {
		err = fmt.Errorf("cluster %q has lost its supervisor; kubelab down --name %s clears it", t.name, t.name)
	}
	return s, err
}

func machine(s kubelab.State, name string) (kubelab.Host, error) {
	h, ok := s.Nodes[name]
	if !ok {
		return h, fmt.Errorf("cluster %q has no machine %q, it has %s", s.Name, name, strings.Join(names(s), " "))
	}
	return h, nil
}

// names are the machines, the control plane last.
func names(s kubelab.State) []string {
	var out []string
	for n := range s.Nodes {
		if n != "cp" {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return append(out, "cp")
}

func noDash(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func nodes(_ context.Context, t target, _ []string) error {
	s, err := running(t)
	if err != nil {
		return err
	}
	type node struct {
		Name  string `json:"name"`
		PID   int    `json:"pid"`
		NetNS string `json:"netns"`
		Root  string `json:"root"`
		IP    string `json:"ip"`
	}
	out := []node{}
	for _, name := range names(s) {
		h := s.Nodes[name]
		out = append(out, node{Name: name, PID: h.PID, NetNS: h.NetNS, Root: fmt.Sprintf("/proc/%d/root", h.PID), IP: h.IP})
	}
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

func status(ctx context.Context, t target, _ []string) error {
	s, err := running(t)
	if err != nil {
		return err
	}
	r, err := kubelab.Ask(ctx, t.state, kubelab.Request{Op: "status"})
	if err != nil {
		return fmt.Errorf("cluster %q is starting or does not answer: %w", t.name, err)
	}
	fmt.Printf("cluster %s: supervisor %d, machines %s\nKUBECONFIG=%s\n", s.Name, s.Supervisor.PID, strings.Join(names(s), " "), s.Kubeconfig)
	for _, f := range r.Failed {
		fmt.Println("failed:", f)
	}
	if len(r.Failed) > 0 {
		return exitCode(1)
	}
	return nil
}

func kubeconfig(_ context.Context, t target, _ []string) error {
	s, err := running(t)
	if err == nil {
		fmt.Println(s.Kubeconfig)
	}
	return err
}

func kubectl(_ context.Context, t target, args []string) error {
	s, err := running(t)
	if err != nil {
		return err
	}
	if s.Kubeconfig == "" {
		return fmt.Errorf("cluster %q is still starting", t.name)
	}
	// A variable and no flag: a plugin or a "config" command finds it as well.
	env := append(os.Environ(), "KUBECONFIG="+s.Kubeconfig)
	kube := filepath.Join(s.Cache, "kube")
	return syscall.Exec(kube, append([]string{kube, "kubectl"}, noDash(args)...), env)
}

func execIn(_ context.Context, t target, args []string) error {
	if len(args) == 0 {
		return errors.New("exec wants NODE and a command")
	}
	s, err := running(t)
	if err != nil {
		return err
	}
	h, err := machine(s, args[0])
	if err != nil {
		return err
	}
	argv := noDash(args[1:])
	if len(argv) == 0 {
		argv = []string{"/bin/sh"}
	}
	full := kubelab.ExecArgs(h.PID, argv...)
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=" + os.Getenv("TERM")}
	return syscall.Exec(full[0], full, env)
}

func loadImage(ctx context.Context, t target, args []string) error {
	if len(args) == 0 {
		return errors.New("load-image wants files")
	}
	s, err := running(t)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(s.Nodes))
	for i, name := range names(s) {
		if name == "cp" {
			continue
		}
		wg.Go(func() {
			for _, f := range args {
				if errs[i] = kubelab.LoadImage(ctx, name, s.Nodes[name].PID, f); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func order(op string) func(context.Context, target, []string) error {
	return func(ctx context.Context, t target, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%s wants one node", op)
		}
		if _, err := running(t); err != nil {
			return err
		}
		_, err := kubelab.Ask(ctx, t.state, kubelab.Request{Op: op, Node: args[0]})
		return err
	}
}

// logs prints the file; it works on a crashed cluster as well.
func logs(_ context.Context, t target, args []string) error {
	if len(args) == 0 {
		own, _ := filepath.Glob(filepath.Join(t.state, "log", "*.log"))
		nodes, _ := filepath.Glob(filepath.Join(t.state, "*", "rootfs/var/log", "*.log"))
		for _, f := range own {
			fmt.Println(strings.TrimSuffix(filepath.Base(f), ".log"))
		}
		for _, f := range nodes {
			rel, err := filepath.Rel(t.state, f)
			if err != nil {
				return err
			}
			node, _, _ := strings.Cut(rel, "/")
			fmt.Println(node + "/" + strings.TrimSuffix(filepath.Base(f), ".log"))
		}
		return nil
	}
	node, component, found := strings.Cut(args[0], "/")
	if !found {
		node, component = "", args[0]
	}
	f, err := os.Open(kubelab.LogFile(t.state, node, component))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(os.Stdout, f)
	return err
}

func dump(ctx context.Context, t target, args []string) error {
	if len(args) != 1 {
		return errors.New("dump wants a folder")
	}
	return kubelab.Dump(ctx, t.state, args[0])
}

type captureFlags struct{ out string }

func (f *captureFlags) register(s *flag.FlagSet) {
	s.StringVar(&f.out, "out", "", "pcap file")
}

func (f *captureFlags) run(ctx context.Context, t target, _ []string) error {
	if f.out == "" {
		return errors.New("capture wants --out FILE")
	}
	s, err := running(t)
	if err != nil {
		return err
	}
	cp, err := machine(s, "cp")
	if err != nil {
		return err
	}
	out, err := os.Create(f.out)
	if err != nil {
		return err
	}
	n, err := kubelab.Capture(ctx, cp.NetNS, out, func() { fmt.Fprintln(os.Stderr, "capturing") })
	fmt.Fprintf(os.Stderr, "%d packets, %d lost\n", n.Packets, n.Lost)
	return errors.Join(err, out.Close())
}
