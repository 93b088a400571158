package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

const patience = 20 * time.Second

// bench is one node: the whole agent over the real kernel, with a container
// runtime, an API server and a ztunnel of the test's own.
type bench struct {
	t    testing.TB
	dir  string
	api  *apiServer
	host *netns.NS
	red  *redirect.Redirector
	cfg  Config
	zt   *ztunnel
	n    int
}

func newBench(t testing.TB) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and loads eBPF programs: needs root")
	}
	b := &bench{t: t, dir: t.TempDir(), api: newAPIServer(t), host: newNS(t)}
	pins := filepath.Join(b.dir, "bpf")
	if err := os.Mkdir(pins, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", pins, "bpf", 0, ""); err != nil {
		t.Skipf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(pins, 0); err != nil {
			t.Error(err)
		}
	})
	var err error
	if b.red, err = redirect.New(redirect.Options{PinRoot: filepath.Join(pins, "ambit")}); err != nil {
		t.Fatal(err)
	}
	b.api.namespace("demo", modeAmbient)
	b.api.namespace("ambit-system", "")
	b.cfg = Config{
		Node: "node1", Rules: Rules{OwnNamespace: "ambit-system"}, HostRoot: "/",
		CRISocket: filepath.Join(b.dir, "no-runtime"), PluginSocket: filepath.Join(b.dir, "cni.sock"),
		ZDSSocket: filepath.Join(b.dir, "zds.sock"), Intent: filepath.Join(b.dir, "intent"),
		AddWait: patience, DrainWait: patience, DriftEvery: time.Minute,
		Client: b.api.client(t), Redirector: b.red, Host: b.host, Logger: slog.New(slog.NewTextHandler(writer{t}, nil)),
	}
	return b
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) { w.t.Log(string(b[:len(b)-1])); return len(b), nil }

func newNS(t testing.TB) *netns.NS {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// start runs an agent until the test, or the returned function, ends it.
func (b *bench) start() (*Agent, func()) {
	b.t.Helper()
	cfg := b.cfg
	cfg.Registerer = prometheus.NewRegistry()
	a := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				b.t.Errorf("agent: %v", err)
			}
		case <-time.After(patience):
			b.t.Error("the agent does not end")
		}
	})
	b.t.Cleanup(stop)
	select {
	case <-a.Started():
	case err := <-done:
		done <- err
		b.t.Fatalf("agent: %v", err)
	case <-time.After(patience):
		b.t.Fatal("the agent does not start")
	}
	return a, stop
}

// ztunnel accepts what it is given and carries outbound connections nowhere:
// it echoes.
type ztunnel struct {
	mu   sync.Mutex
	pods map[string]*given // guarded by mu
	dels []string          // guarded by mu
	adds int               // guarded by mu
}

type given struct {
	pod   handoff.Pod
	conns []io.Closer
}

func (b *bench) ztunnel() (stop func()) {
	z := &ztunnel{pods: map[string]*given{}}
	b.zt = z
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = handoff.RunClient(ctx, handoff.ClientConfig{Path: b.cfg.ZDSSocket, Slots: true, Handler: z, Logger: slog.New(slog.DiscardHandler)})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		z.mu.Lock()
		defer z.mu.Unlock()
		for uid := range z.pods {
			z.drop(uid)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

func (z *ztunnel) Add(_ context.Context, p handoff.Pod) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.adds++
	if old := z.pods[p.UID]; old != nil {
		if old.pod.NS.ID() == p.NS.ID() {
			return p.Close()
		}
		z.drop(p.UID)
	}
	s := &given{pod: p}
	z.pods[p.UID] = s
	for _, f := range append([]*os.File{p.Listeners.Outbound, p.Listeners.Inbound}, p.Listeners.HBONE...) {
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		s.conns = append(s.conns, l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				z.mu.Lock()
				s.conns = append(s.conns, c)
				z.mu.Unlock()
				go func() { _, _ = io.Copy(c, c); c.Close() }()
			}
		}()
	}
	return nil
}

// drop cuts what there is of a pod, as ztunnel does; mu is held.
func (z *ztunnel) drop(uid string) {
	if s := z.pods[uid]; s != nil {
		delete(z.pods, uid)
		for _, c := range s.conns {
			c.Close()
		}
		s.pod.Close()
	}
}

func (z *ztunnel) Del(uid string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dels = append(z.dels, uid)
	z.drop(uid)
}

// Retire leaves connections alone.
func (z *ztunnel) Retire(uid string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	s := z.pods[uid]
	if s == nil {
		return
	}
	delete(z.pods, uid)
	for _, c := range s.conns {
		if l, ok := c.(net.Listener); ok {
			l.Close()
		}
	}
	s.pod.Close()
}

func (z *ztunnel) Keep(string)   {}
func (z *ztunnel) SnapshotDone() {}

// added is how often a pod was handed over.
func (z *ztunnel) added() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.adds
}

func (z *ztunnel) serves(uid string) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.pods[uid] != nil
}

// box is a pod's sandbox.
type box struct {
	id, path string
	ns       *netns.NS
	addr     netip.Addr
}

// sandbox makes one, as the runtime and the plugins before ours do.
func (b *bench) sandbox(id string) *box {
	b.t.Helper()
	return b.sandboxAt(id, netip.AddrFrom4([4]byte{10, 88, 0, byte(11 + b.n)}))
}

func (b *bench) sandboxAt(id string, addr netip.Addr) *box {
	b.t.Helper()
	b.n++
	x := &box{id: id, path: filepath.Join(b.dir, "netns-"+id), ns: newNS(b.t), addr: addr}
	name, gw, everywhere := fmt.Sprintf("veth%d", b.n), "10.88.0.1", "0.0.0.0/0"
	if addr.Is6() {
		gw, everywhere = "fd88::1", "::/0"
	}
	alone := func(a string) string { return netip.PrefixFrom(netip.MustParseAddr(a), addr.BitLen()).String() }
	must := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatal(err)
		}
	}
	raw, err := x.ns.File().SyscallConn()
	must(err)
	must(b.host.Do(func() error {
		var inner error
		err := raw.Control(func(fd uintptr) {
			inner = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd)})
		})
		if err != nil || inner != nil {
			return errors.Join(err, inner)
		}
		return b.device(name, gw, alone(x.addr.String()))
	}))
	must(x.ns.Do(func() error {
		if err := b.device("eth0", x.addr.String(), alone(gw)); err != nil {
			return err
		}
		_, everything, _ := net.ParseCIDR(everywhere)
		return netlink.RouteAdd(&netlink.Route{Dst: everything, Gw: net.ParseIP(gw)})
	}))
	// A mount, because that is what keeps a namespace with a name.
	must(os.WriteFile(x.path, nil, 0o600))
	must(raw.Control(func(fd uintptr) {
		err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), x.path, "", unix.MS_BIND, "")
	}))
	must(err)
	b.t.Cleanup(func() { _ = unix.Unmount(x.path, unix.MNT_DETACH) })
	return x
}

func (b *bench) device(name, addr, to string) error {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0o644)
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a := netip.MustParseAddr(addr)
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: noDAD(a)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
}

// noDAD has an IPv6 address used at once.
func noDAD(a netip.Addr) int {
	if a.Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

// pod puts one into the API, without addresses: those come with the ADD.
func (b *bench) pod(name string) *corev1.Pod { return b.annotated(name, nil) }

func (b *bench) annotated(name string, notes map[string]string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name, Annotations: notes, UID: types.UID("00000000-0000-0000-0000-00000000" + fmt.Sprintf("%04x", len(name)))},
		Spec:       corev1.PodSpec{NodeName: b.cfg.Node},
	}
	b.api.put("pods", p)
	return p
}

// call is the plugin.
func (b *bench) call(kind enroll.Kind, p *corev1.Pod, x *box) enroll.Response {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := enroll.Call(ctx, b.cfg.PluginSocket, enroll.Request{Kind: kind, ContainerID: x.id, Netns: x.path,
		Pod: enroll.Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}, IPs: []netip.Addr{x.addr}})
	if err != nil {
		b.t.Fatalf("%s: %v", kind, err)
	}
	return r
}

func (b *bench) add(p *corev1.Pod, x *box) {
	b.t.Helper()
	if r := b.call(enroll.Add, p, x); r.Outcome != enroll.Captured {
		b.t.Fatalf("ADD of %s: %+v", x.id, r)
	}
}

func (b *bench) pinned() []string {
	entries, err := os.ReadDir(filepath.Join(b.dir, "bpf", "ambit"))
	if err != nil {
		b.t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(end) {
			b.t.Fatalf("never came: %s; pins %v", what, b.pinned())
		}
	}
}

func (b *bench) note(p *corev1.Pod, key string) string {
	return b.api.annotations(p.Namespace, p.Name)[key]
}

// line is a connection that is answered line by line.
type line struct {
	net.Conn
	r *bufio.Reader
}

// talk connects from the pod; captured connections are answered by ztunnel,
// others by the host.
func (b *bench) talk(x *box, to string) *line {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := x.ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(to), netns.SocketOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return &line{c, bufio.NewReader(c)}
}

