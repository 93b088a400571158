package hbone_test

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// The benchmarks put both proxies of a path into one child process, so that its
// CPU time is theirs alone: load and application are in the parent. Paths take
// turns, as nothing on a shared machine compares across runs.

const proxyMode = "HBONE_TEST_PROXY" // set in the child: copy or tunnel

func TestMain(m *testing.M) {
	if mode := os.Getenv(proxyMode); mode != "" {
		proxies(mode)
		return
	}
	os.Exit(m.Run())
}

// proxies runs two proxies in a row towards the address in the first argument after
// "--", prints where the first one listens, and prints its CPU time
// in nanoseconds for every line of input.
func proxies(mode string) {
	target := os.Args[len(os.Args)-1]
	noKeepalive := net.ListenConfig{KeepAlive: -1}
	listen := func(serve func(*net.TCPConn)) string {
		ln, err := noKeepalive.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go serve(c.(*net.TCPConn))
			}
		}()
		return ln.Addr().String()
	}
	d := net.Dialer{KeepAlive: -1}
	dial := func(addr string) *net.TCPConn {
		c, err := d.Dial("tcp", addr)
		if err != nil {
			panic(err)
		}
		return c.(*net.TCPConn)
	}
	var addr string
	switch mode {
	case "copy":
		hop := func(to string) func(*net.TCPConn) {
			return func(a *net.TCPConn) { userCopy(a, dial(to)) }
		}
		addr = listen(hop(listen(hop(target))))
	case "tunnel":
		// testing.TB is not to be had here; a nil one is only used to fail.
		ca := hbonetest.NewCA(bench{})
		src := ca.Source(hbonetest.ServerID, hbonetest.ClientID)
		// As in a ztunnel: a pod's part of the whole, for both halves.
		cfg := hbone.Config{Budget: hbone.NewBudget(256 << 20).Part(64 << 20)}
		srv := &hbone.Server{Config: cfg, TLS: identity.ServerConfig(src, hbonetest.ServerID), Handler: func(in *hbone.Incoming) {
			s, err := in.Accept()
			if err == nil {
				s.Relay(dial(in.Authority))
			}
		}}
		far := listen(func(c *net.TCPConn) { srv.Serve(context.Background(), c) })
		c, err := hbone.NewClient(context.Background(), dial(far), identity.ClientConfig(src, hbonetest.ClientID, []identity.ID{hbonetest.ServerID}), cfg)
		if err != nil {
			panic(err)
		}
		addr = listen(func(a *net.TCPConn) {
			s, err := c.Open(context.Background(), hbone.Request{Authority: target})
			if err != nil {
				a.Close()
				return
			}
			s.Relay(a)
		})
	}
	fmt.Println(addr)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var ru syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
		fmt.Println(ru.Utime.Nano() + ru.Stime.Nano())
	}
}

// bench is a testing.TB outside of a test.
type bench struct{ testing.TB }

func (bench) Helper()           {}
func (bench) Name() string      { return "bench" }
func (bench) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// userCopy is the plaintext proxy everything is compared with.
func userCopy(a, b *net.TCPConn) {
	var wg sync.WaitGroup
	one := func(dst, src *net.TCPConn) {
		buf := make([]byte, 60_000)
		io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
		dst.CloseWrite()
	}
	wg.Go(func() { one(a, b) })
	one(b, a)
	wg.Wait()
	a.Close()
	b.Close()
}

// path is a running child.
type path struct {
	addr string
	in   io.Writer
	out  *bufio.Reader
}

func startPath(t testing.TB, mode, target string) *path {
	cmd := exec.Command(os.Args[0], "--", target)
	cmd.Env = append(os.Environ(), proxyMode+"="+mode)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	p := &path{in: in, out: bufio.NewReader(out)}
	addr, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	p.addr = strings.TrimSpace(addr)
	return p
}

func (p *path) cpu(t testing.TB) time.Duration {
	fmt.Fprintln(p.in)
	var ns int64
	if _, err := fmt.Fscanln(p.out, &ns); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ns)
}

