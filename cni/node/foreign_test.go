package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/netns"
)

// first is what a ztunnel says about itself on a new connection.
func (l *line) first(t testing.TB) string {
	t.Helper()
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	s, err := l.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(s, "\n")
}

// into connects to the pod from the node's namespace. Nothing of the agent's
// tells that from a client elsewhere: the pod has no probes.
func (b *bench) into(x *box, port uint16) *line {
	b.t.Helper()
	return b.talk(&box{ns: b.host}, netip.AddrPortFrom(x.addr, port).String())
}

// app echoes in a pod, under the peer's address as it sees it.
func (b *bench) app(x *box, port uint16) {
	b.t.Helper()
	host := b.host
	b.host = x.ns
	b.echo(netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
	b.host = host
}

// servedBy waits until new connections of the pod are a ztunnel's.
func (b *bench) servedBy(x *box, name string) {
	b.t.Helper()
	b.eventually("served by "+name, func() bool {
		return b.tries(x) == name+" outbound 10.88.0.1:7"
	})
}

// tries dials and gives up soon: a ztunnel that has just been killed may have
// left a SYN to its next transmission.
func (b *bench) tries(x *box) string { return b.triesAt(x, "10.88.0.1:7") }

func (b *bench) triesAt(x *box, to string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	c, err := x.ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(to), netns.SocketOptions{})
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	buf := make([]byte, 100)
	n, _ := c.Read(buf)
	return strings.TrimSuffix(string(buf[:n]), "\n")
}

// ports are those on which the proxy listens in a pod, with how many sockets.
func ports15(t testing.TB, x *box) string {
	t.Helper()
	all, err := x.ns.Listeners()
	if err != nil {
		t.Fatal(err)
	}
	n := map[uint16]int{}
	for _, s := range all {
		if s.IsProxy() {
			n[s.Local.Port()]++
		}
	}
	return fmt.Sprint(n)
}

// TestForeignZtunnel: a ztunnel that is not ours makes its own listeners. They
// alone get the pod's traffic, in both directions and with its destinations;
// nobody else listens; a process of the pod that shares a port gets nothing that
// the pod dials. Restarts with and without overlap, and a kill, lose no pod.
//
//ambit:feature dialect-foreign-ztunnel dialect-foreign-restart dialect-foreign-squatter
func TestForeignZtunnel(t *testing.T) {
	b := newBench(t)
	b.cfg.DNS = true
	_, stop := b.start()
	one := b.foreignZtunnel("one")
	p, x := b.pod("web"), b.sandbox("first")
	b.echo("10.88.0.1:7")
	b.app(x, 8080)
	b.add(p, x)
	if got, want := ports15(t, x), "map[15001:1 15006:1 15008:1]"; got != want {
		t.Errorf("the proxy listens on %s, want %s: nobody listens twice, and not for DNS", got, want)
	}
	if _, err := listenersOf(os.Getpid(), x.ns); err == nil {
		t.Error("the agent has listeners of its own")
	}
	open := b.talk(x, "10.88.0.1:7")
	if got := open.first(t); got != "one outbound 10.88.0.1:7" {
		t.Errorf("outbound: %q", got)
	}
	if err := open.says("hello"); err != nil {
		t.Error(err)
	}
	if got := b.talk(x, "192.0.2.7:80").first(t); got != "one outbound 192.0.2.7:80" {
		t.Errorf("an address that nobody has: %q", got)
	}
	in := b.into(x, 8080)
	if got, want := in.first(t), "one inbound "+x.addr.String()+":8080"; got != want {
		t.Errorf("inbound: %q, want %q", got, want)
	}
	if err := in.says("hello"); err != nil {
		t.Error(err)
	}
	if got, want := b.into(x, 15008).first(t), "one hbone "+x.addr.String(); got != want {
		t.Errorf("HBONE: %q, want %q", got, want)
	}
	if v, err := os.ReadFile("/proc/sys/net/ipv4/tcp_migrate_req"); err == nil {
		var there []byte
		if err := x.ns.Do(func() (err error) { there, err = os.ReadFile("/proc/sys/net/ipv4/tcp_migrate_req"); return err }); err != nil || string(there) != "1\n" {
			t.Errorf("tcp_migrate_req in the pod is %q, %v; here it is %q", there, err, v)
		}
	}

	// A process of the pod with ztunnel's user shares its port.
	squat := b.squat(x, foreignOutbound)
	for range 30 {
		if got := b.talk(x, "10.88.0.1:7").first(t); got != "one outbound 10.88.0.1:7" {
			t.Fatalf("taken by another process: %q", got)
		}
	}
	squat.Close()

	// An update with overlap: new connections are the successor's, open ones go on.
	two := b.foreignZtunnel("two")
	b.servedBy(x, "two")
	if err := one.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	one.says(t, "draining")
	for range 30 {
		if got := b.talk(x, "10.88.0.1:7").first(t); got != "two outbound 10.88.0.1:7" {
			t.Fatalf("during the update: %q", got)
		}
		if got := b.into(x, 8080).first(t); !strings.HasPrefix(got, "two inbound ") {
			t.Fatalf("during the update: %q", got)
		}
	}
	if err := open.says("through the old one"); err != nil {
		t.Error(err)
	}
	open.Close()
	in.Close()

	// Killed with nobody else: connections wait, none goes past.
	two.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := x.ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort("10.88.0.1:7"), netns.SocketOptions{}); err == nil {
		c.Close()
		t.Error("a connection went past capture while no ztunnel was there")
	}
	late := make(chan *line, 1)
	go func() { late <- b.talk(x, "10.88.0.1:7") }() // its SYN is sent again
	three := b.foreignZtunnel("three")
	if got := (<-late).first(t); got != "three outbound 10.88.0.1:7" {
		t.Errorf("a connection that waited: %q", got)
	}

	// The newest dies while the one before is still there.
	four := b.foreignZtunnel("four")
	b.servedBy(x, "four")
	four.kill()
	b.servedBy(x, "three")

	// Another agent finds everything as it was, and connections go on.
	open = b.talk(x, "10.88.0.1:7")
	open.first(t)
	stop()
	if err := open.says("without an agent"); err != nil {
		t.Error(err)
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: x.addr.String()}}
	b.api.put("pods", p)
	kind := "io.containerd.runc.v2"
	r := &runtime{uid: string(p.UID), id: x.id, netns: x.path}
	r.kind.Store(&kind)
	b.runtime(r)
	b.start()
	three.says(t, "ready")
	if err := open.says("with another agent"); err != nil {
		t.Error(err)
	}
	if got := b.talk(x, "10.88.0.1:7").first(t); got != "three outbound 10.88.0.1:7" {
		t.Errorf("after the agent's restart: %q", got)
	}
	three.kill()
	b.foreignZtunnel("five")
	b.servedBy(x, "five")
	if got, want := ports15(t, x), "map[15001:1 15006:1 15008:1]"; got != want {
		t.Errorf("after the agent's restart the proxy listens on %s, want %s", got, want)
	}
	if r := b.call("check", p, x); r.Outcome != "done" {
		t.Errorf("%+v", r)
	}
}

