package older

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// space is a network namespace as far as a Watch can tell.
type space struct {
	mu        sync.Mutex
	sockets   []netns.Socket // guarded by mu
	once      []netns.Socket // guarded by mu; seen by the next look only
	listening []uint16       // guarded by mu
	looks     int            // guarded by mu
	ended     []uint64       // guarded by mu; cookies
	result    error          // guarded by mu; of every attempt to end
	err       error          // guarded by mu; of every look
}

func (s *space) Connections() ([]netns.Socket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	out := slices.Concat(s.sockets, s.once)
	s.once = nil
	return out, s.err
}

func (s *space) Listeners() ([]netns.Socket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []netns.Socket
	for _, p := range s.listening {
		out = append(out, netns.Socket{Local: netip.AddrPortFrom(netip.IPv6Unspecified(), p), State: netns.Listening})
	}
	return out, nil
}

func (s *space) LocalPorts() (first, last uint16, err error) { return 32768, 60999, nil }

func (s *space) Destroy(sockets []netns.Socket) ([]error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	results := make([]error, len(sockets))
	for i, d := range sockets {
		if results[i] = s.result; results[i] != nil {
			continue
		}
		before := len(s.sockets)
		s.sockets = slices.DeleteFunc(s.sockets, func(c netns.Socket) bool { return c.Cookie == d.Cookie })
		if len(s.sockets) == before {
			results[i] = unix.ENOENT
			continue
		}
		s.ended = append(s.ended, d.Cookie)
	}
	return results, nil
}

func (s *space) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// bench is a Watch inside a bubble of synctest.
type bench struct {
	t     *testing.T
	store *mesh.Store
	reg   *prometheus.Registry
	out   *lockedBuffer
	watch *Watch
	ns    *space
	pod   *live.Pod
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) lines(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

var (
	podAddr  = netip.MustParseAddr("10.0.0.1")
	podAddr6 = netip.MustParseAddr("fd00::1")
	peerAddr = netip.MustParseAddr("10.0.0.2")
	nodeAddr = netip.MustParseAddr("10.0.0.254")

	self = &mesh.Workload{UID: "c//Pod/demo/server", Name: "server", Namespace: "demo", Node: "here", Addresses: []netip.Addr{podAddr, podAddr6}}
	peer = &mesh.Workload{UID: "c//Pod/demo/client", Name: "client", Namespace: "demo", Node: "there",
		Addresses: []netip.Addr{peerAddr, netip.MustParseAddr("fd00::2")}}

	// strict is what STRICT becomes.
	strict = &mesh.Policy{Name: "strict", Namespace: "demo", Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{NotPrincipals: []mesh.StringMatch{{Kind: mesh.Presence}}}}}}}}}
)

func run(t *testing.T, test func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, store: mesh.NewStore(), reg: prometheus.NewRegistry(), out: &lockedBuffer{},
			ns: &space{listening: []uint16{8080}}, pod: &live.Pod{UID: "u", Name: "server", Namespace: "demo"}}
		log := slog.New(slog.NewTextHandler(b.out, nil))
		b.watch = New(Config{Node: "here", Store: b.store, Registerer: b.reg, Logger: log,
			Table: live.New(live.Config{Store: b.store, Metrics: live.NewMetrics(b.reg), Logger: log})})
		b.apply(mesh.Delta{Workloads: []*mesh.Workload{self, peer}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := b.watch.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		test(b)
		cancel()
		<-done
	})
}

func (b *bench) apply(d mesh.Delta) {
	next := mesh.NewBuilder(b.store.Load())
	next.Apply(d)
	b.store.Swap(next.Build())
}

func (b *bench) add() {
	b.watch.Add(b.pod, b.ns)
	synctest.Wait()
}

