package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// config is what the flags say.
type config struct {
	cluster, out string
	down         bool
	timeout      time.Duration
}

// lab drives the programs of the demo; it holds no state of the cluster.
type lab struct {
	config
	begin time.Time
	steps int
}

func (l *lab) bin(name string) string { return filepath.Join(l.out, name) }

// say prints what happens next, with the time since the start.
func (l *lab) say(format string, args ...any) {
	l.steps++
	fmt.Printf("\n[%6.1fs] %d. %s\n", time.Since(l.begin).Seconds(), l.steps, fmt.Sprintf(format, args...))
}

// detail prints what was found.
func (l *lab) detail(format string, args ...any) {
	for line := range strings.Lines(strings.TrimRight(fmt.Sprintf(format, args...), "\n")) {
		fmt.Printf("            %s\n", strings.TrimRight(line, "\n"))
	}
}

// show runs a program and passes its output on, indented.
func (l *lab) show(ctx context.Context, args ...string) error {
	r, w := io.Pipe()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = w, w
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(r); s.Scan(); {
			l.detail("%s", s.Text())
		}
	}()
	err := cmd.Run()
	w.Close()
	<-done
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// get runs a program and returns what it printed; an error carries what it
// said about it.
func get(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func (l *lab) kubelab(command string, args ...string) []string {
	return append([]string{l.bin("kubelab"), command, "--name", l.cluster}, args...)
}

func (l *lab) kubectl(ctx context.Context, args ...string) (string, error) {
	return get(ctx, "", l.kubelab("kubectl", append([]string{"--"}, args...)...)...)
}

func (l *lab) apply(ctx context.Context, text string) error {
	_, err := get(ctx, text, l.kubelab("kubectl", "--", "apply", "-f", "-")...)
	return err
}

// ambit runs the CLI as a user would.
func (l *lab) ambit(ctx context.Context, args ...string) (string, error) {
	kubeconfig, err := l.kubeconfig(ctx)
	if err != nil {
		return "", err
	}
	return get(ctx, "", append([]string{l.bin("ambit"), "--kubeconfig", kubeconfig}, args...)...)
}

func (l *lab) kubeconfig(ctx context.Context) (string, error) {
	out, err := get(ctx, "", l.kubelab("kubeconfig")...)
	return strings.TrimSpace(out), err
}

// until asks again and again until ok is content or the time is up.
func until(ctx context.Context, limit time.Duration, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, err)
		case <-tick.C:
		}
	}
}

// recording is a packet capture of every link between the machines.
type recording struct {
	cmd  *exec.Cmd
	path string
	said bytes.Buffer // owned by the reader goroutine until done is closed
	done chan struct{}
}

// record starts the capture and returns once no packet can be missed.
func (l *lab) record(ctx context.Context) (*recording, error) {
	r := &recording{path: filepath.Join(l.out, "links.pcap"), done: make(chan struct{})}
	args := l.kubelab("capture", "--out", r.path)
	r.cmd = exec.Command(args[0], args[1:]...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	started := make(chan struct{})
	go func() {
		defer close(r.done)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			if s.Text() == "capturing" {
				close(started)
				continue
			}
			fmt.Fprintln(&r.said, s.Text())
		}
	}()
	select {
	case <-started:
		return r, nil
	case <-r.done:
		return nil, fmt.Errorf("capture: %w: %s", r.cmd.Wait(), r.said.String())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), r.stop())
	}
}

// stop ends the capture; afterwards the file is whole.
func (r *recording) stop() error {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-r.done
	return r.cmd.Wait()
}

// summary is what the capture said at its end: packets taken and lost.
func (r *recording) summary() string { return strings.TrimSpace(r.said.String()) }

func (r *recording) contains(token string) (bool, error) {
	b, err := os.ReadFile(r.path)
	return bytes.Contains(b, []byte(token)), err
}
