package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/netns"
)

// proxies knows in which cgroups (v2) sockets are made that may carry the
// proxy's mark: the agents', which make the listeners that accepted sockets
// inherit from, and the ztunnels'. In a boot ids are only added.
//
// The check is off unless every id is known for certain: an unknown proxy
// would be captured into itself, which is worse than a forged mark.
type proxies struct {
	trust func(ids []uint64) error // immutable: tells the pods there are
	log   *slog.Logger             // immutable
	find  func(pid int) (uint64, error)

	// mu is held for reading while a pod is made to know the ids, so that
	// none is left out of a pod that is being set up.
	mu    sync.RWMutex
	ids   []uint64 // guarded by mu; oldest first
	own   uint64   // guarded by mu; 0 while not known
	ended bool     // guarded by mu: the mark alone decides
}

// mostProxies is below what a pod's map has room for. Only a ztunnel that was
// started hundreds of times since the boot makes the oldest go.
const mostProxies = 200

// begin finds out whether this node tells its proxies by cgroup.
func (p *proxies) begin(before []uint64) {
	own, err := p.ownCgroup()
	if err != nil {
		p.end(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.own = own
	p.ids = slices.Clone(before)
	p.add(own)
	p.log.Info("the proxy's mark is believed from these cgroups only", "own", own, "earlier", len(before))
}

// ownCgroup is what sockets of this process carry, provided that looking it up
// by process id gives the same: then it does for ztunnels too.
func (p *proxies) ownCgroup() (uint64, error) {
	ns, err := netns.New()
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	l, err := ns.ListenTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), 0), netns.SocketOptions{})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	all, err := ns.Listeners()
	if err != nil {
		return 0, err
	}
	if len(all) == 0 || all[0].Cgroup == 0 {
		return 0, errors.New("the kernel does not tell a socket's cgroup (Linux 5.8)")
	}
	found, err := p.find(os.Getpid())
	if err != nil {
		return 0, fmt.Errorf("own cgroup: %w", err)
	}
	if found != all[0].Cgroup {
		return 0, fmt.Errorf("own cgroup: sockets carry %d, the folder is %d", all[0].Cgroup, found)
	}
	return found, nil
}

// add reports whether id is new. mu is held.
func (p *proxies) add(id uint64) bool {
	if id == 0 || slices.Contains(p.ids, id) {
		return false
	}
	p.ids = append(p.ids, id)
	if n := len(p.ids) - mostProxies; n > 0 {
		p.ids = slices.Delete(p.ids, 0, n)
	}
	return true
}

// admit makes every pod know a ztunnel, before it is given any. The error is
// about a process that has ended.
func (p *proxies) admit(pid int) error {
	p.mu.RLock()
	ended, own := p.ended, p.own
	p.mu.RUnlock()
	if ended || own == 0 {
		return nil
	}
	id, err := p.find(pid)
	if err != nil && unix.Kill(pid, 0) == unix.ESRCH {
		return fmt.Errorf("it has ended: %w", err)
	}
	if err == nil && id == own {
		err = errors.New("it is the node agent's own: containers of this node share one")
	}
	if err != nil {
		p.end(fmt.Errorf("cgroup of ztunnel %d: %w", pid, err))
		return nil
	}
	p.learn(id)
	return nil
}

// learn adds ids that are certain.
func (p *proxies) learn(ids ...uint64) {
	p.mu.Lock()
	fresh := false
	if !p.ended && p.own != 0 {
		for _, id := range ids {
			fresh = p.add(id) || fresh
		}
	}
	var err error
	if fresh {
		err = p.trust(p.ids)
	}
	p.mu.Unlock()
	if err != nil {
		p.end(fmt.Errorf("make pods know the proxy: %w", err))
	}
}

// end goes back to the mark alone, until the agent is started again.
func (p *proxies) end(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.ended = true
	p.log.Warn("the proxy's mark alone tells its connections: a process with CAP_NET_RAW can forge it and leave the mesh", "reason", why)
	if err := p.trust(nil); err != nil {
		p.log.Error("pods go on checking the proxy's cgroup", "err", err)
	}
}

