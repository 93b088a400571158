package kubelab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// initName is argument 0 of a process that is to become a PID 1.
const initName = "kubelab-init"

// initFD is the connection to the harness.
const initFD = 3

// Init must be called first thing by every program that uses Start: it does
// nothing in the program itself and never returns in the copies of it that Start
// makes.
func Init() {
	if len(os.Args) != 2 || os.Args[0] != initName {
		return
	}
	// Namespaces belong to threads. This one enters them all and is then the
	// only one left, because exec ends the others.
	runtime.LockOSThread()
	var err error
	switch os.Args[1] {
	case "enter":
		err = enter()
	case "run":
		err = runInit()
	}
	// The harness reads the reason from the connection; the log has it too.
	fmt.Fprintln(os.Stderr, "kubelab-init:", err)
	_ = json.NewEncoder(os.NewFile(initFD, "harness")).Encode(report{Error: fmt.Sprint(err)})
	os.Exit(1)
}

// enter is the first half of a PID 1: it is in its namespaces (but for the
// cgroup one) with the host's mounts still there.
func enter() error {
	line, err := readLine(initFD)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	var s settings
	if err := json.Unmarshal(line, &s); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	if s.Cgroups {
		// Only now: the group entered before is "/" of the namespace.
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("new cgroup namespace: %w", err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if s.Root == "" {
		err = controlPlaneMounts()
	} else {
		err = nodeMounts(s)
	}
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := os.Setenv(settingsEnv, string(line)); err != nil {
		return err
	}
	return syscall.Exec(s.Self, []string{initName, "run"}, os.Environ())
}

const settingsEnv = "KUBELAB_INIT"

// readLine reads byte by byte: what follows the line is for the program that
// exec puts here.
func readLine(fd int) ([]byte, error) {
	var line []byte
	b := make([]byte, 1)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("connection closed")
		}
		if b[0] == '\n' {
			return line, nil
		}
		line = append(line, b[0])
	}
}

// pidOne starts components and collects every orphan of its PID namespace
// (containerd's shims become its children).
type pidOne struct {
	mu    sync.Mutex     // held while a child is made, so that reap knows its name
	names map[int]string // guarded by mu
	out   *json.Encoder  // guarded by mu
}

func runInit() error {
	var s settings
	if err := json.Unmarshal([]byte(os.Getenv(settingsEnv)), &s); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	os.Unsetenv(settingsEnv)
	unix.CloseOnExec(initFD)
	conn := os.NewFile(initFD, "harness")
	// Go raises its own soft limit and gives children the old one; setting it
	// makes them inherit.
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	for name, v := range s.Sysctls {
		// Some exist only with a module (bridge netfilter); absent is as good as off.
		if err := writeSysctl(name, v); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	p := &pidOne{names: map[int]string{}, out: json.NewEncoder(conn)}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			p.reap()
		}
	}()
	p.answer(report{Ready: true})
	in := bufio.NewScanner(conn)
	for in.Scan() {
		var c command
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			p.answer(report{Error: err.Error()})
			continue
		}
		if err := p.start(c); err != nil {
			p.answer(report{Error: err.Error()})
		}
	}
	return fmt.Errorf("the harness has gone: %w", in.Err())
}

func (p *pidOne) answer(r report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.out.Encode(r)
}

func (p *pidOne) start(c command) error {
	if c.Stop {
		return p.stop(c.Name)
	}
	attr := &syscall.SysProcAttr{Setsid: true}
	if c.Group {
		group, err := freshGroup(c.Name)
		if err != nil {
			return err
		}
		if group != nil {
			defer group.Close()
			attr.UseCgroupFD, attr.CgroupFD = true, int(group.Fd())
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	child, err := os.StartProcess(c.Args[0], c.Args, &os.ProcAttr{
		Dir: "/", Env: os.Environ(),
		Files: []*os.File{null, log, log},
		Sys:   attr,
	})
	if err != nil {
		return err
	}
	p.names[child.Pid] = c.Name
	pid := child.Pid
	_ = child.Release() // reap collects it
	return p.out.Encode(report{Started: pid})
}

// freshGroup makes a cgroup2 group for a component, with a new id at every start.
// It is nil where the node has no cgroup2.
func freshGroup(name string) (*os.File, error) {
	dir := filepath.Join("/sys/fs/cgroup/unified", name)
	// It stays busy for a moment after its last process was collected.
	var last error
	if until(time.Minute, func() bool { last = unix.Rmdir(dir); return !errors.Is(last, unix.EBUSY) }, "") != nil {
		return nil, fmt.Errorf("cgroup %s of the one before: %w", dir, last)
	}
	err := unix.Mkdir(dir, 0o755)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	return os.Open(dir)
}

func (p *pidOne) stop(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pid, n := range p.names {
		if n != name {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			return err
		}
		return p.out.Encode(report{Started: pid})
	}
	return fmt.Errorf("no %s runs", name)
}

// reap: SIGCHLD is not queued, so one signal can stand for many children.
func (p *pidOne) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		name, known := p.names[pid]
		if !known {
			continue
		}
		delete(p.names, pid)
		status := fmt.Sprintf("exit status %d", ws.ExitStatus())
		if ws.Signaled() {
			status = strings.ToLower("signal " + ws.Signal().String())
		}
		_ = p.out.Encode(report{Exited: name, Status: status})
	}
}