// application serves what the first byte of a connection asks for.
func application(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var b [1]byte
				if _, err := io.ReadFull(c, b[:]); err != nil {
					return
				}
				buf := make([]byte, 60_000)
				switch b[0] {
				case 'u': // sink, and one byte at its end
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, buf)
					c.Write(b[:])
				case 'd': // source
					for n := 0; n < bulk; {
						k, err := c.Write(buf[:min(len(buf), bulk-n)])
						if n += k; err != nil {
							return
						}
					}
				case 'e': // echo
					io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, buf)
				}
			}()
		}
	}()
	return ln.Addr().String()
}

const (
	bulk      = 500_000_000
	pings     = 3000
	openConns = 500
)

func (p *path) dial(t testing.TB, what string) *net.TCPConn {
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, c, what)
	return c.(*net.TCPConn)
}

// run does one measurement and returns the CPU of both proxies per unit (GB, round
// trip, connection), and the time: in total, or the median of a round trip.
func (p *path) run(t testing.TB, what string, streams int) (cpu float64, took time.Duration) {
	var each []time.Duration
	before, start := p.cpu(t), time.Now()
	units := 0.0
	switch what {
	case "up", "down":
		var wg sync.WaitGroup
		for range streams {
			wg.Go(func() {
				c := p.dial(t, what[:1])
				defer c.Close()
				if what == "up" {
					buf := make([]byte, 60_000)
					for n := 0; n < bulk; {
						k, err := c.Write(buf[:min(len(buf), bulk-n)])
						if err != nil {
							t.Error(err)
							return
						}
						n += k
					}
					c.CloseWrite()
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 60_000))
				if err != nil || what == "down" && n != bulk {
					t.Error(n, err)
				}
			})
		}
		wg.Wait()
		units = float64(streams) * bulk / 1e9
	case "ping":
		c := p.dial(t, "e")
		defer c.Close()
		buf := make([]byte, 1024)
		for range pings {
			s := time.Now()
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				t.Fatal(err)
			}
			each = append(each, time.Since(s))
		}
		units = pings
	case "open":
		for range openConns {
			s := time.Now()
			c := p.dial(t, "ex")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			c.CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
			each = append(each, time.Since(s))
		}
		units = openConns
	}
	took = time.Since(start)
	if each != nil {
		slices.Sort(each)
		took = each[len(each)/2]
	}
	return (p.cpu(t) - before).Seconds() / units, took
}

