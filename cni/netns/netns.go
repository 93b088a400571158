// Package netns owns handles of network namespaces and the sockets made inside
// them. It is the only place in Ambit that calls setns(2).
//
// A socket belongs to the namespace it was created in for its whole life, so a
// thread visits a namespace only for the socket(2) and bind(2) calls; connect,
// accept and all I/O happen on ordinary goroutines through Go's poller.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// Mark is carried by every socket of the proxy: capture lets it pass.
	Mark = 0x539
	// CaptureMark is put on packets that are turned around into the namespace.
	CaptureMark = 0x111
	// MarkMask is the part of the packet mark Ambit uses.
	MarkMask = 0xfff
)

const selfPath = "/proc/thread-self/ns/net"

// ID tells namespaces apart while they are alive. Inode numbers are reused;
// use Cookie where a name must outlive the namespace.
type ID struct{ Dev, Ino uint64 }

func (id ID) String() string { return fmt.Sprintf("%d:%d", id.Dev, id.Ino) }

// NS keeps a network namespace alive. All methods may be called concurrently,
// Close included: calls under way finish in the right namespace, later ones
// fail with os.ErrClosed.
type NS struct {
	file *os.File // immutable; its own lock guards the descriptor
	id   ID       // immutable
	name string   // immutable
}

// Open opens the namespace file at path, /proc/<pid>/ns/net or a bind mount.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return FromFile(f)
}

// FromFile takes ownership of f, also when it fails.
func FromFile(f *os.File) (*NS, error) {
	n, err := adopt(f)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s as a network namespace: %w", f.Name(), err)
	}
	return n, nil
}

func adopt(f *os.File) (*NS, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	var inner error
	err = rc.Control(func(fd uintptr) {
		var fs unix.Statfs_t
		if inner = unix.Fstatfs(int(fd), &fs); inner != nil {
			return
		}
		if fs.Type != unix.NSFS_MAGIC {
			inner = errors.New("not a namespace file")
			return
		}
		kind, err := unix.IoctlRetInt(int(fd), unix.NS_GET_NSTYPE)
		if err != nil {
			inner = fmt.Errorf("ask for the namespace type: %w", err)
			return
		}
		if kind != unix.CLONE_NEWNET {
			inner = fmt.Errorf("namespace of type %#x, want a network namespace", kind)
			return
		}
		inner = unix.Fstat(int(fd), &st)
	})
	if err = errors.Join(err, inner); err != nil {
		return nil, err
	}
	id := ID{Dev: uint64(st.Dev), Ino: st.Ino}
	return &NS{file: f, id: id, name: "netns " + id.String()}, nil
}

// Current is the namespace of the calling thread: inside Do the visited one,
// anywhere else the process's.
func Current() (*NS, error) { return Open(selfPath) }

// New makes a fresh namespace with its loopback device up. Nothing but the
// handle keeps it alive, so it leaves nothing behind. Meant for tests.
func New() (*NS, error) {
	var n *NS
	home, err := Current()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	err = home.visit(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create a network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("loopback up: %w", err)
		}
		n, err = Current()
		return err
	})
	if err != nil {
		if n != nil {
			_ = n.Close()
		}
		return nil, err
	}
	return n, nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// File is the namespace file itself, for passing on; it stays owned by n.
func (n *NS) File() *os.File { return n.file }

// ID is the device and inode of the namespace file.
func (n *NS) ID() ID { return n.id }

func (n *NS) String() string { return n.name }

// Close drops the handle. The namespace lives on while anything else holds it.
func (n *NS) Close() error { return n.file.Close() }

// Cookie is the kernel's number of the namespace, never reused before the next
// boot (SO_NETNS_COOKIE, Linux 5.14).
func (n *NS) Cookie() (uint64, error) {
	var cookie uint64
	err := n.Do(func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(s)
		cookie, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return fmt.Errorf("SO_NETNS_COOKIE: %w", err)
		}
		return nil
	})
	return cookie, err
}

// Do runs fn on a thread inside the namespace. What fn starts on other
// goroutines runs outside. The error names the namespace.
func (n *NS) Do(fn func() error) error {
	if err := n.visit(fn); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	return nil
}

// visit uses a goroutine of its own: when the thread cannot return to where it
// came from, the goroutine ends locked to it and the runtime destroys the
// thread, so that no other goroutine ever runs in the wrong namespace.
// A panic of fn ends the process, as on any goroutine.
func (n *NS) visit(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(selfPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open own namespace: %w", err)
			return
		}
		defer unix.Close(home)
		entered, err := n.enter()
		if err != nil {
			if !entered {
				runtime.UnlockOSThread()
			}
			done <- err
			return
		}
		err = fn()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// enter reports whether the thread has left its namespace.
func (n *NS) enter() (bool, error) {
	rc, err := n.file.SyscallConn()
	if err != nil {
		return false, err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) {
		inner = unix.Setns(int(fd), unix.CLONE_NEWNET)
	}); err != nil {
		return false, os.ErrClosed // the only way Control fails
	}
	if inner != nil {
		return false, fmt.Errorf("setns: %w", inner)
	}
	return true, nil
}
