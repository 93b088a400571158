package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/e2e/bench/lab"
)

// A soak runs everything that makes and ends things, for as long as it is told,
// in rounds. After each round the load stops but for the long-lived
// connections, and what every process holds is counted: between equal rounds
// nothing may grow.

const (
	soakRounds = 60
	// leastRound leaves each sort of change room to happen some times.
	leastRound = 3 * time.Second
	// leastRounds give the last quarter the samples that a slope needs. A slow
	// machine soaks for longer than it was told.
	leastRounds = 40
	// heldOpen connections last from the beginning to the end.
	heldOpen = 20
)

// soakEnv makes happen often what happens rarely: certificates last a minute,
// so each is renewed about every half, and tunnels that nobody uses end soon.
var soakEnv = []string{"SECRET_TTL=60s", "POOL_UNUSED_RELEASE_TIMEOUT=2s"}

// soak is one run.
type soak struct {
	l       *lab.Lab
	total   time.Duration
	round   time.Duration
	began   time.Time
	load    *player
	pods    []*lab.Pod // enrolled to the end: client, server, and who is denied at times
	samples *samples

	mu     sync.Mutex
	counts map[string]counted // guarded by mu
}

const (
	cameAndWent = "pods that came and went"
	changed     = "policy changes"
)

func (s *soak) book(name string, c counted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.counts[name]
	all.merge(c)
	s.counts[name] = all
}

