package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambitmesh/ambit/cni/handoff/zds"
	"github.com/ambitmesh/ambit/cni/netns"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// openFDs counts this process's descriptors, the reading one apart.
func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// noLeak fails the test when descriptors are open at its end that were not at
// its begin. Call it first: clean-ups run last to first.
func noLeak(t *testing.T) {
	t.Helper()
	// The first use of the poller opens descriptors that stay.
	if l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "x")}); err == nil {
		l.Close()
	}
	before := openFDs(t)
	t.Cleanup(func() {
		eventually(t, "descriptors are closed", func() bool { return openFDs(t) <= before })
	})
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(5 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

// newPod makes a pod with the test's own namespace and n HBONE sockets.
func newPod(t *testing.T, uid string, hbone int) Pod {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	p := Pod{UID: uid, Name: "name-" + uid, Namespace: "space", ServiceAccount: "account", NS: ns}
	if hbone > 0 {
		p.Listeners = &Listeners{Outbound: listener(t), Inbound: listener(t), DNSTCP: listener(t), DNSUDP: listener(t)}
		for range hbone {
			p.Listeners.HBONE = append(p.Listeners.HBONE, listener(t))
		}
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func listener(t *testing.T) *os.File {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// agent runs a server for the time of the test.
func agent(t *testing.T, cfg ServerConfig) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "z.sock")
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	if cfg.Snapshot == nil {
		cfg.Snapshot = func() []Pod { return nil }
	}
	s, err := Listen(path, cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return s.Run(ctx) })
	return s, path
}

// run runs f until the test ends and waits for it.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// recorder is a ztunnel that remembers what it was told.
type recorder struct {
	mu     sync.Mutex
	events []string       // guarded by mu
	pods   map[string]Pod // guarded by mu
	refuse error
	block  chan struct{}
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.events, " ")
}

func (r *recorder) Add(ctx context.Context, p Pod) error {
	if r.block != nil {
		select {
		case <-r.block:
		case <-ctx.Done():
		}
	}
	n := 0
	if p.Listeners != nil {
		n = len(p.Listeners.sockets())
	}
	r.note("add:%s/%d", p.UID, n)
	if r.refuse != nil {
		p.Close()
		return r.refuse
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.pods[p.UID]; ok {
		old.Close()
	}
	if r.pods == nil {
		r.pods = make(map[string]Pod)
	}
	r.pods[p.UID] = p
	return nil
}

func (r *recorder) Del(uid string) {
	r.note("del:%s", uid)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods[uid].Close()
	delete(r.pods, uid)
}

func (r *recorder) Retire(uid string) { r.note("retire:%s", uid) }
func (r *recorder) Keep(uid string)   { r.note("keep:%s", uid) }
func (r *recorder) SnapshotDone()     { r.note("done") }

func (r *recorder) closeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		p.Close()
	}
	r.pods = nil
}

// ztunnel runs a client for the time of the test.
func ztunnel(t *testing.T, path string, r *recorder, slots bool) *readiness {
	t.Helper()
	ready := new(readiness)
	t.Cleanup(r.closeAll)
	run(t, func(ctx context.Context) error {
		return RunClient(ctx, ClientConfig{Path: path, Version: "v1", Slots: slots, Handler: r, Ready: ready.set, Logger: quiet()})
	})
	return ready
}

type readiness struct {
	mu  sync.Mutex
	now bool // guarded by mu
}

func (r *readiness) set(now bool) { r.mu.Lock(); defer r.mu.Unlock(); r.now = now }
func (r *readiness) get() bool    { r.mu.Lock(); defer r.mu.Unlock(); return r.now }