// BenchmarkPath compares a tunnel with the plaintext two-hop copy. It is one
// comparison of several interleaved rounds, whatever b.N; run it with -benchtime=1x.
func BenchmarkPath(b *testing.B) {
	const rounds = 5
	app := application(b)
	plain, tunnel := startPath(b, "copy", app), startPath(b, "tunnel", app)
	for _, w := range []struct {
		name    string
		what    string
		streams int
	}{{"up", "up", 1}, {"down", "down", 1}, {"up8", "up", 8}, {"down8", "down", 8}, {"pingpong", "ping", 1}, {"open", "open", 1}} {
		b.Run(w.name, func(b *testing.B) {
			streams, n := w.streams, rounds
			if streams > 1 {
				n = 3
			}
			var cpu, took [2][]float64
			for range n {
				for i, p := range []*path{plain, tunnel} {
					c, d := p.run(b, w.what, streams)
					cpu[i] = append(cpu[i], c)
					took[i] = append(took[i], d.Seconds())
				}
			}
			median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
			pc, tc, pt, tt := median(cpu[0]), median(cpu[1]), median(took[0]), median(took[1])
			b.ReportMetric(tc/pc, "cpu-ratio")
			b.ReportMetric(tt/pt, "time-ratio")
			if w.what == "up" || w.what == "down" {
				floor := pc + aesPerGB()
				b.ReportMetric(pc, "plain-cpu-s/GB")
				b.ReportMetric(tc, "tunnel-cpu-s/GB")
				b.ReportMetric(tc/floor, "cpu/floor")
				b.ReportMetric(float64(streams)*bulk*8/1e9/tt, "tunnel-Gbit/s")
			} else {
				b.ReportMetric(pc*1e6, "plain-cpu-us")
				b.ReportMetric(tc*1e6, "tunnel-cpu-us")
				b.ReportMetric(pt*1e6, "plain-p50-us")
				b.ReportMetric(tt*1e6, "tunnel-p50-us")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// aesPerGB is the CPU time of AES-128-GCM once in and once out.
func aesPerGB() float64 {
	blk, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCM(blk)
	if err != nil {
		panic(err)
	}
	var nonce [12]byte
	in := make([]byte, 16384)
	sealed := make([]byte, 0, 16384+16)
	out := make([]byte, 0, 16384)
	const n = 6104 // 100 MB
	cpu := func() int64 {
		var ru syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
		return ru.Utime.Nano() + ru.Stime.Nano()
	}
	start := cpu()
	for range n {
		c := a.Seal(sealed, nonce[:], in, nil)
		if _, err := a.Open(out, nonce[:], c, nil); err != nil {
			panic(err)
		}
	}
	return float64(cpu()-start) / 1e9 * 10
}

// TestOneGigabyteEachWay is a GiB up and a GiB down through a whole path at once.
func TestOneGigabyteEachWay(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	const size = 1 << 30
	ts := newTunnels(t, hbonetest.Options{})
	tn := ts.open()
	var wg sync.WaitGroup
	for _, ends := range [][2]*net.TCPConn{{tn.app, tn.far}, {tn.far, tn.app}} {
		sums := make(chan uint64, 1)
		wg.Go(func() {
			var sum uint64
			buf := make([]byte, 60_000)
			for n := 0; n < size; {
				k := min(len(buf), size-n)
				for i := 0; i < k; i += 101 {
					buf[i] = byte(n>>16 + 7*i)
				}
				sum = fold(sum, buf[:k])
				if _, err := ends[0].Write(buf[:k]); err != nil {
					t.Error(err)
					break
				}
				n += k
			}
			ends[0].CloseWrite()
			sums <- sum
		})
		wg.Go(func() {
			var sum uint64
			buf := make([]byte, 60_000)
			total := 0
			for {
				n, err := io.ReadFull(ends[1], buf)
				sum = fold(sum, buf[:n])
				if total += n; err != nil {
					break
				}
			}
			if total != size || sum != <-sums {
				t.Errorf("%d bytes arrived, or other ones", total)
			}
		})
	}
	wg.Wait()
	if c, s := tn.wait(t); c != nil || s != nil {
		t.Errorf("client %v, server %v", c, s)
	}
}

// fold is a cheap sum that minds the order.
func fold(sum uint64, p []byte) uint64 {
	for i := 0; i < len(p); i += 101 {
		sum = sum*31 + uint64(p[i])
	}
	return sum*31 + uint64(len(p))
}

// TestRelayDoesNotAllocate counts allocations of a whole path in steady state.
func TestRelayDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes sync.Pool forget")
	}
	ts := newTunnels(t, hbonetest.Options{})
	tn := ts.open()
	small := make([]byte, 1024)
	big := make([]byte, 1<<20)
	for name, buf := range map[string][]byte{"1 KiB": small, "1 MiB": big} {
		trip := func() {
			tn.app.Write(buf)
			if _, err := io.ReadFull(tn.far, buf); err != nil {
				t.Fatal(err)
			}
			tn.far.Write(buf)
			if _, err := io.ReadFull(tn.app, buf); err != nil {
				t.Fatal(err)
			}
		}
		for range 50 {
			trip()
		}
		records := func() uint64 {
			return tn.client.Conn().Stats().RecordsOut + tn.server.Conn().Stats().RecordsOut
		}
		const runs = 200
		before := records()
		n := testing.AllocsPerRun(runs, trip)
		// crypto/tls allocates 24 bytes for every record it reads (its atLeastReader). Beyond
		// that only a WINDOW_UPDATE now and then.
		perTrip := float64(records()-before) / (runs + 1)
		if n > perTrip+10*float64(len(buf))/(1<<20) {
			t.Errorf("%s: %v allocations and %v records per round trip", name, n, perTrip)
		}
	}
	tn.app.Close()
	tn.far.Close()
	tn.wait(t)
}