// wait lets time pass, and what is due happen.
func (b *bench) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) metric(name string) float64 {
	b.t.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// want checks what was ended, and that each has one line and counts once.
func (b *bench) want(cookies ...uint64) {
	b.t.Helper()
	b.ns.mu.Lock()
	got := slices.Sorted(slices.Values(b.ns.ended))
	b.ns.mu.Unlock()
	if !slices.Equal(got, cookies) {
		b.t.Errorf("ended %v, want %v", got, cookies)
	}
	if n := b.out.lines("reason=older_denied"); n != len(cookies) {
		b.t.Errorf("%d lines, want %d", n, len(cookies))
	}
	for _, name := range []string{"ambit_connections_failed_total", "istio_tcp_connections_failed_total"} {
		if n := b.metric(name); n != float64(len(cookies)) {
			b.t.Errorf("%s is %v, want %d", name, n, len(cookies))
		}
	}
}

func in(cookie uint64, remote netip.Addr) netns.Socket {
	local := podAddr
	if remote.Is6() {
		local = podAddr6
	}
	return netns.Socket{Local: netip.AddrPortFrom(local, 8080), Remote: netip.AddrPortFrom(remote, uint16(40000+cookie)),
		State: netns.Established, Inode: 1, Cookie: cookie}
}

func out(cookie uint64) netns.Socket {
	return netns.Socket{Local: netip.AddrPortFrom(podAddr, uint16(40000+cookie)), Remote: netip.AddrPortFrom(peerAddr, 8080),
		State: netns.Established, Inode: 1, Cookie: cookie}
}

// carried is a connection that the proxy hands to the application: both ends.
func carried(cookie uint64) []netns.Socket {
	s := in(cookie, peerAddr)
	return []netns.Socket{s, {Local: s.Remote, Remote: s.Local, State: s.State, Inode: 2, Cookie: cookie + 1, Mark: netns.Mark}}
}

// TestWhatIsEnded: STRICT ends what enters the pod from others in plaintext, and
// nothing else.
//
//ambit:feature policy-older-destroyed policy-older-untouched
func TestWhatIsEnded(t *testing.T) {
	run(t, func(b *bench) {
		closed := in(7, peerAddr) // its listener has been closed
		closed.Local = netip.AddrPortFrom(podAddr, 9090)
		rude := in(8, peerAddr) // nobody listens any more, and the port is one the kernel gives away
		rude.Local = netip.AddrPortFrom(podAddr, 45000)
		itself := in(9, podAddr6)
		b.ns.sockets = append([]netns.Socket{
			in(1, peerAddr), in(2, netip.MustParseAddr("fd00::2")), in(3, nodeAddr), out(4), closed, rude, itself,
		}, carried(5)...)
		b.add()
		b.wait(time.Hour)
		b.want() // no policy
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		synctest.Wait()
		b.want(1, 2, 3, 7)
		if n := b.out.lines("src.workload=client"); n != 3 {
			b.t.Errorf("%d lines name the client", n)
		}
		if n := b.metric("istio_tcp_connections_opened_total") + b.metric("istio_tcp_connections_closed_total"); n != 0 {
			b.t.Errorf("%v count as opened or closed by the mesh", n)
		}
	})
}

// TestPolicyIsThereAlready: for a pod that is handed over, by its agent or to
// another ztunnel, what policy refuses ends at once. Only what may be a probe of
// the kubelet gets its time.
//
//ambit:feature policy-older-destroyed policy-older-probes
func TestPolicyIsThereAlready(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		b.ns.sockets = []netns.Socket{in(1, peerAddr), in(2, nodeAddr), in(3, nodeAddr)}
		b.add()
		b.want(1)
		b.wait(settle / 2)
		b.ns.set(func() {
			b.ns.sockets = slices.DeleteFunc(b.ns.sockets, func(s netns.Socket) bool { return s.Cookie == 2 })
		}) // a probe
		b.wait(settle/2 - time.Millisecond)
		b.want(1)
		b.wait(time.Second)
		b.want(1, 3)
	})
}

// TestProbesPass: probes that begin later are not older, and are left alone
// under any policy.
//
//ambit:feature policy-older-probes
func TestProbesPass(t *testing.T) {
	run(t, func(b *bench) {
		b.ns.sockets = []netns.Socket{in(1, peerAddr)}
		b.add()
		b.wait(2 * settle)
		b.ns.set(func() { b.ns.sockets = append(b.ns.sockets, in(2, nodeAddr)) })
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		b.wait(time.Hour)
		b.want(1)
	})
}

