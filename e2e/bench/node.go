package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/e2e/bench/lab"
)

// memories books RSS, PSS and private memory of the ztunnel of node a in MB.
func (s *stage) memories(what string, limit float64) error {
	m, err := s.l.A.Ztunnel.Memory()
	if err != nil {
		return err
	}
	r := s.rep.row("ztunnel, " + what)
	r.metric("RSS", "MB").value(ambit).atMost(limit)
	r.metric("PSS", "MB")
	r.metric("anonymous", "MB")
	r.add("RSS", ambit, m.RSS/1024)
	r.add("PSS", ambit, m.PSS/1024)
	r.add("anonymous", ambit, m.Anon/1024)
	return nil
}

func (s *stage) idle(ctx context.Context) error { return s.memories("idle, no pods", 25) }

// enrol takes one pod after the other into the mesh, then many at once.
func (s *stage) enrol(ctx context.Context) ([]*lab.Pod, error) {
	var pods []*lab.Pod
	for i := range s.scale.Pods {
		p, err := s.l.Pod(s.l.A, fmt.Sprintf("pod-%03d", i))
		if err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	if err := s.l.Control.Settled(ctx); err != nil {
		return nil, err
	}
	alone := pods[:len(pods)-s.scale.AtOnce]
	var took []float64
	for _, p := range alone {
		began := time.Now()
		if err := p.Enrol(ctx); err != nil {
			return nil, err
		}
		took = append(took, millis(time.Since(began)))
	}
	r := s.rep.row("enrol a pod: sockets, capture, hand-over, proof")
	r.metric("p50", "ms")
	r.metric("p99", "ms").value(ambit).atMost(250)
	slices.Sort(took)
	r.add("p50", ambit, quantile(took, 0.5))
	r.add("p99", ambit, quantile(took, 0.99))

	began := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(pods))
	for i, p := range pods[len(alone):] {
		wg.Go(func() { errs[i] = p.Enrol(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	r = s.rep.row(fmt.Sprintf("enrol %d pods at once", s.scale.AtOnce))
	r.metric("until the last", "s").value(ambit).atMost(3)
	r.add("until the last", ambit, time.Since(began).Seconds())
	return pods, s.l.Announce(ctx, pods...)
}

func millis(d time.Duration) float64 { return float64(d) / 1e6 }

// hundred is what many pods cost, then what a pooled mTLS connection from each
// of them to one other pod costs: a connection is per pair of pods.
func (s *stage) hundred(ctx context.Context) error {
	pods, err := s.enrol(ctx)
	if err != nil {
		return err
	}
	// A fresh ztunnel has no memory of the enrolling.
	if err := s.l.A.Restart(ctx); err != nil {
		return err
	}
	if err := errors.Join(s.l.Control.Settled(ctx), s.warm(ctx)); err != nil {
		return err
	}
	if err := s.memories(fmt.Sprintf("%d pods", s.scale.Pods), 35); err != nil {
		return err
	}
	if err := s.pooled(ctx, pods); err != nil {
		return err
	}
	return s.restart(ctx, pods)
}

// warm makes the first connection between the two meshed pods.
func (s *stage) warm(ctx context.Context) error {
	return lab.Eventually(ctx, func() error {
		return exchangeFrom(ctx, s.meshClient, s.meshServer.At(portEcho), 5*time.Second)
	})
}

func (s *stage) pooled(ctx context.Context, pods []*lab.Pod) error {
	a, b := s.l.A.Ztunnel, s.l.B.Ztunnel
	rest := func() (float64, error) {
		before := a.CPU() + b.CPU()
		began := time.Now()
		if err := wait(ctx, s.scale.Idle); err != nil {
			return 0, err
		}
		return (a.CPU() + b.CPU() - before).Seconds() / time.Since(began).Seconds(), nil
	}
	without, err := rest()
	if err != nil {
		return err
	}
	ma, mb, err := twoMemories(a, b)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if err := exchangeFrom(ctx, p, s.meshServer.At(portEcho), slow); err != nil {
			return fmt.Errorf("first connection of %s: %w", p.Name, err)
		}
	}
	with, err := rest()
	if err != nil {
		return err
	}
	na, nb, err := twoMemories(a, b)
	if err != nil {
		return err
	}
	r := s.rep.row(fmt.Sprintf("pooled mTLS connection, %d idle", len(pods)))
	r.metric("memory, client's ztunnel", "KB")
	r.metric("memory, server's ztunnel", "KB")
	r.metric("idle CPU, both ztunnels, all connections", "% of a core")
	r.metric("idle CPU before them", "% of a core")
	r.add("memory, client's ztunnel", ambit, (na.Anon-ma.Anon)/float64(len(pods)))
	r.add("memory, server's ztunnel", ambit, (nb.Anon-mb.Anon)/float64(len(pods)))
	r.add("idle CPU, both ztunnels, all connections", ambit, 100*with)
	r.add("idle CPU before them", ambit, 100*without)
	return nil
}

func twoMemories(a, b *lab.Process) (ma, mb lab.Memory, err error) {
	ma, ea := a.Memory()
	mb, eb := b.Memory()
	return ma, mb, errors.Join(ea, eb)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// restart kills the ztunnel of all pods and starts another, while every pod
// connects: the connections wait in the pods' own listeners.
func (s *stage) restart(ctx context.Context, pods []*lab.Pod) error {
	r := s.rep.row(fmt.Sprintf("ztunnel killed, all of %d pods served again, cold pools", len(pods)))
	r.metric("from the kill to the last pod's answer", "s").value(ambit).atMost(2)
	r.metric("to the first pod's answer", "s")
	for range s.scale.Restarts {
		began := time.Now()
		s.l.A.Ztunnel.Kill()
		if err := s.l.A.Start(); err != nil {
			return err
		}
		var wg sync.WaitGroup
		took := make([]float64, len(pods))
		errs := make([]error, len(pods))
		for i, p := range pods {
			wg.Go(func() {
				errs[i] = exchangeFrom(ctx, p, s.meshServer.At(portEcho), slow)
				took[i] = time.Since(began).Seconds()
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		slices.Sort(took)
		r.add("to the first pod's answer", ambit, took[0])
		r.add("from the kill to the last pod's answer", ambit, took[len(took)-1])
		if err := errors.Join(s.l.A.WaitReady(ctx), s.l.Control.Settled(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// policy counts from the change of the mesh in the controller to the first new
// connection that is decided by it.
func (s *stage) policy(ctx context.Context) error {
	s.l.Control.Fill(0, s.scale.Workloads)
	if err := errors.Join(s.l.Control.Settled(ctx), s.warm(ctx)); err != nil {
		return err
	}
	deny := &mesh.Policy{Name: "no-client", Namespace: lab.Namespace, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			SourceIPs: []netip.Prefix{netip.PrefixFrom(s.meshClient.Addr, 32)}}}}}}}}
	try := func() bool {
		return exchangeFrom(ctx, s.meshClient, s.meshServer.At(portEcho), 5*time.Second) == nil
	}
	var denied, allowed []float64
	for range s.scale.Changes {
		for _, c := range []struct {
			d    mesh.Delta
			want bool
			into *[]float64
		}{
			{mesh.Delta{Policies: []*mesh.Policy{deny}}, false, &denied},
			{mesh.Delta{RemovedPolicies: []string{deny.Key()}}, true, &allowed},
		} {
			began := time.Now()
			s.l.Control.Apply(c.d)
			for try() != c.want {
				if time.Since(began) > slow || ctx.Err() != nil {
					return fmt.Errorf("policy is not enforced after %s: %w", time.Since(began), ctx.Err())
				}
			}
			*c.into = append(*c.into, millis(time.Since(began)))
		}
	}
	r := s.rep.row(fmt.Sprintf("policy change → enforced, %d workloads", s.scale.Workloads))
	for _, m := range []struct {
		name string
		took []float64
	}{{"deny", denied}, {"allow again", allowed}} {
		slices.Sort(m.took)
		r.metric(m.name+", p50", "ms")
		r.metric(m.name+", p99", "ms").value(ambit).atMost(500)
		r.add(m.name+", p50", ambit, quantile(m.took, 0.5))
		r.add(m.name+", p99", ambit, quantile(m.took, 0.99))
	}
	return nil
}

// workloads is a fresh ztunnel in a large mesh.
func (s *stage) workloads(ctx context.Context) error {
	s.l.Control.Fill(0, s.scale.ManyWorkload)
	if err := s.l.A.Restart(ctx); err != nil {
		return err
	}
	if err := errors.Join(s.l.Control.Settled(ctx), s.warm(ctx)); err != nil {
		return err
	}
	if err := s.memories(fmt.Sprintf("%d workloads, %d pods", s.scale.ManyWorkload, s.scale.Pods), 60); err != nil {
		return err
	}
	s.l.Control.Unfill(0, s.scale.ManyWorkload)
	return s.l.Control.Settled(ctx)
}

// tunnels is what an open connection without traffic costs in fresh proxies
// that have carried one message on each.
func (s *stage) tunnels(ctx context.Context) error {
	if err := errors.Join(s.l.A.Restart(ctx), s.l.B.Restart(ctx)); err != nil {
		return err
	}
	if err := errors.Join(s.l.Control.Settled(ctx), s.warm(ctx)); err != nil {
		return err
	}
	r := s.rep.row(fmt.Sprintf("idle tunnel, %d of them", s.scale.Tunnels))
	r.metric("anonymous memory per proxy", "KB").value(ambit).atMost(8)
	for _, name := range []string{copied, ambit} {
		v := s.variant(name)
		var pair []*lab.Process
		for _, p := range s.l.Processes() {
			if slices.Contains(v.proxies[:], p.Name) {
				pair = append(pair, p)
			}
		}
		if len(pair) != 2 {
			return fmt.Errorf("%d proxies of %s, want 2", len(pair), name)
		}
		ma, mb, err := twoMemories(pair[0], pair[1])
		if err != nil {
			return err
		}
		if _, _, err := s.run(ctx, v, portEcho, order{Op: "hold", Conns: s.scale.Tunnels, Size: 1024}); err != nil {
			return err
		}
		if err := wait(ctx, s.scale.Idle/2); err != nil {
			return err
		}
		na, nb, err := twoMemories(pair[0], pair[1])
		if err != nil {
			return err
		}
		r.add("anonymous memory per proxy", name, (na.Anon+nb.Anon-ma.Anon-mb.Anon)/2/float64(s.scale.Tunnels))
		if _, err := v.load.do(ctx, order{Op: "release"}); err != nil {
			return err
		}
	}
	return nil
}
