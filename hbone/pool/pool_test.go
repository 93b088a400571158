package pool

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
)

var key = Key{SourceUID: "src", DestinationUID: "dst", Addr: netip.MustParseAddrPort("10.0.0.1:15008"), Peers: "spiffe://x"}

func echo(in *hbone.Incoming) {
	s, err := in.Accept()
	if err != nil {
		return
	}
	io.Copy(s, s)
	s.Close()
}

// lab is a pool in front of one server, in memory.
type lab struct {
	t     *testing.T
	p     *Pool
	s     *hbonetest.Server
	dials atomic.Int32
}

func newLab(t *testing.T, cfg Config, o hbonetest.Options) *lab {
	o.Memory = true
	l := &lab{t: t, p: New(cfg), s: hbonetest.NewServer(t, o, echo)}
	t.Cleanup(func() { l.p.Close() })
	return l
}

func (l *lab) dial(ctx context.Context) (*hbone.Conn, error) {
	l.dials.Add(1)
	return l.s.Dial(ctx)
}

func (l *lab) open() *hbone.Stream {
	l.t.Helper()
	s, err := l.p.Open(context.Background(), key, l.dial, hbone.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// end closes s and waits until the far end has done so as well.
func end(t *testing.T, s *hbone.Stream) {
	t.Helper()
	s.CloseWrite()
	if _, err := io.ReadAll(s); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func (l *lab) counts(dials int32, conns int) {
	l.t.Helper()
	if d, n := l.dials.Load(), l.p.Len(); d != dials || n != conns {
		l.t.Fatalf("%d dials and %d connections, want %d and %d", d, n, dials, conns)
	}
}

//ambit:feature hbone-pool-reuse
func TestReuseAndLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{MaxStreams: 2}, hbonetest.Options{})
		a, b := l.open(), l.open()
		l.counts(1, 1)
		c := l.open() // the first connection is full
		l.counts(2, 2)
		end(t, a)
		synctest.Wait()
		d := l.open()
		l.counts(2, 2)
		for _, s := range []*hbone.Stream{b, c, d} {
			end(t, s)
		}
	})
}

//ambit:feature security-tunnels-apart
func TestKeysAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, hbonetest.Options{})
		for _, k := range []Key{key, {SourceUID: "other"}, {SourceUID: "src", Peers: "y"}} {
			s, err := l.p.Open(context.Background(), k, l.dial, hbone.Request{Authority: "a:1"})
			if err != nil {
				t.Fatal(err)
			}
			end(t, s)
		}
		l.counts(3, 3)
		l.p.CloseSource("other")
		l.counts(3, 2)
	})
}

//ambit:feature hbone-pool-idle
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{Idle: 5 * time.Minute}, hbonetest.Options{})
		s := l.open()
		time.Sleep(20 * time.Minute) // fake time; in use, so it stays
		l.counts(1, 1)
		end(t, s)
		time.Sleep(4 * time.Minute)
		s = l.open()
		l.counts(1, 1)
		end(t, s)
		time.Sleep(4*time.Minute + 50*time.Second)
		synctest.Wait()
		l.counts(1, 1)
		time.Sleep(15 * time.Second)
		synctest.Wait()
		l.counts(1, 0)
		end(t, l.open())
		l.counts(2, 1)
	})
}

//ambit:feature hbone-pool-reuse
func TestConcurrentCallersShareOneDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, hbonetest.Options{})
		gate := make(chan struct{})
		dial := func(ctx context.Context) (*hbone.Conn, error) {
			select {
			case <-gate:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return l.dial(ctx)
		}
		first, cancel := context.WithCancel(context.Background())
		firstErr := make(chan error, 1)
		go func() {
			_, err := l.p.Open(first, key, dial, hbone.Request{Authority: "a:1"})
			firstErr <- err
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				s, err := l.p.Open(context.Background(), key, dial, hbone.Request{Authority: "a:1"})
				if err != nil {
					t.Error(err)
					return
				}
				end(t, s)
			})
		}
		synctest.Wait()
		cancel() // the caller who began the dial gives up; the others must not notice
		if err := <-firstErr; !errors.Is(err, context.Canceled) {
			t.Errorf("first caller: %v", err)
		}
		close(gate)
		wg.Wait()
		l.counts(1, 1)
	})
}

func TestDialIsGivenUpWithItsLastCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, hbonetest.Options{})
		gone := make(chan struct{})
		dial := func(ctx context.Context) (*hbone.Conn, error) {
			<-ctx.Done()
			close(gone)
			return nil, ctx.Err()
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := l.p.Open(ctx, key, dial, hbone.Request{Authority: "a:1"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		<-gone
		end(t, l.open()) // a later caller dials anew
		l.counts(1, 1)
	})
}

func TestDialErrorIsEveryonesAndNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, hbonetest.Options{})
		boom := errors.New("boom")
		gate := make(chan struct{})
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				_, err := l.p.Open(context.Background(), key, func(context.Context) (*hbone.Conn, error) {
					<-gate
					return nil, boom
				}, hbone.Request{Authority: "a:1"})
				if !errors.Is(err, boom) {
					t.Errorf("error %v", err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		end(t, l.open())
	})
}

//ambit:feature hbone-pool-reuse
func TestMaxConnsPerKeyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{MaxStreams: 1, MaxConnsPerKey: 1}, hbonetest.Options{})
		s := l.open()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := l.p.Open(ctx, key, l.dial, hbone.Request{Authority: "a:1"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
		got := make(chan *hbone.Stream)
		go func() { got <- l.open() }()
		synctest.Wait()
		end(t, s)
		end(t, <-got)
		l.counts(1, 1)
	})
}

func TestGoAwayMovesNewStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, hbonetest.Options{})
		old := l.open()
		l.s.GoAway()
		synctest.Wait()
		time.Sleep(2 * time.Second)
		l.counts(1, 1) // it drains
		if _, err := old.Write([]byte("still here")); err != nil {
			t.Fatal(err)
		}
		end(t, old)
		synctest.Wait()
		l.counts(1, 0)
	})
}

func TestStaleConnectionIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, hbonetest.Options{})
		var raw []net.Conn
		dial := func(ctx context.Context) (*hbone.Conn, error) {
			nc, err := l.s.DialRaw()
			if err != nil {
				return nil, err
			}
			raw = append(raw, nc)
			return l.s.Client(ctx, nc)
		}
		for range 3 {
			s, err := l.p.Open(context.Background(), key, dial, hbone.Request{Authority: "a:1"})
			if err != nil {
				t.Fatal(err)
			}
			end(t, s)
			raw[len(raw)-1].Close() // and the pool may or may not have seen it yet
		}
	})
}

func TestClosedPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, hbonetest.Options{})
		s := l.open()
		l.p.Close()
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("stream outlived its pool")
		}
		if _, err := l.p.Open(context.Background(), key, l.dial, hbone.Request{Authority: "a:1"}); !errors.Is(err, ErrClosed) {
			t.Errorf("error %v", err)
		}
	})
}
