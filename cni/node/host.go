package node

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// HostRoot is where the root of the host's file system is seen from this
// process, /proc/1/root in a pod with the host's process ids.
type HostRoot string

// Open opens a path of the host. Symbolic links on the way are resolved inside
// the root: /var/run is often an absolute link to /run, and following it with
// our own root would lead into the container (openat2(2), RESOLVE_IN_ROOT).
func (r HostRoot) Open(path string, flags int) (*os.File, error) {
	root, err := unix.Open(string(r), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("host root %s: %w", r, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimLeft(path, "/"), &unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return nil, fmt.Errorf("%s on the host: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Netns opens the namespace file of a sandbox. A path below /proc is opened as
// it is: the agent shares the host's process ids, and a link there is no path.
func (r HostRoot) Netns(path string) (*netns.NS, error) {
	if strings.HasPrefix(path, "/proc/") {
		return netns.Open(path)
	}
	f, err := r.Open(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return netns.FromFile(f)
}

// Dir opens a directory of the host and returns a path to it that stays valid
// until the file is closed.
func (r HostRoot) Dir(path string) (*os.File, string, error) {
	f, err := r.Open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, "", err
	}
	return f, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
}
