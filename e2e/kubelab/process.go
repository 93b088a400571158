package kubelab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// owner is the operating system thread which is the parent of every PID 1. A
// parent-death signal is sent when the parent *thread* ends, so that thread must
// live as long as the nodes: it serves no other goroutine.
type owner struct {
	work chan func()
	done chan struct{}
}

func startOwner() *owner {
	o := &owner{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(o.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for fn := range o.work {
			fn()
		}
	}()
	return o
}

func (o *owner) do(fn func()) {
	ran := make(chan struct{})
	o.work <- func() { defer close(ran); fn() }
	<-ran
}

// Close ends the thread; the kernel kills nodes that still run.
func (o *owner) Close() {
	close(o.work)
	<-o.done
}

// settings go to a new PID 1 as its first line.
type settings struct {
	Hostname string            `json:"hostname"`
	Root     string            `json:"root,omitempty"` // "" keeps the host's root (control plane)
	Kube     string            `json:"kube"`
	Self     string            `json:"self"` // this program, as seen after the change of root
	Cgroups  bool              `json:"cgroups"`
	Sysctls  map[string]string `json:"sysctls,omitempty"`
}

// command asks a PID 1 to start a component; report is what it answers.
type command struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Log  string   `json:"log"` // as PID 1 sees it
	// Group puts it into a cgroup2 group of its own below the node's, made anew
	// for each start as systemd does for a unit.
	Group bool `json:"group,omitempty"`
	// Stop asks a running one to end instead (SIGTERM).
	Stop bool `json:"stop,omitempty"`
}

type report struct {
	Ready   bool   `json:"ready,omitempty"`
	Started int    `json:"started,omitempty"`
	Error   string `json:"error,omitempty"`
	Exited  string `json:"exited,omitempty"`
	Status  string `json:"status,omitempty"`
}

// process is a PID 1 seen from outside.
type process struct {
	name string
	pid  int
	conn net.Conn
	wait sync.WaitGroup // reader and collector

	done    chan struct{} // closed when PID 1 was collected
	replies chan report   // closed when the connection ends
	sendMu  sync.Mutex    // one command at a time

	mu     sync.Mutex
	exited map[string]string // component -> status; guarded by mu
}

// spawn starts a PID 1 in new namespaces and waits until it obeys commands.
// cgroups, when given, are made and entered before its cgroup namespace is.
func (c *Cluster) spawn(ctx context.Context, name string, ip string, s settings, cgroups []string) (*process, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	logFile, err := os.OpenFile(filepath.Join(c.dir, "log", name+".init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	defer logFile.Close()
	cmd := &exec.Cmd{
		Path: filepath.Join(c.dir, "init"), Args: []string{initName, "enter"},
		Env:        []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Stdout:     logFile,
		Stderr:     logFile,
		ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
			Pdeathsig:  syscall.SIGKILL,
			Setsid:     true, // a Ctrl-C at the harness's terminal is not for the nodes
		},
	}
	c.owner.do(func() { err = cmd.Start() })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start PID 1 of %s: %w", name, err), ours.Close())
	}
	p := &process{
		name: name, pid: cmd.Process.Pid, conn: ours,
		done: make(chan struct{}), replies: make(chan report, 1), exited: map[string]string{},
	}
	p.wait.Go(func() { _ = cmd.Wait(); close(p.done) })
	p.wait.Go(p.read)
	if err := p.settle(ctx, c, ip, s, cgroups); err != nil {
		p.kill()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

func (p *process) settle(ctx context.Context, c *Cluster, ip string, s settings, cgroups []string) error {
	id, err := processOf(p.pid)
	if err != nil {
		return err
	}
	host := Host{Process: id, IP: ip, NetNS: fmt.Sprintf("/proc/%d/ns/net", p.pid)}
	if err := c.record(func(st *State) {
		if st.Nodes == nil {
			st.Nodes = map[string]Host{}
		}
		st.Nodes[p.name] = host
		st.Cgroups = append(st.Cgroups, cgroups...)
	}); err != nil {
		return err
	}
	if err := enterCgroups(cgroups, p.pid); err != nil {
		return err
	}
	r, err := p.ask(ctx, s)
	if err == nil && !r.Ready {
		err = fmt.Errorf("PID 1: %s", r.Error)
	}
	return err
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "init")
	conn, err := net.FileConn(ours) // a duplicate
	ours.Close()
	theirs := os.NewFile(uintptr(fds[1]), "init")
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// read owns the receiving side of the connection.
func (p *process) read() {
	defer close(p.replies)
	dec := json.NewDecoder(p.conn)
	for {
		var r report
		if dec.Decode(&r) != nil {
			return
		}
		if r.Exited != "" {
			p.mu.Lock()
			p.exited[r.Exited] = r.Status
			p.mu.Unlock()
			continue
		}
		p.replies <- r
	}
}

func (p *process) ask(ctx context.Context, v any) (report, error) {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	b, err := json.Marshal(v)
	if err != nil {
		return report{}, err
	}
	if _, err := p.conn.Write(append(b, '\n')); err != nil {
		return report{}, fmt.Errorf("write to PID 1: %w", err)
	}
	select {
	case r, ok := <-p.replies:
		if !ok {
			return report{}, errors.New("PID 1 has ended")
		}
		return r, nil
	case <-ctx.Done():
		return report{}, ctx.Err()
	}
}

// run starts a component in the namespaces of p.
func (p *process) run(ctx context.Context, c command) error {
	p.mu.Lock()
	delete(p.exited, c.Name)
	p.mu.Unlock()
	r, err := p.ask(ctx, c)
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return fmt.Errorf("start %s on %s: %w", c.Name, p.name, err)
	}
	return nil
}

// stop ends a component and returns when it has ended.
func (p *process) stop(ctx context.Context, name string) error {
	if err := p.run(ctx, command{Name: name, Stop: true}); err != nil {
		return err
	}
	return poll(ctx, 20*time.Millisecond, func() (bool, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		_, ended := p.exited[name]
		return ended, nil
	})
}

// failed is an error when a component has ended; none of them ever should.
func (p *process) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, status := range p.exited {
		return &componentError{Node: p.name, Component: name, Status: status}
	}
	select {
	case <-p.done:
		return fmt.Errorf("PID 1 of %s has ended", p.name)
	default:
		return nil
	}
}

type componentError struct{ Node, Component, Status string }

func (e *componentError) Error() string {
	return fmt.Sprintf("%s of %s ended: %s", e.Component, e.Node, e.Status)
}

// kill ends everything in the node and returns when the kernel has collected
// it: PID 1 is collected after the last process of its namespace.
func (p *process) kill() {
	_ = syscall.Kill(p.pid, syscall.SIGKILL)
	<-p.done
	// A child that was still being started holds no copy of our end.
	p.conn.Close()
	for range p.replies {
	}
	p.wait.Wait()
}

// group runs functions together, keeps the first error and calls fail with it.
type group struct {
	fail func()
	wg   sync.WaitGroup
	once sync.Once
	err  error
}

func (g *group) Go(fn func() error) {
	g.wg.Go(func() {
		if err := fn(); err != nil {
			g.once.Do(func() { g.err = err; g.fail() })
		}
	})
}

func (g *group) Wait() error { g.wg.Wait(); return g.err }

// poll calls done until it says yes, the context ends or failed reports.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}