func (l *line) says(text string) error {
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := l.Write([]byte(text + "\n")); err != nil {
		return err
	}
	got, err := l.r.ReadString('\n')
	if err == nil && got != text+"\n" {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

// echo serves on the host.
func (b *bench) echo(at string) {
	b.t.Helper()
	f, err := b.host.ListenTCP(netip.MustParseAddrPort(at), netns.SocketOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
}

// TestSandboxes: ADD twice, a new sandbox before the old one's DEL, a DEL that
// comes late or for something unknown.
//
//ambit:feature cni-sandbox-again
func TestSandboxes(t *testing.T) {
	b := newBench(t)
	b.start()
	b.ztunnel()
	p := b.pod("web")
	first := b.sandbox("first")
	b.add(p, first)
	if b.note(p, annotationRedirect) != redirectionEnabled {
		t.Errorf("annotations %v", b.api.annotations("demo", "web"))
	}
	b.add(p, first)
	if got := b.pinned(); !slices.Equal(got, []string{"first"}) {
		t.Fatalf("pins %v", got)
	}
	// The API server still has the first one's address, which nobody has any more.
	p.Status.PodIPs = []corev1.PodIP{{IP: first.addr.String()}}
	b.api.put("pods", p)
	b.address(first, netlink.AddrDel)
	second := b.sandbox("second")
	b.add(p, second)
	if r := b.call(enroll.Del, p, first); r.Outcome != enroll.Done {
		t.Fatalf("%+v", r)
	}
	if got := b.pinned(); !slices.Equal(got, []string{"second"}) {
		t.Fatalf("after the late DEL of the first: pins %v", got)
	}
	if r := b.call(enroll.Check, p, second); r.Outcome != enroll.Done {
		t.Fatalf("%+v", r)
	}
	if err := b.talk(second, "192.0.2.7:80").says("captured"); err != nil {
		t.Errorf("the second sandbox is not served: %v", err)
	}
	if r := b.call(enroll.Del, p, &box{id: "nobody"}); r.Outcome != enroll.Done {
		t.Fatalf("DEL of nothing: %+v", r)
	}
	for range 2 {
		if r := b.call(enroll.Del, p, second); r.Outcome != enroll.Done {
			t.Fatalf("%+v", r)
		}
		if got := b.pinned(); len(got) != 0 {
			t.Fatalf("after DEL: pins %v", got)
		}
	}
	if b.zt.serves(string(p.UID)) {
		t.Error("ztunnel goes on serving it")
	}
	b.api.remove("demo", "web")
}

// TestAbandonedAdd: the runtime gives up while no ztunnel is there, and tries
// again with another sandbox.
func TestAbandonedAdd(t *testing.T) {
	b := newBench(t)
	b.cfg.AddWait = 500 * time.Millisecond
	b.start()
	p := b.pod("web")
	first := b.sandbox("first")
	if r := b.call(enroll.Add, p, first); r.Outcome != enroll.Refused {
		t.Fatalf("without a ztunnel: %+v", r)
	}
	if r := b.call(enroll.Del, p, first); r.Outcome != enroll.Done {
		t.Fatalf("%+v", r)
	}
	b.eventually("nothing is left", func() bool { return len(b.pinned()) == 0 })
	second := b.sandbox("second")
	done := make(chan enroll.Response, 1)
	b.ztunnel()
	go func() { done <- b.call(enroll.Add, p, second) }()
	r := <-done
	for r.Outcome == enroll.Refused { // the ztunnel was not there in time
		r = b.call(enroll.Add, p, second)
	}
	if got := b.pinned(); r.Outcome != enroll.Captured || !slices.Equal(got, []string{"second"}) {
		t.Errorf("%+v, pins %v", r, got)
	}
}

// TestLeavingBreaksNothing: captured connections go on after the label is gone,
// new ones go direct, and the pod leaves when the last has ended. Back in the
// mesh, what was made meanwhile is older and said so.
//
//ambit:feature unenrol-drain
func TestLeavingBreaksNothing(t *testing.T) {
	b := newBench(t)
	a, _ := b.start()
	b.ztunnel()
	p, x := b.pod("web"), b.sandbox("first")
	b.echo("10.88.0.1:7")
	b.add(p, x)
	captured := b.talk(x, "192.0.2.7:80")
	if err := captured.says("one"); err != nil {
		t.Fatal(err)
	}
	b.api.namespace("demo", "")
	b.eventually("new connections go direct", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		c, err := x.ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort("192.0.2.7:80"), netns.SocketOptions{})
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if b.note(p, annotationRedirect) != "" {
		t.Error("still advertised while connections go direct")
	}
	// It waits, and is asked back.
	if err := captured.says("two"); err != nil || !b.zt.serves(string(p.UID)) {
		t.Fatalf("%v; served %v", err, b.zt.serves(string(p.UID)))
	}
	direct := b.talk(x, "10.88.0.1:7")
	if err := direct.says("direct"); err != nil {
		t.Fatal(err)
	}
	b.api.namespace("demo", modeAmbient)
	b.eventually("captured again", func() bool { return b.note(p, annotationRedirect) == redirectionEnabled })
	if err := captured.says("three"); err != nil {
		t.Error(err)
	}
	b.eventually("the connection made meanwhile is counted", func() bool { return b.note(p, annotationOlder) == "1" && a.older.total() == 1 })
	// Away for good.
	b.api.namespace("demo", "")
	b.eventually("not advertised", func() bool { return b.note(p, annotationRedirect) == "" && b.note(p, annotationOlder) == "" })
	if err := captured.says("four"); err != nil {
		t.Error(err)
	}
	if err := direct.says("direct"); err != nil {
		t.Error(err)
	}
	captured.Close()
	b.eventually("the pod has left", func() bool { return !b.zt.serves(string(p.UID)) && len(b.pinned()) == 0 })
	if err := direct.says("direct"); err != nil {
		t.Error(err)
	}
}