// TestChanges: every change of policy that comes to refuse ends, none that does
// not, and a policy that has not arrived ends nothing.
//
//ambit:feature policy-older-destroyed policy-pending
func TestChanges(t *testing.T) {
	from := func(a string) []mesh.Rule {
		return []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{SourceIPs: []netip.Prefix{netip.MustParsePrefix(a)}}}}}}}
	}
	named := func(keys ...string) mesh.Delta {
		w := *self
		w.Policies = keys
		return mesh.Delta{Workloads: []*mesh.Workload{&w}}
	}
	policy := func(name string, scope mesh.PolicyScope, action mesh.Action, rules []mesh.Rule) mesh.Delta {
		return mesh.Delta{Policies: []*mesh.Policy{{Name: name, Namespace: "demo", Scope: scope, Action: action, Rules: rules}}}
	}
	all, nobody := []mesh.Rule{{}}, from("192.0.2.0/24")
	dry := policy("d", mesh.ScopeGlobal, mesh.Deny, all)
	dry.Policies[0].DryRun = true
	for _, c := range []struct {
		name    string
		changes []mesh.Delta
		ends    bool // at the last change
	}{
		{"DENY of all", []mesh.Delta{policy("d", mesh.ScopeGlobal, mesh.Deny, all)}, true},
		{"DENY of others", []mesh.Delta{policy("d", mesh.ScopeGlobal, mesh.Deny, nobody)}, false},
		{"DENY comes to match", []mesh.Delta{policy("d", mesh.ScopeGlobal, mesh.Deny, nobody), policy("d", mesh.ScopeGlobal, mesh.Deny, from("10.0.0.0/24"))}, true},
		{"DENY that only watches", []mesh.Delta{dry}, false},
		{"ALLOW of others", []mesh.Delta{policy("a", mesh.ScopeNamespace, mesh.Allow, nobody)}, true},
		{"ALLOW of the client", []mesh.Delta{policy("a", mesh.ScopeNamespace, mesh.Allow, from("10.0.0.2/32"))}, false},
		{"ALLOW of others beside that", []mesh.Delta{policy("a", mesh.ScopeNamespace, mesh.Allow, from("10.0.0.2/32")), policy("b", mesh.ScopeGlobal, mesh.Allow, nobody)}, false},
		{"the ALLOW that matched is deleted, another stays", []mesh.Delta{policy("a", mesh.ScopeNamespace, mesh.Allow, all), policy("b", mesh.ScopeNamespace, mesh.Allow, nobody),
			{RemovedPolicies: []string{"demo/a"}}}, true},
		{"the only ALLOW is deleted", []mesh.Delta{policy("a", mesh.ScopeNamespace, mesh.Allow, all), {RemovedPolicies: []string{"demo/a"}}}, false},
		{"another namespace's", []mesh.Delta{{Policies: []*mesh.Policy{{Name: "d", Namespace: "other", Scope: mesh.ScopeNamespace, Action: mesh.Deny, Rules: all}}}}, false},
		{"a selector nobody meets", []mesh.Delta{policy("d", mesh.ScopeWorkloadSelector, mesh.Deny, all)}, false},
		{"a selector comes to meet the pod", []mesh.Delta{policy("d", mesh.ScopeWorkloadSelector, mesh.Deny, all), named("demo/d")}, true},
		{"named, not arrived", []mesh.Delta{named("demo/d")}, false},
		{"named, then arrived", []mesh.Delta{named("demo/d"), policy("d", mesh.ScopeWorkloadSelector, mesh.Deny, all)}, true},
		{"named and not arrived, beside an ALLOW of others", []mesh.Delta{named("demo/d"), policy("a", mesh.ScopeNamespace, mesh.Allow, nobody)}, false},
		{"named and deleted", []mesh.Delta{policy("d", mesh.ScopeWorkloadSelector, mesh.Allow, all), named("demo/d"), {RemovedPolicies: []string{"demo/d"}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(b *bench) {
				b.t = t
				b.ns.sockets = []netns.Socket{in(1, peerAddr)}
				b.add()
				b.wait(time.Minute)
				for _, d := range c.changes {
					b.want()
					b.apply(d)
					b.wait(time.Minute)
				}
				if c.ends {
					b.want(1)
				} else {
					b.want()
				}
			})
		})
	}
}

