package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is one that is followed by descriptor: its number may be another's
// the next moment (pidfd_open(2)).
type process struct {
	pid  int
	fd   int
	uid  uint32
	find func(pid int) (uint64, error) // its cgroup, the slow way
	last uint64                        // the owner's: the cgroup it was seen in
}

func openProcess(pid int, find func(pid int) (uint64, error)) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: fd, find: find}
	st, err := os.Stat("/proc/" + strconv.Itoa(pid))
	if err == nil && !p.alive() {
		err = unix.ESRCH
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p.uid = st.Sys().(*syscall.Stat_t).Uid
	return p, nil
}

func (p *process) close() { _ = unix.Close(p.fd) }

func (p *process) alive() bool { return unix.PidfdSendSignal(p.fd, 0, nil, 0) == nil }

// cgroup is the id of the cgroup (v2) in which the process makes sockets now.
func (p *process) cgroup() (uint64, error) {
	id, err := cgroupByPidfd(p.fd)
	if errors.Is(err, errors.ErrUnsupported) {
		if id, err = p.find(p.pid); err == nil && !p.alive() {
			err = unix.ESRCH
		}
	}
	switch {
	case err != nil:
		return 0, err
	case id == rootCgroup:
		return 0, errors.New("it is in the root cgroup, as every process of the node is that nobody has put elsewhere")
	}
	return id, nil
}

// rootCgroup is the id of the hierarchy's root, the real one: what a cgroup
// namespace shows as its root has another.
const rootCgroup = 1

// pidfdInfo is struct pidfd_info of linux/pidfd.h in its first version.
type pidfdInfo struct {
	mask     uint64
	cgroupID uint64
	rest     [12]uint32
}

const (
	pidfdInfoCgroup = 1 << 2
	pidfdGetInfo    = 3<<30 | uint(unsafe.Sizeof(pidfdInfo{}))<<16 | 0xff<<8 | 11
)

// cgroupByPidfd asks the kernel itself (Linux 6.13), which needs no path and so
// no agreement about mounts and cgroup namespaces.
func cgroupByPidfd(fd int) (uint64, error) {
	info := pidfdInfo{mask: pidfdInfoCgroup}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(pidfdGetInfo), uintptr(unsafe.Pointer(&info)))
	switch {
	case errno == unix.ESRCH:
		return 0, fmt.Errorf("it has ended: %w", errno)
	case errno != 0, info.mask&pidfdInfoCgroup == 0:
		return 0, errors.ErrUnsupported
	}
	return info.cgroupID, nil
}

// holders are the processes that have a socket open, by its inode (proc(5)).
func holders(proc string, inode uint32) []int {
	entries, err := os.ReadDir(proc)
	if err != nil || inode == 0 {
		return nil
	}
	want := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name(), "fd")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			if fd.Type()&fs.ModeSymlink == 0 {
				continue
			}
			if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && to == want {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

func cgroupFile(pid int) (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	return string(b), err
}
