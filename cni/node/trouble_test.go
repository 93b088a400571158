package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/netns"
)

// lines collects what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
	t    testing.TB
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Log(strings.TrimSpace(string(b)))
	return l.text.Write(b)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

func (b *bench) record() *lines {
	l := &lines{t: b.t}
	b.cfg.Logger = slog.New(slog.NewTextHandler(l, nil))
	return l
}

// TestFullDisk: pods go on being captured, the error is said once and names the
// file, and the file is written when there is room again.
func TestFullDisk(t *testing.T) {
	b := newBench(t)
	log := b.record()
	disk := filepath.Join(b.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8k"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 8<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	b.cfg.Intent = filepath.Join(disk, "intent")
	b.start()
	b.ztunnel()
	for _, name := range []string{"a", "bb", "ccc"} {
		b.add(b.pod(name), b.sandbox(name))
	}
	if n := log.count("cannot write the intent file"); n != 1 {
		t.Errorf("said %d times", n)
	}
	if log.count(b.cfg.Intent) == 0 || log.count("no space left on device") == 0 {
		t.Error("neither the file nor the reason is named")
	}
	if left, err := os.ReadDir(disk); err != nil || len(left) != 1 {
		t.Errorf("half-made files are left: %v, %v", left, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	b.eventually("the file is written", func() bool {
		in, err := enroll.ReadIntent(b.cfg.Intent)
		return err == nil && len(in.Pods) == 3
	})
}

// TestTruncatedIntent: the agent says so and starts from the API server.
func TestTruncatedIntent(t *testing.T) {
	b := newBench(t)
	whole, err := enroll.EncodeIntent(enroll.Intent{Node: "node1", Pods: []enroll.IntendedPod{{UID: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.cfg.Intent, whole[:len(whole)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	log := b.record()
	b.start()
	b.ztunnel()
	if log.count("intent file is damaged") != 1 || log.count("checksum does not match") != 1 {
		t.Error("it is not said what is wrong with which file")
	}
	b.add(b.pod("web"), b.sandbox("first"))
	if in, err := enroll.ReadIntent(b.cfg.Intent); err != nil || len(in.Pods) != 1 || in.Pods[0].ContainerID != "first" {
		t.Errorf("%+v, %v", in, err)
	}
}

// TestTwoAgents: a second one starts while the first still runs. The first
// keeps ztunnel until it ends; nothing captured is disturbed, and the second
// then has everything.
func TestTwoAgents(t *testing.T) {
	b := newBench(t)
	_, stopFirst := b.start()
	b.ztunnel()
	p, x := b.pod("web"), b.sandbox("first")
	b.add(p, x)
	old := b.talk(x, "192.0.2.7:80")
	if err := old.says("one"); err != nil {
		t.Fatal(err)
	}
	second, _ := b.start()
	q, y := b.pod("late"), b.sandbox("second")
	late := make(chan enroll.Response, 1)
	go func() { late <- b.call(enroll.Add, q, y) }()
	if err := old.says("two"); err != nil {
		t.Error(err)
	}
	if err := b.talk(x, "192.0.2.7:80").says("new"); err != nil {
		t.Error(err)
	}
	stopFirst()
	if r := <-late; r.Outcome != enroll.Captured {
		t.Errorf("ADD at the second agent: %+v", r)
	}
	b.eventually("the second agent has the first one's pod", func() bool {
		in, err := enroll.ReadIntent(b.cfg.Intent)
		return err == nil && len(in.Pods) == 2 && len(second.Ztunnels()) == 1 && b.note(p, annotationReason) == ""
	})
	if err := old.says("three"); err != nil {
		t.Errorf("a connection older than the second agent: %v", err)
	}
	for _, s := range []*box{x, y} {
		if err := b.talk(s, "192.0.2.7:80").says("new"); err != nil {
			t.Errorf("%s: %v", s.id, err)
		}
	}
	if got := b.pinned(); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("pins %v", got)
	}
}

// TestDrained waits by the clock.
//
//ambit:feature unenrol-bounded
func TestDrained(t *testing.T) {
	carried := netns.Socket{State: 1, Mark: netns.Mark, Inode: 1,
		Local: netip.MustParseAddrPort("192.0.2.1:80"), Remote: netip.MustParseAddrPort("10.0.0.1:4000")}
	ends := func(after time.Duration) func(*netns.NS) ([]netns.Socket, error) {
		begin := time.Now()
		return func(*netns.NS) ([]netns.Socket, error) {
			if time.Since(begin) < after {
				return []netns.Socket{carried}, nil
			}
			return nil, nil
		}
	}
	for _, c := range []struct {
		name      string
		ends      time.Duration
		left      int
		atMost    time.Duration
		atLeast   time.Duration
		cancelled bool
	}{
		{"nothing to wait for", 0, 0, time.Second, 0, false},
		{"a minute", time.Minute, 0, time.Minute + 3*time.Second, time.Minute, false},
		{"for ever", time.Hour, 1, 5*time.Minute + time.Second, 5 * time.Minute, false},
		{"wanted back", time.Hour, 1, 11 * time.Second, 10 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.cancelled {
					time.AfterFunc(10*time.Second, cancel)
				}
				begin := time.Now()
				left, err := drained(ctx, nil, 5*time.Minute, ends(c.ends))
				took := time.Since(begin)
				if left != c.left || took > c.atMost || took < c.atLeast || errors.Is(err, context.Canceled) != c.cancelled {
					t.Errorf("%d left after %s, %v", left, took, err)
				}
			})
		})
	}
}

// TestOlderIsSaidSparingly: connections that end one after the other are not
// written one after the other, but none left is.
func TestOlderIsSaidSparingly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sockets []netns.Socket
		var cookies []uint64
		for i := range uint64(60) {
			sockets = append(sockets, netns.Socket{Cookie: i + 1})
			cookies = append(cookies, i+1)
		}
		var alive atomic.Pointer[[]netns.Socket]
		alive.Store(&sockets)
		var said []int
		fail := true
		o := &older{log: slog.New(slog.DiscardHandler),
			say: func(_ context.Context, _ string, n int) error {
				if n == 0 && fail {
					fail = false
					return errors.New("the API server is away")
				}
				said = append(said, n)
				return nil
			},
			list: func(*netns.NS) ([]netns.Socket, error) { return *alive.Load(), nil },
		}
		o.track("uid", nil, cookies)
		o.heard("uid", len(cookies))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = o.run(ctx) }()
		for len(sockets) > 0 { // one ends each second
			time.Sleep(time.Second)
			rest := slices.Clone(sockets[1:])
			sockets = rest
			alive.Store(&rest)
		}
		time.Sleep(time.Minute)
		cancel()
		<-done
		if len(said) < 2 || len(said) > 4 || said[len(said)-1] != 0 || o.total() != 0 || len(o.pods) != 0 {
			t.Errorf("said %v, %d are counted in %d pods", said, o.total(), len(o.pods))
		}
	})
}
