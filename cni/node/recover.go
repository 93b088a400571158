package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// recovery gives listeners of the agent before back. A ztunnel is searched
// once, for the sockets of all pods, when the first pod after its connection
// asks.
type recovery struct {
	mu       sync.Mutex
	expected map[uint64]bool     // guarded by mu: socket cookies not taken yet
	searched map[client]bool     // guarded by mu
	found    map[uint64]*os.File // guarded by mu; by socket cookie
}

// client tells two ztunnels apart even when a process id is used again.
type client struct {
	pid   int
	since time.Time
}

func (r *recovery) expect(pods []enroll.IntendedPod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expected = make(map[uint64]bool)
	for _, p := range pods {
		for _, s := range p.Sockets {
			r.expected[s.Cookie] = true
		}
	}
}

// take returns the listeners of one pod, nil when no connected ztunnel has
// them. What it returns it gives only once.
//
// A ztunnel that has them may not have connected yet. Making new listeners
// then fails, because the address of HBONE is still bound, and the pod is
// tried again when a ztunnel connects; when it succeeds, nobody has them.
func (r *recovery) take(clients []client, p enroll.IntendedPod) (*redirect.Listeners, error) {
	if len(p.Sockets) == 0 {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, c := range clients {
		if r.searched[c] {
			continue
		}
		if r.searched == nil {
			r.searched, r.found = make(map[client]bool), make(map[uint64]*os.File)
		}
		r.searched[c] = true
		if err := copySockets(c.pid, r.expected, r.found); err != nil {
			errs = append(errs, fmt.Errorf("ztunnel %d: %w", c.pid, err))
		}
	}
	files := make([]*os.File, len(p.Sockets))
	var missing []string
	for i, s := range p.Sockets {
		if files[i] = r.found[s.Cookie]; files[i] == nil {
			missing = append(missing, s.Kind)
		}
		delete(r.found, s.Cookie)
	}
	if len(missing) == len(files) {
		return nil, errors.Join(errs...)
	}
	for _, s := range p.Sockets {
		delete(r.expected, s.Cookie)
	}
	l := new(redirect.Listeners)
	for i, s := range p.Sockets {
		put(l, s.Kind, files[i])
	}
	if len(missing) > 0 {
		l.Close()
		return nil, fmt.Errorf("sockets %s are gone", strings.Join(missing, ", "))
	}
	return l, nil
}

// drop gives up the listeners of a pod that has ended: a copy of ours would
// keep its namespace alive.
func (r *recovery) drop(p enroll.IntendedPod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range p.Sockets {
		if f := r.found[s.Cookie]; f != nil {
			f.Close()
		}
		delete(r.found, s.Cookie)
		delete(r.expected, s.Cookie)
	}
}

// release closes what nobody asked for.
func (r *recovery) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.found {
		f.Close()
	}
	r.found = nil
	r.searched = nil
}

// copySockets duplicates those sockets of a process whose cookie is wanted.
// pidfd_getfd(2) needs the right to trace it, which the agent has; ztunnel
// takes no part, so this works whatever state it is in.
func copySockets(pid int, wanted map[uint64]bool, into map[uint64]*os.File) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Cheap filter first: most descriptors of a busy ztunnel are
		// connections, and each copy of one is a system call.
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if errors.Is(err, unix.EBADF) {
			continue // closed meanwhile
		}
		if err != nil {
			return fmt.Errorf("pidfd_getfd: %w", err)
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil || !wanted[cookie] || into[cookie] != nil {
			unix.Close(fd)
			continue
		}
		unix.CloseOnExec(fd)
		into[cookie] = os.NewFile(uintptr(fd), "listener")
	}
	return nil
}

// Kinds of listeners in the intent file.
const (
	kindOutbound = "outbound"
	kindInbound  = "inbound"
	kindHBONE    = "hbone"
	kindDNSTCP   = "dns-tcp"
	kindDNSUDP   = "dns-udp"
)

func put(l *redirect.Listeners, kind string, f *os.File) {
	switch {
	case f == nil:
	case kind == kindOutbound && l.Outbound == nil:
		l.Outbound = f
	case kind == kindInbound && l.Inbound == nil:
		l.Inbound = f
	case kind == kindHBONE:
		l.HBONE = append(l.HBONE, f)
	case kind == kindDNSTCP && l.DNSTCP == nil:
		l.DNSTCP = f
	case kind == kindDNSUDP && l.DNSUDP == nil:
		l.DNSUDP = f
	default:
		f.Close()
	}
}

// name lists the listeners so that another process can find them.
func name(l *redirect.Listeners) ([]enroll.IntendedSocket, error) {
	var out []enroll.IntendedSocket
	var errs []error
	add := func(kind string, f *os.File) {
		if f == nil {
			return
		}
		raw, err := f.SyscallConn()
		if err != nil {
			errs = append(errs, err)
			return
		}
		var cookie uint64
		var inner error
		err = raw.Control(func(fd uintptr) {
			cookie, inner = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		})
		if err := errors.Join(err, inner); err != nil {
			errs = append(errs, fmt.Errorf("%s listener: SO_COOKIE: %w", kind, err))
			return
		}
		out = append(out, enroll.IntendedSocket{Kind: kind, Cookie: cookie})
	}
	add(kindOutbound, l.Outbound)
	add(kindInbound, l.Inbound)
	for _, f := range l.HBONE {
		add(kindHBONE, f)
	}
	add(kindDNSTCP, l.DNSTCP)
	add(kindDNSUDP, l.DNSUDP)
	return out, errors.Join(errs...)
}
