package netns_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
	"golang.org/x/sys/unix"
)

// capture keeps every frame that passes a device.
type capture struct {
	f    *os.File
	done chan struct{}

	mu     sync.Mutex
	frames bytes.Buffer // guarded by mu
}

// maxCapture bounds what a test may let pass while it captures.
const maxCapture = 256 << 20

func capturing(t testing.TB, ns *netns.NS, device string) *capture {
	t.Helper()
	c := &capture{done: make(chan struct{})}
	within(t, ns, func() error {
		const all = 0x0300 // ETH_P_ALL in network byte order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		c.f = os.NewFile(uintptr(fd), "AF_PACKET")
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		index, err := ifIndex(device)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index})
	})
	go func() {
		defer close(c.done)
		buf := make([]byte, 1<<17)
		for {
			n, err := c.f.Read(buf)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			c.mu.Lock()
			if c.frames.Len() < maxCapture {
				c.frames.Write(buf[:max(n, 0)])
			}
			c.mu.Unlock()
		}
	}()
	t.Cleanup(c.stop)
	return c
}

func (c *capture) stop() {
	c.f.Close()
	<-c.done
}

// lost is how many frames the kernel could not keep for us.
func (c *capture) lost(t testing.TB) uint32 {
	t.Helper()
	raw, err := c.f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var s *unix.TpacketStats
	raw.Control(func(fd uintptr) {
		s, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s.Drops
}

func (c *capture) contains(token string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Contains(c.frames.Bytes(), []byte(token))
}

// wantCount waits until a token was seen as often as it should be; that it is not
// seen more often shows by what was sent after it.
func (c *capture) wantCount(t testing.TB, token string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q is %d times on the wire", token, want), func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := bytes.Count(c.frames.Bytes(), []byte(token)); n != want {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
}

// size is how many bytes of frames were kept.
func (c *capture) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames.Len()
}
