package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/ztunnel"
	"golang.org/x/sys/unix"
)

// harden makes the process what one that holds everybody's keys has to be, and
// sizes it: threads is how many work at once. What fails is reported, not fatal: a container may have done it.
func harden(threads int) error {
	var errs []error
	// No core file and no ptrace by other processes of the same user: the
	// memory holds private keys of every pod on the node.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err))
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("setrlimit RLIMIT_CORE: %w", err))
	}
	// Two descriptors per connection; the usual soft limit is 1024.
	var files syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
	if err == nil {
		files.Cur = files.Max
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("setrlimit RLIMIT_NOFILE: %w", err))
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(threads)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		if limit, ok := memoryLimit(os.ReadFile); ok {
			debug.SetMemoryLimit(limit / 10 * 9)
		}
	}
	return errors.Join(errs...)
}

// rights says what pods cannot be served without: entering their namespaces, and
// sockets that are told from theirs and may have their clients' addresses.
func rights() error {
	ns, err := netns.Current()
	if err == nil {
		defer ns.Close()
		var f *os.File
		loopback := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
		if f, err = ns.ListenTCP(loopback, netns.SocketOptions{Mark: netns.Mark, Transparent: true}); err == nil {
			return f.Close()
		}
	}
	return fmt.Errorf("pods cannot be served without CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW: %w", err)
}

// defaultBacklog is what connections may hold where there is no memory limit
// to take a share of.
const defaultBacklog = 256 << 20

// backlogLimit is how many bytes connections may hold for those who do not read:
// what was set, or a quarter of the memory limit.
func backlogLimit(set, memory int64) int64 {
	switch {
	case set > 0:
		return set
	case memory <= 0 || memory >= 1<<60: // the runtime's word for none is the largest number
		return defaultBacklog
	}
	return memory / 4
}

// What quotas are derived from: a unit of the connection quota is a descriptor and
// unitMemory bytes, and a handshake about a millisecond of a core.
const (
	unitMemory     = 16 << 10
	ownDescriptors = 256 // not for connections: control plane, admin, runtime
	handshakeRate  = 250 // per second and core that one pod gets
)

// quotas fills in what was not set: connections may use the descriptors and half of
// the memory, and one pod half of that; one pod's backlog is a quarter of all;
// its handshakes a quarter of the cores.
func quotas(q ztunnel.Quotas, backlog, memory int64, files, cores int) ztunnel.Quotas {
	if q.Backlog == 0 {
		q.Backlog = backlog / 4
	}
	if q.Connections.Node == 0 {
		n := int64(max(files-ownDescriptors, files/2))
		if memory > 0 && memory < 1<<60 {
			n = min(n, memory/2/unitMemory)
		}
		q.Connections.Node = int(n)
	}
	if q.Connections.Pod == 0 {
		q.Connections.Pod = q.Connections.Node / 2
	}
	if q.HandshakeRate == 0 {
		q.HandshakeRate = float64(handshakeRate * cores)
	}
	return q
}

// openFiles is how many descriptors the process may have.
func openFiles() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 1024
	}
	return int(min(files.Cur, 1<<30))
}

// memoryLimit is the container's, by cgroup v2 and else v1.
func memoryLimit(read func(string) ([]byte, error)) (int64, bool) {
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := read(path)
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		// v2 says "max" and v1 a number near 2^63 for none.
		if err == nil && n > 0 && n < 1<<60 {
			return n, true
		}
	}
	return 0, false
}
