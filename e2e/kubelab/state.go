package kubelab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// State is the file from which a cluster can be ended by somebody else, also
// after its supervisor was killed. Everything is written there before it is
// made.
type State struct {
	Name       string          `json:"name"`
	Supervisor Process         `json:"supervisor"`
	Kubeconfig string          `json:"kubeconfig,omitempty"`
	Cache      string          `json:"cache,omitempty"`
	Nodes      map[string]Host `json:"nodes,omitempty"`
	Cgroups    []string        `json:"cgroups,omitempty"`
}

// Host is a node (or the control plane, "cp") in the state file.
type Host struct {
	Process
	IP    string `json:"ip"`
	NetNS string `json:"netns"`
}

// Process names a process for certain: PIDs are reused, but not together with
// the start time (clock ticks since boot).
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

func processOf(pid int) (Process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	// The second field, the name, may contain spaces and brackets.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return Process{}, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	start, err := strconv.ParseUint(f[19], 10, 64) // field 22 of proc(5)
	return Process{PID: pid, Start: start}, err
}

// Alive says whether this very process still exists and is no zombie.
func (p Process) Alive() bool {
	if p.PID == 0 {
		return false
	}
	now, err := processOf(p.PID)
	if err != nil || now.Start != p.Start {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	rest := b[bytes.LastIndexByte(b, ')')+1:]
	return len(rest) > 1 && rest[1] != 'Z' && rest[1] != 'X'
}

func (p Process) end(timeout time.Duration) error {
	if !p.Alive() {
		return nil
	}
	if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return until(timeout, func() bool { return !p.Alive() }, fmt.Sprintf("process %d to end", p.PID))
}

func stateFile(dir string) string { return filepath.Join(dir, "state.json") }

// ReadState reads the state of the cluster in dir; fs.ErrNotExist says that
// there is none.
func ReadState(dir string) (State, error) {
	var s State
	b, err := os.ReadFile(stateFile(dir))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", stateFile(dir), err)
	}
	return s, nil
}

func (s State) write(dir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := stateFile(dir) + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, stateFile(dir))
}

// Clean removes what is left of a cluster whose supervisor has gone: its
// processes, cgroups, sysctls and files.
func Clean(dir string) error {
	s, err := ReadState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(dir); err != nil {
			return nil
		}
		// Killed between making the folder and the first write of the state.
		return errors.Join(releaseSysctls(dir), removeTree(dir))
	}
	if err != nil {
		return err
	}
	if s.Supervisor.PID != os.Getpid() && s.Supervisor.Alive() {
		return fmt.Errorf("cluster %q: its supervisor, process %d, is running", s.Name, s.Supervisor.PID)
	}
	return s.remove(dir)
}

// remove ends what the state names. The order matters: cgroups are empty only
// when their processes have gone, and the state file goes last.
func (s State) remove(dir string) error {
	var errs []error
	for name, h := range s.Nodes {
		if err := h.end(10 * time.Second); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	// Deepest first is guaranteed per folder by removeCgroup.
	for _, g := range slices.Compact(slices.Sorted(slices.Values(s.Cgroups))) {
		if err := removeCgroup(g, true); err != nil {
			errs = append(errs, err)
		}
	}
	if err := releaseSysctls(dir); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // keep the state: a second Clean can go on
	}
	return removeTree(dir)
}

// removeTree is os.RemoveAll which refuses to follow a mount that is still
// there, so that it can never empty a folder of the host.
func removeTree(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			return fmt.Errorf("%s is still mounted", f[4])
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	// The folder above is ours only when it is the default one and empty.
	if filepath.Dir(dir) == filepath.Dir(DefaultState("x")) {
		_ = os.Remove(filepath.Dir(dir))
	}
	return nil
}

func until(timeout time.Duration, done func() bool, what string) error {
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; !done(); wait = min(2*wait, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for %s", timeout, what)
		}
		time.Sleep(wait)
	}
	return nil
}
