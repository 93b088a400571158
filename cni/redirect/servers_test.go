package redirect

import (
	"bufio"
	"context"
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

	"github.com/ambitmesh/ambit/cni/netns"
)

// patience is how long anything may take, on a machine that is slow and busy;
// unanswered is how long something is waited for that must not come.
const (
	patience   = 30 * time.Second
	unanswered = 500 * time.Millisecond
)

// captured is a pod with capture on and a small proxy behind its listeners.
type captured struct {
	*topology
	r     *Redirector
	cfg   Config
	proxy *server
}

type change func(*Options, *Config)

func withClsact(o *Options, _ *Config) { o.Clsact = true }

func newCaptured(t testing.TB, changes ...change) *captured {
	t.Helper()
	c := prepareCaptured(t, changes...)
	c.proxy = startProxy(t, c.pod, c.cfg.Listeners)
	c.set(t)
	return c
}

// prepareCaptured has listeners, but nobody accepts and nothing is captured yet.
func prepareCaptured(t testing.TB, changes ...change) *captured {
	t.Helper()
	n := newTopology(t)
	opt := Options{PinRoot: pinRoot(t)}
	cfg := Config{ContainerID: "c0ffee", UID: "uid-1", NS: n.pod, Addrs: []netip.Addr{podAddr4, podAddr6}}
	for _, change := range changes {
		change(&opt, &cfg)
	}
	r, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listeners, err = Listen(n.pod, cfg.Addrs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cfg.Listeners.Close() })
	return &captured{topology: n, r: r, cfg: cfg}
}

func (c *captured) set(t testing.TB) {
	t.Helper()
	if err := c.r.Set(c.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.r.Clear(c.cfg.ContainerID, c.pod); err != nil {
			t.Errorf("clear: %v", err)
		}
	})
}

func (c *captured) stat(t testing.TB, name string) uint64 {
	t.Helper()
	s, err := c.r.Stats(c.cfg.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	n, ok := s[name]
	if !ok {
		t.Fatalf("no counter %q in %v", name, s)
	}
	return n
}

// variants runs a test with both ways of attaching.
func variants(t *testing.T, fn func(t *testing.T, changes ...change)) {
	t.Run("tcx", func(t *testing.T) { fn(t) })
	t.Run("clsact", func(t *testing.T) { fn(t, withClsact) })
}

// server accepts on some listeners until the test ends.
type server struct {
	mu      sync.Mutex
	open    map[io.Closer]bool // guarded by mu; nil once stopped
	running sync.WaitGroup
}

func newServer(t testing.TB) *server {
	s := &server{open: map[io.Closer]bool{}}
	t.Cleanup(s.stop)
	return s
}

func (s *server) keep(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		_ = c.Close()
		return false
	}
	s.open[c] = true
	return true
}

func (s *server) drop(c io.Closer) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (s *server) stop() {
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.open = nil
	s.mu.Unlock()
	s.running.Wait()
}

func (s *server) serve(t testing.TB, f *os.File, handle func(*net.TCPConn)) {
	t.Helper()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	s.keep(l)
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if !s.keep(c) {
				return
			}
			s.running.Add(1)
			go func() {
				defer s.running.Done()
				defer s.drop(c)
				handle(c.(*net.TCPConn))
			}()
		}
	}()
}

// greet says who took the connection and what addresses it saw.
func greet(c net.Conn, who string) {
	fmt.Fprintf(c, "%s %s>%s\n", who, plain(c.RemoteAddr()), plain(c.LocalAddr()))
}

func plain(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func echo(who string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		greet(c, who)
		_, _ = io.Copy(c, c)
	}
}

// startProxy answers outbound and HBONE connections itself, and carries inbound
// ones to the application under the client's address.
func startProxy(t testing.TB, ns *netns.NS, l *Listeners) *server {
	t.Helper()
	s := newServer(t)
	s.serve(t, l.Outbound, echo("outbound"))
	s.serve(t, l.Inbound, func(c *net.TCPConn) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		from := netip.AddrPortFrom(plain(c.RemoteAddr()).Addr(), 0)
		app, err := ns.DialTCP(ctx, from, plain(c.LocalAddr()), netns.SocketOptions{Mark: netns.Mark, Transparent: true})
		if err != nil {
			fmt.Fprintf(c, "inbound %s>%s failed\n", plain(c.RemoteAddr()), plain(c.LocalAddr()))
			return
		}
		if !s.keep(app) {
			return
		}
		defer s.drop(app)
		greet(c, "inbound")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(app, c)
			_ = app.CloseWrite()
		}()
		_, _ = io.Copy(c, app)
		_ = c.CloseWrite()
		<-done
	})
	for _, f := range l.HBONE {
		s.serve(t, f, echo("hbone"))
	}
	return s
}

// startApp listens as an application would, without mark or any option.
func startApp(t testing.TB, ns *netns.NS, who string, at netip.AddrPort) *server {
	t.Helper()
	f, err := ns.ListenTCP(at, netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := newServer(t)
	s.serve(t, f, echo(who))
	return s
}

// client is an open connection.
type client struct {
	*net.TCPConn
	r *bufio.Reader
}

func dialFor(t testing.TB, ns *netns.NS, local, remote netip.AddrPort, o netns.SocketOptions, d time.Duration) (*client, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	c, err := ns.DialTCP(ctx, local, remote, o)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	return &client{c, bufio.NewReader(c)}, nil
}

func dial(t testing.TB, ns *netns.NS, remote netip.AddrPort) *client {
	t.Helper()
	c, err := dialFor(t, ns, netip.AddrPort{}, remote, netns.SocketOptions{}, patience)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) line(t testing.TB) string {
	t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatalf("read from %s: %v", c.RemoteAddr(), err)
	}
	return strings.TrimSuffix(s, "\n")
}

// expect reads a greeting: who took the connection, from and to which address.
func (c *client) expect(t testing.TB, who string, from netip.Addr, to netip.AddrPort) {
	t.Helper()
	got := c.line(t)
	kind, pair, _ := strings.Cut(got, " ")
	src, dst, _ := strings.Cut(pair, ">")
	srcPort, err := netip.ParseAddrPort(src)
	if kind != who || err != nil || srcPort.Addr() != from || dst != to.String() {
		t.Fatalf("greeting %q, want %s %s:*>%s", got, who, from, to)
	}
}

// ping checks that bytes still come back.
func (c *client) ping(t testing.TB, text string) {
	t.Helper()
	if _, err := fmt.Fprintln(c, text); err != nil {
		t.Fatalf("write to %s: %v", c.RemoteAddr(), err)
	}
	if got := c.line(t); got != text {
		t.Fatalf("echo %q, want %q", got, text)
	}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// eventually waits for what another processor's softirq still has to do.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}