// TestOneEndSeen: the ends of a connection are not listed at the same moment.
// One whose other end was missed is not taken for older.
//
//ambit:feature policy-older-untouched
func TestOneEndSeen(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		b.ns.sockets = []netns.Socket{in(9, peerAddr)}
		both := carried(1)
		b.ns.once = both[:1]
		b.add()
		b.ns.set(func() { b.ns.sockets = append(b.ns.sockets, both...) })
		b.wait(time.Hour)
		b.want(9)
	})
}

// TestWorkloadIsNotKnownYet: nothing is decided before the mesh knows the pod.
func TestWorkloadIsNotKnownYet(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(mesh.Delta{RemovedWorkloads: []string{self.UID}, Policies: []*mesh.Policy{strict}})
		b.ns.sockets = []netns.Socket{in(1, peerAddr)}
		b.add()
		b.want()
		b.apply(mesh.Delta{Workloads: []*mesh.Workload{self}})
		synctest.Wait()
		b.want(1)
	})
}

// TestNobodyLeft: a pod without older connections costs two looks, and one
// whose connections have ended none any more.
func TestNobodyLeft(t *testing.T) {
	run(t, func(b *bench) {
		b.ns.sockets = carried(1)
		b.add()
		b.wait(24 * time.Hour)
		if b.ns.looks != 2 || !b.watch.idle() {
			b.t.Errorf("%d looks at a pod without any, idle: %v", b.ns.looks, b.watch.idle())
		}
		b.ns.sockets, b.ns.looks = []netns.Socket{in(1, peerAddr)}, 0
		b.add()
		b.wait(10 * time.Minute)
		if b.ns.looks > 15 || b.watch.idle() {
			b.t.Errorf("%d looks in ten minutes at a pod with one, idle: %v", b.ns.looks, b.watch.idle())
		}
		b.ns.set(func() { b.ns.sockets = nil })
		b.wait(2 * pause)
		looks := b.ns.looks
		b.wait(24 * time.Hour)
		if b.ns.looks != looks || !b.watch.idle() {
			b.t.Errorf("%d looks after the last had ended, idle: %v", b.ns.looks-looks, b.watch.idle())
		}
	})
}

// TestOnlyWhatConcerns: other pods' changes are no reason to look.
func TestOnlyWhatConcerns(t *testing.T) {
	run(t, func(b *bench) {
		b.ns.sockets = []netns.Socket{in(1, peerAddr)}
		b.add()
		b.wait(2 * settle)
		looks := b.ns.looks
		for i := range 100 {
			w := *peer
			w.CanonicalRevision = strings.Repeat("x", i)
			b.apply(mesh.Delta{Workloads: []*mesh.Workload{&w}})
			synctest.Wait()
		}
		if b.ns.looks != looks {
			b.t.Errorf("%d looks", b.ns.looks-looks)
		}
	})
}

