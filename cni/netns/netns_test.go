package netns

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func fresh(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces: needs root")
	}
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func TestMain(m *testing.M) {
	files, routines := openFiles(), runtime.NumGoroutine()
	code := m.Run()
	if code == 0 {
		// Fuzzing leaves the goroutine that listens for signals.
		fuzzing := flag.Lookup("test.fuzz").Value.String() != ""
		leaked := func() bool { return openFiles() > files || runtime.NumGoroutine() > routines && !fuzzing }
		// One that has visited a namespace gives its answer before it closes its
		// descriptor and ends.
		for end := time.Now().Add(time.Minute); leaked() && time.Now().Before(end); {
			<-time.After(10 * time.Millisecond)
		}
		if leaked() {
			fmt.Fprintf(os.Stderr, "leaked: %d descriptors before, %d after; %d goroutines before, %d after\n",
				files, openFiles(), routines, runtime.NumGoroutine())
			code = 1
		}
	}
	os.Exit(code)
}

// openFiles counts sockets and namespaces, the kinds this package makes.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, "net:")) {
			n++
		}
	}
	return n
}

func current(t testing.TB) ID {
	t.Helper()
	n, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	return n.ID()
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	n := fresh(t)
	home := current(t)
	if n.ID() == home {
		t.Fatal("the new namespace is the old one")
	}
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if err := n.Do(func() error {
				if got := current(t); got != n.ID() {
					return fmt.Errorf("inside %s, want %s", got, n.ID())
				}
				return n.Do(func() error { return nil }) // nested
			}); err != nil {
				t.Error(err)
			}
			if got := current(t); got != home {
				t.Errorf("back in %s, want %s", got, home)
			}
		})
	}
	wg.Wait()
	boom := errors.New("boom")
	if err := n.Do(func() error { return boom }); !errors.Is(err, boom) || !strings.Contains(err.Error(), n.String()) {
		t.Fatalf("error %v does not name %s", err, n)
	}
}

func TestCookie(t *testing.T) {
	a, b := fresh(t), fresh(t)
	ca, err := a.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	cb, err := b.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	if ca == 0 || ca == cb {
		t.Fatalf("cookies %d and %d", ca, cb)
	}
}

func TestOnlyNetworkNamespaces(t *testing.T) {
	for _, path := range []string{"/proc/self/ns/mnt", "/dev/null", "/proc/self/status", "/nonexistent"} {
		if n, err := Open(path); err == nil {
			n.Close()
			t.Errorf("%s was taken for a network namespace", path)
		}
	}
}

