package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

type buildFlags struct{ source string }

func (f *buildFlags) register(s *flag.FlagSet) {
	s.StringVar(&f.source, "source", "", "folder of the kubelab module (default: found from the working folder)")
}

func (f *buildFlags) run(ctx context.Context, t target, _ []string) error {
	source := f.source
	if source == "" {
		var err error
		if source, err = findSource(); err != nil {
			return err
		}
	}
	return kubelab.Build(ctx, source, t.cache, os.Stdout)
}

const modulePath = "github.com/ambitmesh/ambit/e2e/kubelab"

// findSource looks for the module in the working folder and those above it.
func findSource() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		for _, d := range []string{dir, filepath.Join(dir, "e2e", "kubelab")} {
			b, err := os.ReadFile(filepath.Join(d, "go.mod"))
			if err == nil && strings.HasPrefix(string(b), "module "+modulePath+"\n") {
				return d, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("the sources of kubelab are not here: run it inside the repository, or give --source")
		}
		dir = filepath.Dir(dir)
	}
}

type upFlags struct {
	nodes                int
	apiOnly, dns, timers bool
	dual, six            bool
	proxy                string
	images               []string
}

func (f *upFlags) register(s *flag.FlagSet) {
	s.IntVar(&f.nodes, "nodes", 2, "number of nodes")
	s.BoolVar(&f.apiOnly, "api-only", false, "etcd and the API server, nothing else")
	s.BoolVar(&f.dns, "dns", true, "run CoreDNS and wait for it")
	s.BoolVar(&f.dual, "dual-stack", false, "IPv6 beside IPv4 for nodes, pods and services")
	s.BoolVar(&f.six, "ipv6-first", false, "dual-stack with IPv6 as the primary family")
	s.BoolVar(&f.timers, "short-timers", false, "a cut node is NotReady after 12 s")
	s.StringVar(&f.proxy, "proxy", "nftables", "mode of kube-proxy: nftables or iptables")
	s.Func("image", "image tar for every node (may be given again)", func(v string) error {
		abs, err := filepath.Abs(v)
		if err == nil {
			_, err = os.Stat(abs)
		}
		f.images = append(f.images, abs)
		return err
	})
}

// reportFD is where a supervisor tells "up" how it goes.
const reportFD = 3

// event is a line of that report.
type event struct {
	Line  string `json:"line,omitempty"`
	Ready string `json:"ready,omitempty"` // path of the kubeconfig
	Error string `json:"error,omitempty"`
}

// run starts a supervisor that outlives this process and waits until it is ready.
func (f *upFlags) run(ctx context.Context, t target, _ []string) error {
	if err := kubelab.Check(t.cache, f.apiOnly); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args := []string{"supervise", "--name", t.name, "--state", t.state, "--cache", filepath.Dir(t.cache),
		"--nodes", fmt.Sprint(f.nodes), "--proxy", f.proxy,
		fmt.Sprintf("--api-only=%t", f.apiOnly), fmt.Sprintf("--dns=%t", f.dns), fmt.Sprintf("--short-timers=%t", f.timers),
		fmt.Sprintf("--dual-stack=%t", f.dual), fmt.Sprintf("--ipv6-first=%t", f.six)}
	for _, i := range f.images {
		args = append(args, "--image", i)
	}
	cmd := exec.Command(self, args...)
	cmd.ExtraFiles = []*os.File{w}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, w.Close())
	}
	w.Close()
	// Interrupted: the supervisor gives up, cleans up and says so.
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })()
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			continue
		}
		switch {
		case e.Error != "":
			_ = cmd.Wait()
			return errors.New(e.Error)
		case e.Ready != "":
			fmt.Printf("KUBECONFIG=%s\n", e.Ready)
			return cmd.Process.Release()
		default:
			fmt.Fprintln(os.Stderr, e.Line)
		}
	}
	return fmt.Errorf("the supervisor ended without a word: %w", cmd.Wait())
}

// supervise owns a cluster for its whole life.
func (f *upFlags) supervise(ctx context.Context, t target, _ []string) error {
	syscall.CloseOnExec(reportFD)
	report := os.NewFile(reportFD, "report")
	if report == nil {
		return errors.New("supervise is started by up")
	}
	enc := json.NewEncoder(report)
	c, err := kubelab.Start(ctx, kubelab.Options{
		Name: t.name, State: t.state, Cache: t.cache,
		Nodes: f.nodes, DualStack: f.dual, IPv6First: f.six, APIOnly: f.apiOnly, DNS: f.dns, ShortTimers: f.timers, ProxyMode: f.proxy, Images: f.images,
		Logger: slog.New(lines{func(s string) { _ = enc.Encode(event{Line: s}) }}),
	})
	if err != nil {
		_ = enc.Encode(event{Error: err.Error()})
		return err
	}
	served := make(chan error, 1)
	serving := func() { served <- c.Serve(ctx) }
	go serving()
	if err := enc.Encode(event{Ready: c.Kubeconfig()}); err != nil {
		// Nobody waits any more; the cluster stays, "down" ends it.
		slog.Warn("up has gone", "err", err)
	}
	report.Close()
	return <-served
}

// lines is a slog.Handler for people: time since the start and what happened.
type lines struct{ print func(string) }

func (l lines) Enabled(context.Context, slog.Level) bool { return true }
func (l lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l lines) WithGroup(string) slog.Handler            { return l }
func (l lines) Handle(_ context.Context, r slog.Record) error {
	var after time.Duration
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "after" {
			after = a.Value.Duration()
		}
		return true
	})
	l.print(fmt.Sprintf("[%5.1fs] %s", after.Seconds(), r.Message))
	return nil
}

func down(ctx context.Context, t target, _ []string) error {
	began := time.Now()
	if _, err := os.Stat(t.state); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "cluster %q is not there\n", t.name)
		return nil
	}
	s, _ := kubelab.ReadState(t.state)
	if _, err := kubelab.Ask(ctx, t.state, kubelab.Request{Op: "down"}); err != nil && s.Supervisor.Alive() {
		// Still starting: no socket yet, but it obeys a signal.
		_ = syscall.Kill(s.Supervisor.PID, syscall.SIGTERM)
	}
	for deadline := time.Now().Add(30 * time.Second); s.Supervisor.Alive(); time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("the supervisor, process %d, does not end", s.Supervisor.PID)
		}
	}
	if err := kubelab.Clean(t.state); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "cluster %q is down after %.1fs\n", t.name, time.Since(began).Seconds())
	return nil
}