// runSoak is the whole of it, of some rounds at the least. say is told the
// progress.
func runSoak(ctx context.Context, total time.Duration, rounds int, ztunnel string, alone bool, say func(string)) (rep *soakReport, err error) {
	dir, err := os.MkdirTemp("", "ambit-soak-program-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if ztunnel == "" {
		if ztunnel, err = program(ctx, dir); err != nil {
			return nil, err
		}
	}
	l, err := lab.New(ctx, ztunnel, soakEnv...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	s := &soak{l: l, total: total, round: max(total/soakRounds, leastRound), counts: map[string]counted{}, samples: &samples{l: l, alone: alone}}
	empty, err := s.samples.held()
	if err != nil {
		return nil, err
	}
	if err := s.set(ctx); err != nil {
		return nil, err
	}
	signed := l.Control.Certificates()
	s.began = time.Now()
	for n := 1; n <= rounds || time.Since(s.began) < total; n++ {
		if err := s.once(ctx); err != nil {
			return nil, fmt.Errorf("round %d: %w", n, err)
		}
		if n%10 == 0 {
			say(fmt.Sprintf("%s of %s, %d rounds", time.Since(s.began).Round(time.Second), total, n))
		}
	}
	s.book("certificates", counted{OK: l.Control.Certificates() - signed})
	rep = &soakReport{Machine: thisMachine(ctx), Total: time.Since(s.began), Counts: s.counts, Series: s.samples.judge(time.Since(s.began))}
	for _, d := range s.samples.leaking(rep.Series) {
		rep.Profiles = append(rep.Profiles, s.samples.profile(ctx, d)...)
	}
	rep.Left, err = s.leave(ctx, empty)
	return rep, err
}

// set makes the pods that stay.
func (s *soak) set(ctx context.Context) error {
	for name, n := range map[string]*lab.Node{"client": s.l.A, "server": s.l.B, "denied": s.l.A} {
		p, err := s.l.Pod(n, name)
		if err != nil {
			return err
		}
		s.pods = append(s.pods, p)
	}
	var err error
	if s.load, err = cast(s.l, s.pod("client").NS, "load", "load", nil); err != nil {
		return err
	}
	if _, err = cast(s.l, s.pod("server").NS, "app", "app", nil); err != nil {
		return err
	}
	for _, p := range s.pods {
		if err := p.Enrol(ctx); err != nil {
			return err
		}
	}
	if err := s.l.Announce(ctx, s.pods...); err != nil {
		return err
	}
	for _, from := range []string{"client", "denied"} {
		if err := lab.Eventually(ctx, func() error { return s.exchange(ctx, s.pod(from)) }); err != nil {
			return err
		}
	}
	_, err = s.load.do(ctx, order{Op: "hold", To: s.pod("server").At(portEcho), Conns: heldOpen, Size: 256})
	return err
}

func (s *soak) pod(name string) *lab.Pod {
	for _, p := range s.pods {
		if p.Name == name {
			return p
		}
	}
	return nil
}

func (s *soak) exchange(ctx context.Context, from *lab.Pod) error {
	return exchangeFrom(ctx, from, s.pod("server").At(portEcho), slow)
}

// once is a round and the samples after it.
func (s *soak) once(ctx context.Context) error {
	end := time.Now().Add(s.round)
	var wg sync.WaitGroup
	errs := make([]error, 3)
	wg.Go(func() {
		a, err := s.load.do(ctx, order{Op: "mix", To: s.pod("server").Addr.String(), Size: 256, For: s.round})
		errs[0] = err
		for name, c := range a.Kinds {
			s.book(name, c)
		}
	})
	for i, w := range []struct {
		name  string
		one   func(context.Context, int) error
		pause time.Duration
	}{{cameAndWent, s.comeAndGo, 0}, {changed, s.changePolicy, 50 * time.Millisecond}} {
		wg.Go(func() {
			for n := 0; time.Now().Before(end) && ctx.Err() == nil; n++ {
				var c counted
				c.add(w.one(ctx, n))
				s.book(w.name, c)
				if c.Failed > 0 {
					errs[i+1] = fmt.Errorf("%s: %s", w.name, c.First)
					return
				}
				pause(w.pause)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.samples.take(ctx, time.Since(s.began))
}

// comeAndGo is the life of a pod in the mesh: it is enrolled, calls, is called,
// and leaves the mesh and the node. Its name comes back, as a workload's does.
func (s *soak) comeAndGo(ctx context.Context, n int) (err error) {
	node := s.l.A
	if n%2 == 1 {
		node = s.l.B
	}
	p, err := s.l.Pod(node, fmt.Sprintf("guest-%d", n%4))
	if err != nil {
		return err
	}
	ln, err := p.Listen(portEcho)
	if err != nil {
		return errors.Join(err, s.l.Remove(p))
	}
	var served sync.WaitGroup
	served.Go(func() { _ = serveUntilClosed(ln, echo) })
	err = errors.Join(p.Enrol(ctx), s.l.Announce(ctx, p))
	if err == nil {
		err = errors.Join(s.exchange(ctx, p), exchangeFrom(ctx, s.pod("client"), p.At(portEcho), slow))
	}
	err = errors.Join(err, s.l.Retract(ctx, p), p.Release(ctx))
	if err == nil {
		err = errors.Join(s.exchange(ctx, p), exchangeFrom(ctx, s.pod("client"), p.At(portEcho), slow))
	}
	err = errors.Join(err, ln.Close())
	served.Wait()
	return errors.Join(err, s.l.Remove(p))
}

// changePolicy refuses a pod, which ends what it has open, and lets it in again.
func (s *soak) changePolicy(ctx context.Context, _ int) error {
	from := s.pod("denied")
	c, err := from.Dial(ctx, s.pod("server").At(portEcho))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(slow))
	one := []byte{1}
	if err := exchange(c, one); err != nil {
		return err
	}
	deny := &mesh.Policy{Name: "no-denied", Namespace: lab.Namespace, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{SourceIPs: []netip.Prefix{netip.PrefixFrom(from.Addr, 32)}}}}}}}}
	s.l.Control.Apply(mesh.Delta{Policies: []*mesh.Policy{deny}})
	if _, err := c.Read(one); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("a connection that a new policy denies was not closed: %w", err)
	}
	until := func(want bool) error {
		return lab.Eventually(ctx, func() error {
			err := s.exchange(ctx, from)
			if (err == nil) != want {
				return fmt.Errorf("want connections to be let in: %t; last: %w", want, err)
			}
			return nil
		})
	}
	if err := until(false); err != nil {
		return err
	}
	s.l.Control.Apply(mesh.Delta{RemovedPolicies: []string{deny.Key()}})
	return until(true)
}

// leave takes the last pods out of the mesh and says what is left beside what
// was there before the first.
func (s *soak) leave(ctx context.Context, empty map[string]float64) ([]string, error) {
	if _, err := s.load.do(ctx, order{Op: "release"}); err != nil {
		return nil, err
	}
	if err := s.l.Retract(ctx, s.pods...); err != nil {
		return nil, err
	}
	for _, p := range s.pods {
		if err := p.Release(ctx); err != nil {
			return nil, err
		}
	}
	var left []string
	// What waits for a deadline of its own has the time for it.
	_ = lab.Eventually(ctx, func() error {
		left = nil
		now, err := s.samples.held()
		if err != nil {
			left = []string{err.Error()}
			return err
		}
		for _, name := range sortedKeys(now) {
			if now[name] > empty[name] {
				left = append(left, fmt.Sprintf("%s: %.0f, %.0f before the first pod", name, now[name], empty[name]))
			}
		}
		if len(left) > 0 {
			return errors.New(left[0])
		}
		return nil
	})
	return left, ctx.Err()
}
