// Command scale owns what large meshes cost: one ztunnel that knows many workloads
// while they change, and a controller on a real API server with simulated ztunnels.
//
//	go run ./e2e/bench/scale                       # the ztunnel alone
//	AMBIT_KUBELAB=kubelab go run ./e2e/bench/scale # the controller, too (root)
//
// It prints tables for docs/performance.md. Times are of this machine; what has to
// hold everywhere are counts, and those are tests (controller/mesh, controller/xds/server).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

type options struct {
	pods, services, nodes int
	rate                  int
	time                  time.Duration
	kubelab               string
}

func main() {
	var o options
	flag.IntVar(&o.pods, "pods", 4000, "pods of the controller's cluster")
	flag.IntVar(&o.services, "services", 400, "its services")
	flag.IntVar(&o.nodes, "nodes", 200, "its simulated ztunnels")
	flag.IntVar(&o.rate, "rate", 100, "changes of pods per second")
	flag.DurationVar(&o.time, "time", 20*time.Second, "how long things change, each time")
	flag.StringVar(&o.kubelab, "kubelab", os.Getenv("AMBIT_KUBELAB"), "program that starts an API server; empty: the ztunnel alone")
	part := flag.String("part", "all", "ztunnel, controller or all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, *part); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, part string) error {
	dir, err := os.MkdirTemp("", "ambit-scale")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	build := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "github.com/ambitmesh/ambit/cmd/ambit-ztunnel", "github.com/ambitmesh/ambit/cmd/ambit-controller")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	if part != "controller" {
		if err := ztunnels(ctx, filepath.Join(dir, "ambit-ztunnel"), o); err != nil {
			return fmt.Errorf("ztunnel: %w", err)
		}
	}
	if part == "ztunnel" || o.kubelab == "" {
		return nil
	}
	if err := controllers(ctx, filepath.Join(dir, "ambit-controller"), o); err != nil {
		return fmt.Errorf("controller: %w", err)
	}
	return nil
}

// process is a program whose use of the machine is read from the kernel.
type process struct{ *exec.Cmd }

// cpu is what it has used so far.
func (p process) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on Linux
}

// memory is a field of its status, in MB.
func (p process) memory(field string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			n, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 64)
			return n / 1024
		}
	}
	return 0
}

func (p process) end() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// quantile of d, which it sorts.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }
