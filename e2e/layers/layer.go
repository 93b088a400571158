package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// layer is one kind of test, with what it needs of the machine.
type layer struct {
	name, what string
	// prepare are commands that must succeed first. They run here.
	prepare [][]string
	dir     string // where the tests run; empty: here
	args    []string
	env     func() []string
	race    bool
	root    bool
	needs   []string // programs
}

// concurrent are the packages with goroutines of their own; the race detector
// costs several times the run time, so it is spent where there are races.
var concurrent = []string{
	"./hbone/...", "./controller/mesh/...", "./controller/wire", "./controller/xds/...", "./controller/ca/...", "./controller/kube",
	"./cni/enroll", "./cni/handoff", "./cni/node", "./ztunnel/...",
}

// products are the packages that are tested without a lab.
var products = []string{"./cmd/...", "./ztunnel/...", "./cni/...", "./hbone/...", "./controller/...", "./deploy/...", "./e2e/claims", "./e2e/demo", "./e2e/layers", "./e2e/reference"}

var layers = []layer{
	{name: "unit", what: "decisions, codecs and whatever of the kernel this machine has; fuzz seeds", args: append([]string{"-timeout=20m"}, products...)},
	// No vet: it would look once more at everything that is linked, as the unit layer did.
	{name: "race", what: "packages with goroutines, under the race detector", args: append([]string{"-timeout=30m", "-vet=off"}, concurrent...), race: true, needs: []string{"gcc"}},
	{name: "arch", what: "who imports whom, folders, page limits", args: []string{"./e2e/arch"}},
	{name: "netns", what: "two nodes made of network namespaces, real kernel, real capture", args: []string{"-count=1", "-p=1", "-timeout=40m", "./e2e/netns/...", "./e2e/bench/..."}, root: true},
	{name: "api", what: "the controller with a real API server (Kubernetes is compiled once, about five minutes)",
		prepare: lab, args: []string{"-count=1", "-p=1", "-timeout=30m", "-run=TestAPIMode|TestControlPlaneUnderLoad|TestExternalServices|TestPolicyFromTheAPIServer|TestTaintsRemoved", "./cmd/ambit-controller", "./e2e/netns"}, env: labEnv, root: true, needs: labNeeds},
	{name: "kubelab", what: "a real Kubernetes in namespaces, and Ambit on it",
		prepare: lab, dir: "e2e/kubelab",
		// One cluster at a time; not the components, whose tests are Kubernetes' own.
		args: []string{"-count=1", "-p=1", "-timeout=40m", ".", "./cmd/kubelab", "./cmd/testapp", "./firstlight", "./lifecycle", "./dualstack", "./shapes"}, root: true, needs: labNeeds},
}

const labBinary = "out/bin/kubelab"

var (
	lab      = [][]string{{"go", "build", "-C", "e2e/kubelab", "-o", "../../" + labBinary, "./cmd/kubelab"}, {labBinary, "build"}}
	labNeeds = []string{"containerd", "runc", "nft"}
)

// labEnv tells tests where the lab is.
func labEnv() []string {
	path, err := filepath.Abs(labBinary)
	if err != nil {
		return nil // the working directory is gone: the tests say so better
	}
	return []string{"AMBIT_KUBELAB=" + path}
}

func names() []string {
	var ns []string
	for _, l := range layers {
		ns = append(ns, l.name)
	}
	return ns
}

func choose(only string) ([]layer, error) {
	if only == "" {
		return layers, nil
	}
	var out []layer
	for n := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(layers, func(l layer) bool { return l.name == n })
		if i < 0 {
			return nil, fmt.Errorf("no layer %q: have %s", n, strings.Join(names(), ", "))
		}
		out = append(out, layers[i])
	}
	return out, nil
}

// cannot says why the layer cannot run here, or "".
func (l layer) cannot() string {
	if l.root && os.Geteuid() != 0 {
		return "needs root (network namespaces, eBPF)"
	}
	var missing []string
	for _, p := range l.needs {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		return "not on this machine: " + strings.Join(missing, ", ")
	}
	return ""
}

// run runs the layer's tests into t. An error means they could not be run;
// failed tests are in t.
func (l layer) run(ctx context.Context, t *tally) error {
	env := os.Environ()
	if l.race {
		env = append(env, "CGO_ENABLED=1")
	}
	if l.env != nil {
		env = append(env, l.env()...)
	}
	for _, p := range l.prepare {
		cmd := exec.CommandContext(ctx, p[0], p[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(p, " "), err)
		}
	}
	args := []string{"test", "-json"}
	if l.race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, l.args...)...)
	cmd.Dir, cmd.Env, cmd.Stderr = l.dir, env, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := t.read(out, os.Stdout)
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		// go test says with its exit code what the events already said; a
		// failure without any event is one of the go command itself.
		if len(t.failed) == 0 {
			return fmt.Errorf("go test: %w", err)
		}
		err = nil
	}
	return errors.Join(readErr, err)
}
