package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// The ports on which ztunnels that are not ours listen in every pod.
const (
	foreignOutbound = 15001
	foreignInbound  = 15006
)

// foreign reports whether pods are for a ztunnel that makes its own listeners:
// the newest that is served, or the last there was.
func (a *Agent) foreign() bool {
	for _, c := range slices.Backward(a.zds.Clients()) {
		if c.Synced {
			a.others.Store(c.Foreign)
			break
		}
	}
	return a.others.Load()
}

// sockets sees to it that the pod's listeners are made by whom the node's
// ztunnel expects: by us, or by it. Two cannot have one port.
func (j *job) sockets(ctx context.Context) error {
	h := j.held
	switch foreign := j.a.foreign(); {
	case foreign && !h.foreign:
		return j.lend(ctx)
	case !foreign && (h.foreign || h.listeners == nil):
		// Before ours are made: whether DNS is among them.
		h.wishes.dns = j.a.wishesOf(j.pod, false).dns
		if err := j.listen(); err != nil {
			return err
		}
		if !h.foreign {
			return nil
		}
		h.foreign, h.acked, h.proven = false, false, false
		return j.again()
	}
	return nil
}

// lend leaves the ports of a pod to the ztunnel. Connections that are open go
// on in a ztunnel of ours; new ones wait, unanswered, for the other's listeners.
func (j *job) lend(ctx context.Context) error {
	h := j.held
	if h.set {
		if err := j.a.cfg.Redirector.Empty(h.containerID); err != nil {
			return err
		}
	}
	if h.listeners != nil || j.before != nil && len(j.before.Sockets) > 0 {
		if err := j.a.zds.Retire(ctx, j.uid); err != nil {
			return err
		}
	}
	if h.listeners != nil {
		h.listeners.Close()
	}
	h.listeners, h.sockets = nil, nil
	h.foreign, h.acked, h.proven = true, false, false
	return j.again()
}

// again sets capture that is on to what has changed, without a gap.
func (j *job) again() error {
	if !j.held.set {
		return nil
	}
	return j.set()
}

// borrow puts the listeners that a ztunnel has made for a pod into its slots.
// They are found in that process alone: whatever else listens on those ports,
// an application that was faster or one that shares the port, is not it.
func (a *Agent) borrow(c handoff.Client, p handoff.Pod) error {
	at, ok := a.served.get(p.UID)
	if !ok || at.NS != p.NS {
		return fmt.Errorf("pod %s: %w", p, os.ErrClosed) // removed meanwhile
	}
	l, err := listenersOf(c.PID, p.NS)
	if err != nil {
		return fmt.Errorf("listeners of ztunnel %d for pod %s: %w", c.PID, p, err)
	}
	defer l.Close()
	if err := a.cfg.Redirector.Fill(at.containerID, p.NS, l); err != nil {
		return err
	}
	full, err := a.cfg.Redirector.Filled(at.containerID, at.addrs)
	if err == nil && !full {
		err = fmt.Errorf("ztunnel %d does not listen for every address of pod %s: %v", c.PID, p, at.addrs)
	}
	return err
}

// listenersOf copies the listeners that a process has in a namespace. The
// kernel says which sockets listen there, /proc which of them are the
// process's, and pidfd_getfd(2) takes a copy.
func listenersOf(pid int, ns *netns.NS) (*redirect.Listeners, error) {
	all, err := ns.Listeners()
	if err != nil {
		return nil, err
	}
	ports := map[uint32]uint16{} // by inode
	for _, s := range all {
		switch p := s.Local.Port(); p {
		case foreignOutbound, foreignInbound, redirect.HBONEPort:
			// Unmarked, what it accepts would be captured once more.
			if s.IsProxy() && !s.Local.Addr().IsLoopback() {
				ports[s.Inode] = p
			}
		}
	}
	files, err := copyInodes(pid, ports)
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	l := &redirect.Listeners{}
	for inode, f := range files {
		switch ports[inode] {
		case foreignOutbound:
			l.Outbound = replace(l.Outbound, f)
		case foreignInbound:
			l.Inbound = replace(l.Inbound, f)
		default:
			l.HBONE = append(l.HBONE, f)
		}
	}
	var missing []string
	for name, there := range map[string]bool{"15001": l.Outbound != nil, "15006": l.Inbound != nil, "15008": len(l.HBONE) > 0} {
		if !there {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		l.Close()
		slices.Sort(missing)
		return nil, fmt.Errorf("it has none on port %s with mark %#x", strings.Join(missing, ", "), netns.Mark)
	}
	return l, nil
}

func replace(old, f *os.File) *os.File {
	if old != nil {
		old.Close()
	}
	return f
}

func closeFiles(files map[uint32]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// copyInodes duplicates the sockets of a process that have these inodes.
func copyInodes(pid int, wanted map[uint32]uint16) (map[uint32]*os.File, error) {
	found := map[uint32]*os.File{}
	if len(wanted) == 0 {
		return found, nil
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return found, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return found, err
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		number, isSocket := strings.CutPrefix(target, "socket:[")
		if !isSocket {
			continue
		}
		inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32)
		if err != nil || wanted[uint32(inode)] == 0 || found[uint32(inode)] != nil {
			continue
		}
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if errors.Is(err, unix.EBADF) {
			continue
		}
		if err != nil {
			return found, fmt.Errorf("pidfd_getfd: %w", err)
		}
		unix.CloseOnExec(fd)
		// The number may mean another file by now, another pod's listener even.
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Ino != inode {
			unix.Close(fd)
			continue
		}
		found[uint32(inode)] = os.NewFile(uintptr(fd), "listener of ztunnel")
		if len(found) == len(wanted) {
			break
		}
	}
	return found, nil
}