func TestClosedNamespace(t *testing.T) {
	n := fresh(t)
	n.Close()
	if err := n.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do: %v", err)
	}
	if _, err := n.ListenTCP(netip.MustParseAddrPort("127.0.0.1:0"), SocketOptions{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ListenTCP: %v", err)
	}
	if _, err := n.DialTCP(context.Background(), netip.AddrPort{}, netip.MustParseAddrPort("127.0.0.1:1"), SocketOptions{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("DialTCP: %v", err)
	}
}

func option32(t *testing.T, f *os.File, level, key int) int {
	t.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var v int
	if err := errors.Join(rc.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, key) }), err); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestListenerOptions(t *testing.T) {
	n := fresh(t)
	f, err := n.ListenTCP(netip.MustParseAddrPort("[::]:0"), SocketOptions{Mark: Mark, Transparent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, o := range []struct {
		name             string
		level, key, want int
	}{
		{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, Mark},
		{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 0},
		{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
		{"SO_ACCEPTCONN", unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1},
		{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1},
		{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1},
		{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, 0},
	} {
		if got := option32(t, f, o.level, o.key); got != o.want {
			t.Errorf("%s is %#x, want %#x", o.name, got, o.want)
		}
	}
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Control(func(fd uintptr) {
		flags, _ := unix.FcntlInt(fd, unix.F_GETFL, 0)
		cloexec, _ := unix.FcntlInt(fd, unix.F_GETFD, 0)
		if flags&unix.O_NONBLOCK == 0 || cloexec&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, descriptor flags %#x", flags, cloexec)
		}
	})
	if _, err := n.ListenTCP(netip.MustParseAddrPort("[2001:db8::1]:80"), SocketOptions{}); !errors.Is(err, unix.EADDRNOTAVAIL) || !strings.Contains(err.Error(), n.String()) {
		t.Errorf("a foreign address: %v", err)
	}
}

// listener accepts in n and echoes until the test ends.
func listener(t *testing.T, n *NS, addr string) netip.AddrPort {
	t.Helper()
	f, err := n.ListenTCP(netip.MustParseAddrPort(addr), SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = fmt.Fprintln(c, c.RemoteAddr())
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestDial(t *testing.T) {
	n := fresh(t)
	port := listener(t, n, "[::]:0").Port()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, to := range []string{"127.0.0.1", "::1", "127.9.9.9", "::ffff:127.0.0.1"} {
		c, err := n.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(netip.MustParseAddr(to), port), SocketOptions{Mark: Mark})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	// From an address that is nobody's. lo needs accept_local and a route back
	// for IPv4 answers: 127/8 has both.
	for _, from := range []string{"127.5.5.5:0", "127.5.5.5:4242"} {
		local := netip.MustParseAddrPort(from)
		c, err := n.DialTCP(ctx, local, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), SocketOptions{Transparent: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort(); got.Addr() != local.Addr() || local.Port() != 0 && got.Port() != local.Port() {
			t.Errorf("local address %s, want %s", got, local)
		}
		if c.RemoteAddr() == nil {
			t.Error("no remote address")
		}
		c.Close()
	}
}

func TestDialErrors(t *testing.T) {
	n := fresh(t)
	ctx := context.Background()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for _, d := range []struct {
		name          string
		ctx           context.Context
		local, remote string
		want          error
	}{
		{"refused", ctx, "", "127.0.0.1:1", unix.ECONNREFUSED},
		{"no route", ctx, "", "192.0.2.1:80", unix.ENETUNREACH},
		{"foreign source without Transparent", ctx, "192.0.2.9:0", "127.0.0.1:1", unix.EADDRNOTAVAIL},
		{"ended context", ended, "", "127.0.0.1:1", context.Canceled},
	} {
		var local netip.AddrPort
		if d.local != "" {
			local = netip.MustParseAddrPort(d.local)
		}
		c, err := n.DialTCP(d.ctx, local, netip.MustParseAddrPort(d.remote), SocketOptions{})
		var op *net.OpError
		if !errors.Is(err, d.want) || !errors.As(err, &op) || !strings.Contains(err.Error(), n.String()) {
			t.Errorf("%s: %v (connection %v), want %v", d.name, err, c, d.want)
		}
	}
	for _, d := range [][2]netip.AddrPort{
		{{}, {}},
		{netip.MustParseAddrPort("[::1]:0"), netip.MustParseAddrPort("127.0.0.1:1")},
	} {
		if _, err := n.DialTCP(ctx, d[0], d[1], SocketOptions{}); err == nil {
			t.Errorf("dial from %s to %s worked", d[0], d[1])
		}
	}
}

// TestDialCancel connects to a listener whose queue is full, which never
// answers, and gives up: by deadline and by cancel with a cause.
func TestDialCancel(t *testing.T) {
	n := fresh(t)
	f, err := n.ListenTCP(netip.MustParseAddrPort("127.0.0.1:7777"), SocketOptions{Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to := netip.MustParseAddrPort("127.0.0.1:7777")
	var full bool
	for range 64 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		c, err := n.DialTCP(ctx, netip.AddrPort{}, to, SocketOptions{})
		cancel()
		if err == nil {
			defer c.Close()
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		full = true
		break
	}
	if !full {
		t.Fatal("the queue never filled")
	}
	cause := errors.New("pod is gone")
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := n.DialTCP(ctx, netip.AddrPort{}, to, SocketOptions{})
		done <- err
	}()
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Fatal(err)
	}
}

func TestListenUDPReportsTheDestination(t *testing.T) {
	n := fresh(t)
	f, err := n.ListenUDP(netip.MustParseAddrPort("[::]:0"), SocketOptions{Mark: Mark, Transparent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if option32(t, f, unix.SOL_IP, unix.IP_RECVORIGDSTADDR) != 1 || option32(t, f, unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR) != 1 {
		t.Fatal("original destination is not reported")
	}
}

func BenchmarkDo(b *testing.B) {
	n := fresh(b)
	for b.Loop() {
		if err := n.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDial against BenchmarkDialHome is what the namespace costs.
func BenchmarkDial(b *testing.B) {
	n := fresh(b)
	f, err := n.ListenTCP(netip.MustParseAddrPort("127.0.0.1:0"), SocketOptions{})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		b.Fatal(err)
	}
	to := l.Addr().(*net.TCPAddr).AddrPort()
	done := acceptAll(l)
	for b.Loop() {
		c, err := n.DialTCP(context.Background(), netip.AddrPort{}, to, SocketOptions{Mark: Mark})
		if err != nil {
			b.Fatal(err)
		}
		_ = c.SetLinger(0)
		c.Close()
	}
	l.Close()
	<-done
}

func BenchmarkDialHome(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := acceptAll(l)
	for b.Loop() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	l.Close()
	<-done
}

func acceptAll(l net.Listener) chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return done
}