//ambit:feature zds-wire
func TestSnapshotThenLive(t *testing.T) {
	noLeak(t)
	one, two := newPod(t, "one", 2), newPod(t, "two", 1)
	two.FromStart = true
	var synced []string
	s, path := agent(t, ServerConfig{
		Snapshot: func() []Pod { return []Pod{one} },
		Keep:     func() []string { return []string{"old"} },
		Synced:   func(uids []string) { synced = uids },
	})
	if err := s.Add(t.Context(), two); !errors.Is(err, ErrNoClient) {
		t.Fatalf("Add without a ztunnel: %v", err)
	}
	r := new(recorder)
	ready := ztunnel(t, path, r, true)
	eventually(t, "ready", ready.get)
	eventually(t, "synced", func() bool { c := s.Clients(); return len(c) == 1 && c[0].Synced })
	if err := s.Add(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	if err := s.Del(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if got, want := r.log(), "add:one/6 keep:old done add:two/5 del:one"; got != want {
		t.Errorf("ztunnel heard %q, want %q", got, want)
	}
	if fmt.Sprint(synced) != "[one]" {
		t.Errorf("synced %v", synced)
	}
	c := s.Clients()[0]
	if c.Foreign || c.Version != "v1" || c.PID != os.Getpid() {
		t.Errorf("client %+v", c)
	}
	// What arrived is what was sent.
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.pods["two"]
	if one := r.pods["one"]; one.FromStart == got.FromStart {
		t.Errorf("captured from the start: %v, the other %v", got.FromStart, one.FromStart)
	}
	if got.String() != two.String() || got.FromStart != two.FromStart || got.ServiceAccount != "account" || got.NS.ID() != two.NS.ID() {
		t.Errorf("got pod %+v", got)
	}
	if a, b := address(t, got.Listeners.Inbound), address(t, two.Listeners.Inbound); a != b {
		t.Errorf("inbound socket is %s, want %s", a, b)
	}
	if a, b := address(t, got.Listeners.HBONE[0]), address(t, two.Listeners.HBONE[0]); a != b {
		t.Errorf("HBONE socket is %s, want %s", a, b)
	}
}

func address(t *testing.T, f *os.File) string {
	t.Helper()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

//ambit:feature dialect-foreign-ztunnel
func TestPortDialect(t *testing.T) {
	noLeak(t)
	s, path := agent(t, ServerConfig{})
	r := new(recorder)
	eventually(t, "ready", ztunnel(t, path, r, false).get)
	if err := s.Add(t.Context(), bare(t, "one")); err != nil {
		t.Fatal(err)
	}
	if got, want := r.log(), "done add:one/0"; got != want {
		t.Errorf("ztunnel heard %q, want %q: a ztunnel that did not ask gets the namespace alone", got, want)
	}
}

// bare is a pod for a ztunnel that makes its own listeners.
func bare(t *testing.T, uid string) Pod {
	p := newPod(t, uid, 1)
	p.Listeners.Close()
	p.Listeners = nil
	return p
}

// A pod of one form never gets to a ztunnel of the other dialect, neither in
// the snapshot, where one that it served before is kept, nor later.
//
//ambit:feature dialect-foreign-ztunnel
func TestDialectsDoNotMix(t *testing.T) {
	for _, slots := range []bool{true, false} {
		t.Run(fmt.Sprintf("slots %v", slots), func(t *testing.T) {
			noLeak(t)
			with, without := newPod(t, "with", 1), bare(t, "without")
			s, path := agent(t, ServerConfig{Snapshot: func() []Pod { return []Pod{with, without} }})
			r := new(recorder)
			eventually(t, "ready", ztunnel(t, path, r, slots).get)
			unfit, want := with, "keep:with add:without/0 done"
			if slots {
				unfit, want = without, "add:with/5 keep:without done"
			}
			if err := s.Add(t.Context(), unfit); !errors.Is(err, ErrNoClient) {
				t.Errorf("Add of the other form: %v", err)
			}
			if got := r.log(); got != want {
				t.Errorf("ztunnel heard %q, want %q", got, want)
			}
		})
	}
}

// After each Ack of a ztunnel that makes its own listeners the agent is told,
// and when it cannot use them the pod is pending: the conversation goes on.
//
//ambit:feature dialect-foreign-ztunnel
func TestListenersOfOthersAreLookedFor(t *testing.T) {
	noLeak(t)
	one := bare(t, "one")
	var looked []string
	broken := errors.New("no listener on 15006")
	var synced []string
	s, path := agent(t, ServerConfig{
		Snapshot: func() []Pod { return []Pod{one} },
		Acked: func(c Client, p Pod) error {
			looked = append(looked, p.UID)
			if !c.Foreign || c.PID != os.Getpid() {
				t.Errorf("client %+v", c)
			}
			if len(looked) < 3 {
				return broken
			}
			return nil
		},
		Synced: func(uids []string) { synced = uids },
	})
	r := new(recorder)
	eventually(t, "ready", ztunnel(t, path, r, false).get)
	eventually(t, "synced", func() bool { c := s.Clients(); return len(c) == 1 && c[0].Synced })
	if err := s.Add(t.Context(), one); !errors.Is(err, broken) {
		t.Errorf("Add: %v", err)
	}
	if len(synced) > 0 {
		t.Errorf("%v count as served", synced)
	}
	if err := s.Add(t.Context(), one); err != nil {
		t.Errorf("Add again: %v", err)
	}
	if len(s.Clients()) != 1 || fmt.Sprint(looked) != "[one one one]" {
		t.Errorf("looked for %v with %d ztunnels", looked, len(s.Clients()))
	}
}

// Retire reaches those who hold the agent's listeners, in a message that a
// ztunnel without our extension takes for a Del.
//
//ambit:feature dialect-change
func TestRetire(t *testing.T) {
	noLeak(t)
	s, path := agent(t, ServerConfig{})
	ours, theirs := new(recorder), new(recorder)
	ztunnel(t, path, ours, true)
	eventually(t, "ours", func() bool { return len(s.Clients()) == 1 && s.Clients()[0].Synced })
	ztunnel(t, path, theirs, false)
	eventually(t, "theirs", func() bool { return len(s.Clients()) == 2 && s.Clients()[1].Synced })
	if err := s.Retire(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if a, b := ours.log(), theirs.log(); a != "done retire:one" || b != "done" {
		t.Errorf("ours heard %q, theirs %q", a, b)
	}
	b, err := encodeRetire("one")
	if err != nil {
		t.Fatal(err)
	}
	plain := new(zds.WorkloadRequest)
	if err := proto.Unmarshal(b, plain); err != nil {
		t.Fatal(err)
	}
	if del, ok := plain.Payload.(*zds.WorkloadRequest_Del); !ok || del.Del.Uid != "one" {
		t.Errorf("others read %v", plain)
	}
}

//ambit:feature zds-orders
func TestRefusedPodIsPending(t *testing.T) {
	noLeak(t)
	s, path := agent(t, ServerConfig{})
	r := &recorder{refuse: errors.New("no memory")}
	eventually(t, "ready", ztunnel(t, path, r, true).get)
	for range 3 {
		err := s.Add(t.Context(), newPod(t, "one", 1))
		var refused *AckError
		if !errors.As(err, &refused) || refused.Text != "failure to start proxy : no memory" {
			t.Fatalf("err = %v", err)
		}
	}
	if len(s.Clients()) != 1 {
		t.Error("the connection did not survive a refused pod")
	}
}

func TestNewestGetsAddsAllGetDels(t *testing.T) {
	noLeak(t)
	s, path := agent(t, ServerConfig{})
	old, young := new(recorder), new(recorder)
	ztunnel(t, path, old, true)
	eventually(t, "the first", func() bool { return len(s.Clients()) == 1 && s.Clients()[0].Synced })
	ztunnel(t, path, young, true)
	eventually(t, "the second", func() bool { return len(s.Clients()) == 2 && s.Clients()[1].Synced })
	if err := s.Add(t.Context(), newPod(t, "one", 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Del(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if got := old.log(); got != "done del:one" {
		t.Errorf("the older one heard %q", got)
	}
	if got := young.log(); got != "done add:one/5 del:one" {
		t.Errorf("the newer one heard %q", got)
	}
}

func TestClosedPodIsPassedOver(t *testing.T) {
	noLeak(t)
	gone, here := newPod(t, "gone", 1), newPod(t, "here", 1)
	gone.Close()
	_, path := agent(t, ServerConfig{Snapshot: func() []Pod { return []Pod{gone, here} }})
	r := new(recorder)
	eventually(t, "ready", ztunnel(t, path, r, true).get)
	if got, want := r.log(), "add:here/5 done"; got != want {
		t.Errorf("ztunnel heard %q, want %q", got, want)
	}
}

//ambit:feature security-sockets
func TestSocketModeAndPeer(t *testing.T) {
	noLeak(t)
	refused := make(chan unix.Ucred, 1)
	_, path := agent(t, ServerConfig{CheckPeer: func(c unix.Ucred) error {
		select {
		case refused <- c:
		default:
		}
		return errors.New("not a ztunnel")
	}})
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", st.Mode(), err)
	}
	c := dial(t, path)
	if cred := <-refused; int(cred.Pid) != os.Getpid() {
		t.Errorf("credentials %+v, want pid %d", cred, os.Getpid())
	}
	// It says hello like a ztunnel, and gets no word for it. With the hello
	// unread the end is a reset.
	hello, err := hello{dialect: dialectPort}.encode()
	if err != nil {
		t.Fatal(err)
	}
	_ = writeDatagram(c, hello, nil)
	if n, err := c.Read(make([]byte, 1000)); n > 0 || !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read %d bytes, %v; want an end", n, err)
	}
}

// TestStaleSocketIsReplaced: an agent that was killed leaves its socket file.
func TestStaleSocketIsReplaced(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "z.sock")
	for range 2 {
		s, err := Listen(path, ServerConfig{Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("closing an agent took the socket of its successor away")
	}
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestReconnectAfterAgentRestart(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "z.sock")
	one := newPod(t, "one", 1)
	r := new(recorder)
	ready := ztunnel(t, path, r, true)
	for i := range 2 {
		s, err := Listen(path, ServerConfig{Logger: quiet(), Snapshot: func() []Pod { return []Pod{one} }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		eventually(t, fmt.Sprintf("ready with agent %d", i), ready.get)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		eventually(t, "not ready without an agent", func() bool { return !ready.get() })
	}
	if got, want := r.log(), "add:one/5 done add:one/5 done"; got != want {
		t.Errorf("ztunnel heard %q, want %q", got, want)
	}
}

// TestAckDeadline: a ztunnel that hangs loses its connection, and the caller
// is told, within the deadline.
func TestAckDeadline(t *testing.T) {
	noLeak(t)
	s, path := agent(t, ServerConfig{Deadline: 50 * time.Millisecond})
	r := &recorder{block: make(chan struct{})}
	eventually(t, "ready", ztunnel(t, path, r, true).get)
	err := s.Add(t.Context(), newPod(t, "one", 1))
	close(r.block)
	if err == nil || !strings.Contains(err.Error(), "no Ack within 50ms") {
		t.Fatalf("err = %v", err)
	}
}

// TestEndingAgentTakesNoPodAway: an agent closes what it has of its pods when it
// ends. A ztunnel that connects in that moment must not hear that there are none.
func TestEndingAgentTakesNoPodAway(t *testing.T) {
	for range 100 {
		ctx, end := context.WithCancel(t.Context())
		path := filepath.Join(t.TempDir(), "z.sock")
		server, err := Listen(path, ServerConfig{Logger: quiet(), Snapshot: func() []Pod {
			end()
			return []Pod{{UID: "closed", Listeners: &Listeners{}}}
		}})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); server.Run(ctx) }()
		r := &recorder{}
		client, stop := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			RunClient(client, ClientConfig{Path: path, Version: "test", Slots: true, Handler: r, Logger: quiet()})
		}()
		<-done
		stop()
		<-gone
		if got := r.log(); strings.Contains(got, "done") {
			t.Fatalf("the ztunnel heard %q", got)
		}
	}
}