// with runs do with what a pod is to know; nil is the mark alone.
func (p *proxies) with(do func(ids []uint64) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.ended || p.own == 0 {
		return do(nil)
	}
	return do(p.ids)
}

// list is what a later agent is to know.
func (p *proxies) list() []uint64 {
	var out []uint64
	_ = p.with(func(ids []uint64) error { out = slices.Clone(ids); return nil })
	return out
}

// checking reports whether cgroups are looked at.
func (p *proxies) checking() bool { return len(p.list()) > 0 }

// makers are the cgroups that the listeners of a pod carry, whoever made them:
// they were made by an agent, perhaps one before this.
func makers(ns *netns.NS, sockets []enroll.IntendedSocket) ([]uint64, error) {
	all, err := ns.Listeners()
	if err != nil {
		return nil, err
	}
	var ids []uint64
	for _, s := range all {
		ours := slices.ContainsFunc(sockets, func(i enroll.IntendedSocket) bool { return i.Cookie == s.Cookie })
		if ours && s.Cgroup != 0 && !slices.Contains(ids, s.Cgroup) {
			ids = append(ids, s.Cgroup)
		}
	}
	return ids, nil
}

// cgroupOf is the cgroup v2 id of a process: the inode of its folder on the
// node's cgroup2 mount, wherever that is.
func (r HostRoot) cgroupOf(pid int) (uint64, error) {
	dir, err := r.cgroupPath(pid)
	if err != nil {
		return 0, err
	}
	return r.cgroupID(dir)
}

// cgroupPath is the folder of a process's cgroup on the node.
func (r HostRoot) cgroupPath(pid int) (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile(r.mountinfo())
	if err != nil {
		return "", err
	}
	return cgroupDir(string(b), string(mounts))
}

func (r HostRoot) cgroupID(dir string) (uint64, error) {
	f, err := r.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Stat_t
	var fs unix.Statfs_t
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = errors.Join(unix.Fstat(int(fd), &st), unix.Fstatfs(int(fd), &fs))
	})
	if err := errors.Join(err, inner); err != nil {
		return 0, fmt.Errorf("%s on the host: %w", dir, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("%s on the host is not cgroup v2", dir)
	}
	return st.Ino, nil
}

// mountinfo is the file that lists what is mounted below r.
func (r HostRoot) mountinfo() string {
	if dir, name := filepath.Split(string(r)); name == "root" && strings.HasPrefix(dir, "/proc/") {
		return dir + "mountinfo"
	}
	return "/proc/self/mountinfo"
}

// cgroupDir finds the folder of a process's cgroup from /proc/<pid>/cgroup and
// the list of mounts (proc_pid_mountinfo(5)).
func cgroupDir(cgroup, mountinfo string) (string, error) {
	in, ok := "", false
	for line := range strings.Lines(cgroup) {
		if in, ok = strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			break
		}
	}
	switch {
	case !ok:
		return "", errors.New("cgroup v2 is not in use")
	case in == "/":
		return "", errors.New("it is in the root cgroup: cgroup v2 is not in use for containers")
	case !strings.HasPrefix(in, "/"):
		return "", fmt.Errorf("its cgroup %q is no path", in)
	}
	for line := range strings.Lines(mountinfo) {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 5 || len(r) < 1 || r[0] != "cgroup2" {
			continue
		}
		root, at := l[3], l[4]
		below, ok := strings.CutPrefix(in, strings.TrimSuffix(root, "/"))
		if !ok || below != "" && below[0] != '/' {
			continue // another part of the tree is mounted there
		}
		// Both paths count from where this process's cgroup namespace begins,
		// so what they have in common, ".." included, is no obstacle.
		if strings.HasPrefix(below, "/..") {
			return "", fmt.Errorf("its cgroup %s is outside what is seen from here (a private cgroup namespace)", in)
		}
		return path.Join(at, below), nil
	}
	return "", errors.New("cgroup v2 is not mounted on the node")
}
