package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// takeTurns measures every variant once per round, in an order that turns, so
// that what others do to the machine falls on all alike.
func (s *stage) takeTurns(ctx context.Context, names []string, once func(variant) error) error {
	for round := range s.scale.Rounds {
		for i := range names {
			v := s.variant(names[(i+round)%len(names)])
			if err := once(v); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
		}
	}
	return ctx.Err()
}

// ways are the variants of a row, with the other ztunnel when there is one.
func (s *stage) ways(names ...string) []string {
	if s.other != nil {
		names = append(names, otherOne)
	}
	return names
}

// perUnit books CPU of a variant's two proxies under metric, in all and each.
func perUnit(r *row, metric string, v variant, cpu map[string]float64, units, scale float64) {
	if units == 0 {
		return
	}
	if v.proxies[0] != "" {
		r.add(metric, v.name, (cpu[v.proxies[0]]+cpu[v.proxies[1]])/units*scale)
	}
	for name, c := range cpu {
		if c > 0 {
			r.process(metric, v.name, name, c/units*scale)
		}
	}
}

func (s *stage) bulk(ctx context.Context) error {
	aesCost := s.aes()
	names := s.ways(noMesh, spliced, copied, ambit)
	for _, conns := range []int{1, 8} {
		for _, dir := range []struct{ op, name string }{{"bulkup", "up"}, {"bulkdown", "down"}} {
			r := s.rep.row(fmt.Sprintf("bulk %s, %d tunnels", dir.name, conns))
			r.metric("Gbit/s", "Gbit/s").ratio(ambit, copied, 0).atLeast(0.5)
			r.metric("CPU of both proxies", "s/GB").ratio(ambit, copied, aesCost).atMost(1.5).as("copy + AES")
			port := uint16(portSink)
			if dir.op == "bulkdown" {
				port = portSource
			}
			err := s.takeTurns(ctx, names, func(v variant) error {
				a, cpu, err := s.run(ctx, v, port, order{Op: dir.op, Conns: conns, For: s.scale.Bulk})
				if err != nil {
					return err
				}
				r.add("Gbit/s", v.name, a.Bytes*8/1e9/a.Elapsed.Seconds())
				perUnit(r, "CPU of both proxies", v, cpu, a.Bytes/1e9, 1)
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// aes measures what encrypting once and decrypting once costs here, in
// seconds per GB: the part of a mesh's work that a plain proxy has not.
func (s *stage) aes() float64 {
	r := s.rep.row("AES-128-GCM, 16 KiB records, once in and once out")
	r.metric("CPU", "s/GB")
	c, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		return 0
	}
	g, err := cipher.NewGCM(c)
	if err != nil {
		return 0
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	plain, nonce, dst := make([]byte, 16<<10), make([]byte, g.NonceSize()), make([]byte, 0, 17<<10)
	for range s.scale.Rounds {
		began, n := threadCPU(), 0
		for threadCPU()-began < 100*time.Millisecond {
			for range 64 {
				sealed := g.Seal(dst[:0], nonce, plain, nil)
				if _, err := g.Open(plain[:0], nonce, sealed, nil); err != nil {
					return 0
				}
				n += 16 << 10
			}
		}
		r.add("CPU", "here", (threadCPU()-began).Seconds()/(float64(n)/1e9))
	}
	return r.median("CPU", "here")
}

// threadCPU is the CPU of the calling thread, which must be locked.
func threadCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (s *stage) pingPong(ctx context.Context) error {
	r := s.rep.row("1 KiB ping-pong, one tunnel")
	r.metric("p50", "µs").ratio(ambit, spliced, 0).atMost(1.15)
	r.metric("CPU of both proxies", "µs/round trip").ratio(ambit, spliced, 0)
	return s.takeTurns(ctx, s.ways(noMesh, spliced, copied, ambit), func(v variant) error {
		a, cpu, err := s.run(ctx, v, portEcho, order{Op: "pingpong", Size: 1024, For: s.scale.Latency})
		if err != nil {
			return err
		}
		r.add("p50", v.name, micros(a.P50))
		perUnit(r, "CPU of both proxies", v, cpu, a.Count, 1e6)
		return nil
	})
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

func (s *stage) openLoop(ctx context.Context) error {
	r := s.rep.row("3200/s of 1 KiB over 64 connections, open loop")
	r.metric("p50", "µs").ratio(ambit, copied, 0).atMost(1.15)
	r.metric("p99", "µs").ratio(ambit, copied, 0).atMost(1.15)
	r.metric("CPU of both proxies", "µs/request").ratio(ambit, copied, 0).atMost(1.15)
	r.metric("p50 over no mesh", "ratio")
	direct := 0.0
	return s.takeTurns(ctx, s.ways(noMesh, spliced, copied, ambit), func(v variant) error {
		a, cpu, err := s.run(ctx, v, portEcho, order{Op: "openloop", Conns: 64, Rate: 3200, Size: 1024, For: s.scale.OpenLoop})
		if err != nil {
			return err
		}
		r.add("p50", v.name, micros(a.P50))
		r.add("p99", v.name, micros(a.P99))
		perUnit(r, "CPU of both proxies", v, cpu, a.Count, 1e6)
		if v.name == noMesh {
			direct = micros(a.P50)
		} else if direct > 0 {
			r.add("p50 over no mesh", v.name, micros(a.P50)/direct)
		}
		return nil
	})
}

// thousand is the load that published tables of meshes have.
func (s *stage) thousand(ctx context.Context) error {
	r := s.rep.row("1000/s of 1 KiB over 16 connections")
	r.metric("CPU, both ends", "vCPU").ratio(ambit, copied, 0)
	r.metric("CPU, one ztunnel", "vCPU").value(ambit).atMost(0.06)
	r.metric("RSS, larger ztunnel", "MB")
	return s.takeTurns(ctx, s.ways(copied, ambit), func(v variant) error {
		a, cpu, err := s.run(ctx, v, portEcho, order{Op: "openloop", Conns: 16, Rate: 1000, Size: 1024, For: s.scale.OpenLoop})
		if err != nil {
			return err
		}
		perUnit(r, "CPU, both ends", v, cpu, a.Elapsed.Seconds(), 1)
		if v.name != ambit {
			return nil
		}
		r.add("CPU, one ztunnel", ambit, max(cpu[v.proxies[0]], cpu[v.proxies[1]])/a.Elapsed.Seconds())
		ma, err := s.l.A.Ztunnel.Memory()
		if err != nil {
			return err
		}
		mb, err := s.l.B.Ztunnel.Memory()
		if err != nil {
			return err
		}
		r.add("RSS, larger ztunnel", ambit, max(ma.RSS, mb.RSS)/1024)
		return nil
	})
}

func (s *stage) newConnections(ctx context.Context) error {
	for _, c := range []struct{ conns, count int }{{1, s.scale.Connections}, {32, 4 * s.scale.Connections}} {
		r := s.rep.row(fmt.Sprintf("new connections, whole path, %d at a time", c.conns))
		r.metric("rate", "1/s").ratio(ambit, copied, 0)
		r.metric("p50", "µs").ratio(ambit, copied, 0)
		r.metric("CPU of both proxies", "µs/connection").ratio(ambit, copied, 0)
		err := s.takeTurns(ctx, s.ways(noMesh, copied, ambit), func(v variant) error {
			a, cpu, err := s.run(ctx, v, portEcho, order{Op: "connect", Conns: c.conns, Count: c.count})
			if err != nil {
				return err
			}
			r.add("rate", v.name, a.Count/a.Elapsed.Seconds())
			r.add("p50", v.name, micros(a.P50))
			perUnit(r, "CPU of both proxies", v, cpu, a.Count, 1e6)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