// TestKernelCannot: where connections cannot be ended that is said once, and how
// many go on is counted.
//
//ambit:feature policy-older-unsupported
func TestKernelCannot(t *testing.T) {
	run(t, func(b *bench) {
		b.ns.result = unix.EOPNOTSUPP
		b.ns.sockets = []netns.Socket{in(1, peerAddr), in(2, peerAddr), out(3)}
		b.add()
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		synctest.Wait()
		looks := b.ns.looks
		for _, name := range []string{"one", "two"} {
			b.apply(mesh.Delta{Policies: []*mesh.Policy{{Name: name, Namespace: "demo", Scope: mesh.ScopeNamespace, Action: mesh.Deny}}})
			synctest.Wait()
		}
		b.want()
		if n := b.metric("ambit_older_connections_refused"); n != 2 {
			b.t.Errorf("%v go on by the metric, want 2", n)
		}
		if n := b.out.lines("INET_DIAG_DESTROY"); n != 1 || b.ns.looks != looks {
			b.t.Errorf("%d warnings, %d more looks", n, b.ns.looks-looks)
		}
		b.ns.set(func() { b.ns.sockets = b.ns.sockets[:1] })
		b.wait(2 * pause)
		b.apply(mesh.Delta{Policies: []*mesh.Policy{{Name: "three", Namespace: "demo", Scope: mesh.ScopeNamespace, Action: mesh.Deny}}})
		synctest.Wait()
		if n := b.metric("ambit_older_connections_refused"); n != 1 {
			b.t.Errorf("%v go on by the metric, want 1", n)
		}
		b.apply(mesh.Delta{RemovedPolicies: []string{"demo/strict"}})
		synctest.Wait()
		if n := b.metric("ambit_older_connections_refused"); n != 0 {
			b.t.Errorf("%v go on by the metric although nothing refuses them", n)
		}
	})
}

// TestOtherFailures are said and tried again; a namespace that is gone is not.
func TestOtherFailures(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		b.ns.result = unix.EPERM
		b.ns.sockets = []netns.Socket{in(1, peerAddr)}
		b.add()
		b.want()
		if n := b.out.lines("operation not permitted"); n != 1 {
			b.t.Errorf("%d warnings", n)
		}
		b.ns.set(func() { b.ns.result = nil })
		b.wait(settle)
		b.want(1)
	})
	run(t, func(b *bench) {
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		b.ns.sockets, b.ns.err = []netns.Socket{in(1, peerAddr)}, errors.New("no memory")
		b.add()
		b.wait(3 * settle)
		if n := b.out.lines("no memory"); n != 1 {
			b.t.Errorf("%d warnings", n)
		}
		b.ns.set(func() { b.ns.err = nil })
		b.wait(settle)
		b.want(1)
		b.ns.set(func() { b.ns.err = os.ErrClosed })
		b.wait(pause)
		if !b.watch.idle() {
			b.t.Error("a pod without a namespace is still looked at")
		}
	})
}

// TestRemoved: a pod that has gone is not asked about.
func TestRemoved(t *testing.T) {
	run(t, func(b *bench) {
		b.ns.sockets = []netns.Socket{in(1, peerAddr)}
		b.add()
		b.watch.Remove(b.pod)
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		b.wait(time.Hour)
		b.want()
	})
}

// TestEndedByItself: what drops out between two looks was not ended by
// us and has no line.
func TestEndedByItself(t *testing.T) {
	run(t, func(b *bench) {
		b.ns.sockets = []netns.Socket{in(1, peerAddr), in(2, peerAddr)}
		b.add()
		b.ns.set(func() { b.ns.sockets = b.ns.sockets[1:] })
		b.apply(mesh.Delta{Policies: []*mesh.Policy{strict}})
		synctest.Wait()
		b.want(2)
	})
}

// BenchmarkAsk is a change of policy for a pod with 10 000 older connections
// that all may go on.
func BenchmarkAsk(b *testing.B) {
	store := mesh.NewStore()
	next := mesh.NewBuilder(store.Load())
	next.Apply(mesh.Delta{Workloads: []*mesh.Workload{self, peer}, Policies: []*mesh.Policy{{Name: "a", Namespace: "demo", Scope: mesh.ScopeNamespace,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}}}}}}})
	store.Swap(next.Build())
	p := newPod(New(Config{Store: store, Logger: slog.New(slog.DiscardHandler)}), &live.Pod{Name: "server", Namespace: "demo"}, &space{}, time.Now())
	for i := range uint64(10000) {
		p.conns = append(p.conns, conn{Socket: in(i, peerAddr)})
	}
	s := store.Load()
	for b.Loop() {
		if _, err := p.ask(s, self, time.Now()); err != nil || len(p.conns) != 10000 {
			b.Fatal(err)
		}
	}
}
