// Command bench owns the figures: Ambit beside no mesh, beside plain two-hop
// proxies and beside iptables, in one run on one machine, in turns. With -soak
// it owns the search for what grows. It needs root. docs/performance.md says
// what each figure means.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/ambitmesh/ambit/e2e/bench/lab"
	"golang.org/x/sys/unix"
)

func main() {
	if name := os.Getenv(roleEnv); name != "" {
		if err := role(name); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		return
	}
	var c config
	flag.BoolVar(&c.full, "full", false, "longer and more repetitions, some 25 minutes instead of 4")
	flag.StringVar(&c.rows, "rows", "", "only the groups that match this pattern: "+strings.Join(groupNames(), ", "))
	flag.StringVar(&c.json, "json", "", "write everything measured here (default out/bench.json, out/soak.json)")
	flag.StringVar(&c.other, "other", "", "another ztunnel, such as that of an earlier revision, to measure in turns with this one")
	flag.StringVar(&c.otherEnv, "other-env", "", "settings of the other ztunnel, K=V with spaces between; without -other it is the same program")
	flag.DurationVar(&c.soak, "soak", 0, "no figures, but mixed load for so long, and whether anything grows")
	flag.BoolVar(&c.alone, "alone", false, "with -soak: nobody else here uses eBPF, so judge the kernel's own counts too")
	flag.StringVar(&c.ztunnel, "ztunnel", "", "the program to measure instead of a fresh build")
	flag.Parse()
	if err := withdraw(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := c.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// withdraw starts the program again in a mount namespace of its own, so that
// a bench that is killed leaves no mount behind. The thread that executes is
// the one that has left, and becomes the process.
func withdraw() error {
	const withdrawn = "AMBIT_BENCH_WITHDRAWN"
	if os.Getenv(withdrawn) != "" || os.Geteuid() != 0 {
		return nil
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("start again: %w", unix.Exec(self, os.Args, append(os.Environ(), withdrawn+"=1")))
}

type config struct {
	full                bool
	rows, json, ztunnel string
	other, otherEnv     string
	soak                time.Duration
	alone               bool
}

func (c config) run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("makes network namespaces and loads eBPF programs: needs root")
	}
	if c.soak != 0 {
		return c.runSoak(ctx)
	}
	want, err := regexp.Compile(c.rows)
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	sc := quick
	if c.full {
		sc = full
	}
	other := rival{program: c.other, env: strings.Fields(c.otherEnv)}
	rep, err := measure(ctx, sc, want, c.ztunnel, other, func(group string) { fmt.Fprintln(os.Stderr, "measuring", group) })
	if err != nil {
		return err
	}
	fmt.Print(rep.table())
	return c.keep("out/bench.json", rep.write)
}

// leastSoak is about what the least rounds take.
const leastSoak = 3 * time.Minute

func (c config) runSoak(ctx context.Context) error {
	if c.soak < leastSoak {
		return fmt.Errorf("-soak %s: at least %s, or there is nothing to tell a leak from noise", c.soak, leastSoak)
	}
	rep, err := runSoak(ctx, c.soak, leastRounds, c.ztunnel, c.alone, func(s string) { fmt.Fprintln(os.Stderr, "soak:", s) })
	if err != nil {
		return err
	}
	fmt.Print(rep.table())
	if err := c.keep("out/soak.json", rep.write); err != nil {
		return err
	}
	if wrong := append(rep.wrong(), rep.unjudged()...); len(wrong) > 0 {
		if len(rep.Profiles) > 0 {
			wrong = append(wrong, "profiles: "+strings.Join(rep.Profiles, " "))
		}
		return errors.New("the soak fails\n  " + strings.Join(wrong, "\n  "))
	}
	fmt.Println("\nNothing grows, nothing failed.")
	return nil
}

// keep writes where the flag says, or else to path.
func (c config) keep(path string, write func(string) error) error {
	if c.json != "" {
		path = c.json
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return write(path)
}

// group is rows that are measured together.
type group struct {
	name string
	run  func(*stage, context.Context) error
}

// groups in their order: memory before anything has grown, then what changes
// nodes, then traffic.
var groups = []group{
	{"idle", (*stage).idle},
	{"pods", (*stage).hundred},
	{"policy", (*stage).policy},
	{"workloads", (*stage).workloads},
	{"tunnels", (*stage).tunnels},
	{"bulk", (*stage).bulk},
	{"pingpong", (*stage).pingPong},
	{"openloop", (*stage).openLoop},
	{"thousand", (*stage).thousand},
	{"connections", (*stage).newConnections},
	{"redirect", (*stage).redirection},
	{"attack", (*stage).underAttack},
}

func groupNames() []string {
	var out []string
	for _, g := range groups {
		out = append(out, g.name)
	}
	return out
}

// rival is another ztunnel to compare with; the zero value is none.
type rival struct {
	program string // "": the same
	env     []string
}

func (r rival) String() string {
	return strings.TrimSpace(r.program + " " + strings.Join(r.env, " "))
}

// measure is a whole run. say is told each group before it begins.
func measure(ctx context.Context, sc scale, want *regexp.Regexp, ztunnel string, other rival, say func(string)) (rep *report, err error) {
	began, before := time.Now(), loadAverage()
	dir, err := os.MkdirTemp("", "ambit-bench-program-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if ztunnel == "" {
		if ztunnel, err = program(ctx, dir); err != nil {
			return nil, err
		}
	}
	l, err := lab.New(ctx, ztunnel)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	s := &stage{l: l, m: &meter{l: l}, scale: sc, rep: &report{Scale: sc, Machine: thisMachine(ctx)}}
	if other.String() != "" {
		s.rep.Notes = append(s.rep.Notes, otherOne+" is "+other.String())
		if other.program == "" {
			other.program = ztunnel
		}
		if s.m.other, err = lab.New(ctx, other.program, other.env...); err != nil {
			return nil, fmt.Errorf("the other ztunnel: %w", err)
		}
		defer func() { err = errors.Join(err, s.m.other.Close()) }()
	}
	for i, g := range groups {
		// Before the second group: the first is about nodes without pods.
		if i == 1 {
			if err := s.set(ctx); err != nil {
				return nil, err
			}
			if s.m.other != nil {
				if err := s.setOther(ctx, s.m.other); err != nil {
					return nil, fmt.Errorf("the other ztunnel: %w", err)
				}
			}
		}
		if !want.MatchString(g.name) {
			continue
		}
		say(g.name)
		if err := g.run(s, ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", g.name, err)
		}
	}
	if s.m.other == nil {
		s.rep.skip("ratios to an earlier revision, or to other settings", "none was given: -other, -other-env")
	}
	s.rep.skip("ratios to another mesh's ztunnel", "none is run yet")
	s.rep.skip("CNI ADD of a pod", "needs a container runtime and a kubelet")
	s.rep.skip("1 000 rps through a waypoint", "there is no waypoint yet")
	s.rep.skip("controller with 50 000 pods and 1 000 nodes", "needs simulated clients")
	s.rep.finish()
	s.rep.Took = time.Since(began).Seconds()
	s.rep.Noise = judgeNoise(s.m.foreign, s.rep.baseline(), before)
	if s.rep.Noise.TooNoisy {
		s.rep.doubt()
	}
	return s.rep, nil
}

func thisMachine(ctx context.Context) machine {
	m := machine{CPU: "unknown CPU", CPUs: runtime.NumCPU(), Go: runtime.Version(), Revision: "unknown", Time: time.Now().UTC().Format("2006-01-02 15:04 MST")}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Revision = strings.TrimSpace(string(out))
	}
	return m
}
