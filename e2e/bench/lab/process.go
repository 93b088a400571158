package lab

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"golang.org/x/sys/unix"
)

// Command says what Run runs.
type Command struct {
	Name  string
	Path  string
	Env   []string
	Log   string     // file for its output, appended to
	Files []*os.File // descriptors 3 and up
	Pipes bool       // In and Out are connected; only stderr goes to Log
}

// Process is a running program.
type Process struct {
	Name string
	In   io.WriteCloser
	Out  io.ReadCloser
	cmd  *exec.Cmd
	lab  *Lab
	done chan struct{} // closed when it has exited
}

// Run starts a program inside ns. It dies with the bench.
func (l *Lab) Run(ns *netns.NS, c Command) (*Process, error) {
	p := &Process{Name: c.Name, lab: l, done: make(chan struct{}), cmd: exec.Command(c.Path)}
	p.cmd.Env, p.cmd.ExtraFiles = c.Env, c.Files
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if c.Log != "" {
		log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		defer log.Close()
		p.cmd.Stdout, p.cmd.Stderr = log, log
	}
	if c.Pipes {
		p.cmd.Stdout, p.cmd.Stderr = nil, os.Stderr
		if p.In, err = p.cmd.StdinPipe(); err != nil {
			return nil, err
		}
		if p.Out, err = p.cmd.StdoutPipe(); err != nil {
			return nil, err
		}
	}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// The signal of Pdeathsig comes when the thread that forked dies, so
		// this goroutine keeps its thread as long as the process lives.
		err := ns.Do(func() error {
			err := p.cmd.Start()
			started <- err
			if err == nil {
				// How it ends is no news: it is killed, or its pipe is closed.
				_, _ = p.cmd.Process.Wait()
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	l.mu.Lock()
	l.processes = append(l.processes, p)
	l.mu.Unlock()
	return p, nil
}

// Kill ends p and waits for it. A second call does nothing.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
	if p.In != nil {
		_, _ = p.In.Close(), p.Out.Close()
	}
	p.lab.mu.Lock()
	defer p.lab.mu.Unlock()
	p.lab.processes = slices.DeleteFunc(p.lab.processes, func(q *Process) bool { return q == p })
}

// CPU is the processor time p has used, all threads and both modes, to the
// nanosecond: the CPU clock of a process is named by its PID (see
// MAKE_PROCESS_CPUCLOCK in the kernel's posix-timers.h).
func (p *Process) CPU() time.Duration {
	const cpuclockSched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid)<<3|cpuclockSched, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Memory is in KB. Anon is private memory without files' pages.
type Memory struct{ RSS, PSS, Anon float64 }

// Memory reads what p holds now.
func (p *Process) Memory() (Memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		return Memory{}, fmt.Errorf("memory of %s: %w", p.Name, err)
	}
	var m Memory
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		v, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "Rss:":
			m.RSS = v
		case "Pss:":
			m.PSS = v
		case "Anonymous:":
			m.Anon = v
		}
	}
	return m, nil
}
