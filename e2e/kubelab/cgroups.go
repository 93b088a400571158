package kubelab

import (
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

// hierarchy is one line of /proc/<pid>/cgroup: a v1 controller (or named
// hierarchy), or the cgroup2 tree when Controller is "".
type hierarchy struct {
	Controller string
	Path       string
}

func parseCgroups(text string) []hierarchy {
	var hs []hierarchy
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 {
			hs = append(hs, hierarchy{Controller: f[1], Path: f[2]})
		}
	}
	return hs
}

// mountPoint finds where the hierarchy is mounted, and which group is shown
// there, from the text of /proc/self/mountinfo.
func (h hierarchy) mountPoint(mountinfo string) (point, root string, ok bool) {
	for line := range strings.Lines(mountinfo) {
		left, right, found := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !found || len(l) < 5 || len(r) < 3 {
			continue
		}
		if h.Controller == "" && r[0] == "cgroup2" {
			return l[4], l[3], true
		}
		if h.Controller == "" || r[0] != "cgroup" {
			continue
		}
		opts := strings.Split(r[2], ",")
		all := true
		for _, c := range strings.Split(h.Controller, ",") {
			all = all && slices.Contains(opts, c)
		}
		if all {
			return l[4], l[3], true
		}
	}
	return "", "", false
}

// nodeCgroups are the folders of a node's groups: one in each hierarchy, below
// the group this process is in. Starting from our own group and not from the
// root leaves the host's grouping alone.
func nodeCgroups(name string) ([]string, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range parseCgroups(string(own)) {
		point, root, ok := h.mountPoint(string(mounts))
		if !ok {
			continue // not mounted: no node could use it either
		}
		rel := strings.TrimPrefix(h.Path, strings.TrimSuffix(root, "/"))
		dirs = append(dirs, filepath.Join(point, rel, name))
	}
	return dirs, nil
}

// enterCgroups makes the groups and moves the process there.
func enterCgroups(dirs []string, pid int) error {
	for _, d := range dirs {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// A new v1 cpuset is empty and takes no process.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(d), f))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(d, f), b, 0o644); err != nil {
				return fmt.Errorf("cgroup %s: %w", d, err)
			}
		}
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("move process %d to cgroup: %w", pid, err)
		}
	}
	return nil
}

// removeCgroup removes the groups below dir, and dir itself with self. A group
// stays busy for a moment after its last process was collected.
func removeCgroup(dir string, self bool) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() && (self || path != dir) {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	slices.Reverse(dirs)
	for _, d := range dirs {
		var last error
		gone := func() bool {
			last = unix.Rmdir(d)
			return last == nil || errors.Is(last, unix.ENOENT)
		}
		if until(time.Minute, gone, "") != nil {
			return fmt.Errorf("remove cgroup %s: %w", d, last)
		}
	}
	return nil
}
