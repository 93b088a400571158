package kubelab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// controlPlaneMounts: the control plane sees the host's files, but holds no
// network namespace of others alive and has a /proc of its own PID namespace.
func controlPlaneMounts() error {
	for _, dir := range []string{"/run/netns", "/var/run/netns"} {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// nodeMounts makes the node's root out of its folder and changes to it. Nothing
// of the host but a read-only /usr and the binary is visible afterwards.
func nodeMounts(s settings) error {
	at := func(path string) string { return filepath.Join(s.Root, path) }
	// What proc shows depends on the reader: take it before /proc is replaced.
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	mounts := []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		// pivot_root wants a mount point.
		{s.Root, "", "", unix.MS_BIND, ""},
		{"/usr", "usr", "", unix.MS_BIND, ""},
		{"", "usr", "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY, ""},
		{s.Kube, "opt/k8s/kube", "", unix.MS_BIND, ""},
		{"", "opt/k8s/kube", "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY, ""},
		{"proc", "proc", "proc", 0, ""},
		{"sysfs", "sys", "sysfs", 0, ""}, // shows the new network namespace
		{"tmpfs", "dev", "tmpfs", unix.MS_NOSUID, "mode=755,size=1m"},
		{"tmpfs", "run", "tmpfs", 0, "mode=755"},
		{"tmpfs", "tmp", "tmpfs", 0, "mode=1777"},
		{"bpffs", "sys/fs/bpf", "bpf", 0, "mode=700"},
		{"tmpfs", "sys/fs/cgroup", "tmpfs", 0, "mode=755"},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, at(m.target), m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", filepath.Join("/", m.target), err)
		}
	}
	if err := deviceFiles(at("dev")); err != nil {
		return err
	}
	if err := cgroupMounts(at("sys/fs/cgroup"), parseCgroups(string(own))); err != nil {
		return err
	}
	for _, dir := range []string{"run/lock", "run/netns"} {
		if err := os.MkdirAll(at(dir), 0o755); err != nil {
			return err
		}
	}
	// Only on kernels that have it.
	_ = unix.Mount("tracefs", at("sys/kernel/tracing"), "tracefs", 0, "")

	if err := unix.Chdir(s.Root); err != nil {
		return err
	}
	// pivot_root(2): with both arguments "." the old root lies over the new one,
	// and detaching it uncovers the new.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// Without it Bidirectional mounts are refused, and a HostToContainer mount
	// of /run/netns never sees the namespace of a later pod.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

// deviceFiles makes a /dev without the host's disks: a privileged pod gets every
// device of its node.
func deviceFiles(dev string) error {
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{
		{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9},
		{"kmsg", 1, 11}, // the kubelet reads out-of-memory kills there
		{"tty", 5, 0},
	} {
		path := filepath.Join(dev, d.name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.name, err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx", "core": "/proc/kcore",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	for _, m := range []struct{ dir, fstype, data string }{
		{"pts", "devpts", "newinstance,ptmxmode=0666,mode=620,gid=5"},
		{"shm", "tmpfs", "mode=1777,size=256m"},
		{"mqueue", "mqueue", ""},
	} {
		path := filepath.Join(dev, m.dir)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, path, m.fstype, 0, m.data); err != nil {
			return fmt.Errorf("mount /dev/%s: %w", m.dir, err)
		}
	}
	return nil
}

// cgroupMounts mounts each hierarchy; in the cgroup namespace every one shows
// the node's own groups only. runc 1.1 puts containers in cgroup2 as well, so
// programs attached to the node's cgroup2 root see the node's pods and no others.
func cgroupMounts(dir string, hs []hierarchy) error {
	for _, h := range hs {
		name, fstype, data := h.Controller, "cgroup", h.Controller
		switch {
		case h.Controller == "":
			name, fstype, data = "unified", "cgroup2", ""
		case strings.HasPrefix(h.Controller, "name="):
			name, data = strings.TrimPrefix(h.Controller, "name="), "none,"+h.Controller
		}
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := unix.Mount("cgroup", path, fstype, 0, data); err != nil {
			return fmt.Errorf("mount cgroup %s: %w", name, err)
		}
	}
	return nil
}