// squat joins the group of a port as a process of the pod can that has the
// user of ztunnel, and answers nothing.
func (b *bench) squat(x *box, port int) *os.File {
	b.t.Helper()
	fd := -1
	err := x.ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
			return err
		}
		return unix.Listen(fd, 128)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "squatter")
	b.t.Cleanup(func() { f.Close() })
	return f
}

// TestChangeOfDialect: pods that a ztunnel of ours serves go over to one that is
// not, and back, while both run. Open connections live through both.
//
//ambit:feature dialect-change
func TestChangeOfDialect(t *testing.T) {
	b := newBench(t)
	b.cfg.DNS = true
	b.start()
	stopFirst := b.ztunnel()
	p, x := b.pod("web"), b.sandbox("first")
	b.echo("10.88.0.1:7")
	b.add(p, x)
	ours := b.talk(x, "192.0.2.7:80") // our stand-in echoes
	if err := ours.says("ours"); err != nil {
		t.Fatal(err)
	}
	b.foreignZtunnel("theirs")
	b.servedBy(x, "theirs")
	if got, want := ports15(t, x), "map[15001:1 15006:1 15008:1]"; got != want {
		t.Errorf("the proxy listens on %s, want %s", got, want)
	}
	theirs := b.talk(x, "10.88.0.1:7")
	if got := theirs.first(t); got != "theirs outbound 10.88.0.1:7" {
		t.Errorf("%q", got)
	}
	for _, l := range []*line{ours, theirs} {
		if err := l.says("both"); err != nil {
			t.Error(err)
		}
	}
	if b.note(p, annotationRedirect) != redirectionEnabled {
		t.Errorf("annotations %v", b.api.annotations("demo", "web"))
	}

	// Back to ours, which is told to by being started anew; theirs still runs.
	stopFirst()
	b.ztunnel()
	b.eventually("served by ours", func() bool { return b.zt.serves(string(p.UID)) })
	again := b.talk(x, "192.0.2.7:80")
	if err := again.says("ours again"); err != nil {
		t.Error(err)
	}
	if err := theirs.says("still theirs"); err != nil {
		t.Error(err)
	}
	if r := b.call("check", p, x); r.Outcome != "done" {
		t.Errorf("%+v", r)
	}
	b.call("del", p, x)
	b.eventually("nothing is left", func() bool { return len(b.pinned()) == 0 })
}

// TestForeignZtunnelCannotBind: an application has a port that the ztunnel
// needs. The pod is not served and says why; traffic waits.
//
//ambit:feature dialect-foreign-refused
func TestForeignZtunnelCannotBind(t *testing.T) {
	b := newBench(t)
	b.cfg.AddWait = 500 * time.Millisecond
	b.start()
	b.foreignZtunnel("one")
	p, x := b.pod("web"), b.sandbox("first")
	f, err := x.ns.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), foreignInbound), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b.echo("10.88.0.1:7")
	if r := b.call("add", p, x); r.Outcome != "refused" {
		t.Fatalf("%+v", r)
	}
	if got := b.note(p, annotationReason); !strings.Contains(got, "failure to start proxy : ") || !strings.Contains(got, "in use") {
		t.Errorf("reason %q", got)
	}
	if got := b.tries(x); got != "" {
		t.Errorf("traffic of a pod that is not served got through: %q", got)
	}
	f.Close()
	b.eventually("captured when the port is free", func() bool { return b.note(p, annotationRedirect) == redirectionEnabled })
}

// What it costs to find a pod's listeners in a ztunnel with many descriptors.
func BenchmarkListenersOf(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("makes network namespaces: needs root")
	}
	const others = 10000
	for range others {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Skip(err)
		}
		b.Cleanup(func() { unix.Close(fd) })
	}
	ns := newNS(b)
	for _, port := range []uint16{foreignOutbound, foreignInbound, 15008} {
		f, err := ns.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.SocketOptions{Mark: netns.Mark})
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
	}
	for b.Loop() {
		l, err := listenersOf(os.Getpid(), ns)
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}
