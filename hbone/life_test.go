package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// TestServerGoAway: who drains takes no new streams and ends none.
//
//ambit:feature hbone-goaway
func TestServerGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := hbonetest.NewServer(t, hbonetest.Options{Memory: true}, echo)
		c, err := s.Dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		st := open(t, c, "a:1")
		s.GoAway()
		synctest.Wait()
		if c.Usable() {
			t.Error("still usable")
		}
		if _, err := c.Open(context.Background(), hbone.Request{Authority: "a:1"}); !errors.Is(err, hbone.ErrFull) {
			t.Errorf("open: %v", err)
		}
		time.Sleep(time.Hour) // open streams go on for as long as they like
		mustWrite(t, st, "hello")
		if _, err := io.ReadFull(st, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		st.CloseWrite()
		if _, err := io.ReadAll(st); err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		synctest.Wait()
		if errs := s.Errors(); len(errs) != 1 || errs[0] != nil {
			t.Errorf("Serve returned %v", errs)
		}
	})
}

// TestClientGoAway is the client's turn.
//
//ambit:feature hbone-goaway
func TestClientGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := hbonetest.NewServer(t, hbonetest.Options{Memory: true}, echo)
		c, err := s.Dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		st := open(t, c, "a:1")
		c.GoAway()
		if c.Usable() {
			t.Error("still usable")
		}
		mustWrite(t, st, "hello")
		st.CloseWrite()
		if b, err := io.ReadAll(st); err != nil || string(b) != "hello" {
			t.Errorf("%q %v", b, err)
		}
		<-c.Done()
		synctest.Wait()
		if errs := s.Errors(); len(errs) != 1 || errs[0] != nil {
			t.Errorf("Serve returned %v", errs)
		}
	})
}

//ambit:feature hbone-ping
func TestKeepalive(t *testing.T) {
	t.Run("answered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := hbonetest.Pair(t, hbonetest.Options{Memory: true}, echo)
			time.Sleep(10 * time.Minute)
			if err := c.Err(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("not answered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := hbonetest.NewServer(t, hbonetest.Options{Memory: true, Server: hbone.Config{PingInterval: time.Hour}}, echo)
			nc, err := s.DialRaw()
			if err != nil {
				t.Fatal(err)
			}
			m := &mute{Conn: nc}
			c, err := s.Client(context.Background(), m)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			open(t, c, "a:1")
			m.cut()
			start := time.Now()
			<-c.Done()
			var ce *hbone.ConnError
			if err := c.Err(); !errors.As(err, &ce) || ce.Op != "ping" {
				t.Errorf("error %v", err)
			}
			if d := time.Since(start); d < 20*time.Second || d > 31*time.Second {
				t.Errorf("noticed after %v", d)
			}
		})
	})
}

// mute is a connection whose network can be cut: what is written is lost, and
// nothing arrives.
type mute struct {
	net.Conn
	isCut atomic.Bool
}

func (m *mute) cut() { m.isCut.Store(true) }

func (m *mute) Write(p []byte) (int, error) {
	if m.isCut.Load() {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

func TestStreamDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := hbonetest.Pair(t, hbonetest.Options{Memory: true}, func(in *hbone.Incoming) {
			if _, err := in.Accept(); err == nil {
				<-in.Context().Done()
			}
		})
		s := open(t, c, "a:1")
		s.SetReadDeadline(time.Now().Add(time.Minute))
		start := time.Now()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("read: %v after %v", err, time.Since(start))
		}
		s.SetWriteDeadline(time.Now().Add(time.Minute))
		n, err := s.Write(make([]byte, 8<<20)) // nobody reads: one window goes
		if !errors.Is(err, os.ErrDeadlineExceeded) || n != 256<<10 {
			t.Errorf("write: %d, %v", n, err)
		}
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		s.Close()
	})
}

func TestOpenObeysContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		c := hbonetest.Pair(t, hbonetest.Options{Memory: true}, func(in *hbone.Incoming) {
			<-in.Context().Done()
			ended <- context.Cause(in.Context())
		})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := c.Open(ctx, hbone.Request{Authority: "a:1"})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("open: %v", err)
		}
		var se *hbone.StreamError
		if err := <-ended; !errors.As(err, &se) || se.Code != http2.ErrCodeCancel || !se.Remote {
			t.Errorf("handler saw %v", err)
		}
		synctest.Wait()
		if n := c.Streams(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

func TestHandlerWithoutAnswer(t *testing.T) {
	c := hbonetest.Pair(t, hbonetest.Options{}, func(*hbone.Incoming) {})
	_, err := c.Open(ctx5(t), hbone.Request{Authority: "a:1"})
	var se *hbone.StreamError
	if !errors.As(err, &se) || se.Code != http2.ErrCodeInternal || !se.Remote {
		t.Errorf("open: %v", err)
	}
}

// TestRefusedClient has a certificate the server does not take. TLS 1.3 tells
// the client only once it reads.
func TestRefusedClient(t *testing.T) {
	refused := make(chan error, 1)
	s := hbonetest.NewServer(t, hbonetest.Options{OnHandshakeError: func(err error) { refused <- err }}, echo)
	nc, err := s.DialRaw()
	if err != nil {
		t.Fatal(err)
	}
	cert := hbonetest.NewCA(t).Issue(hbonetest.ClientID, hbonetest.IssueOptions{})
	src := hbonetest.Source{Trust: s.CA.Roots(), Certs: map[identity.ID]*tls.Certificate{hbonetest.ClientID: &cert}}
	c, err := hbone.NewClient(ctx5(t), nc, identity.ClientConfig(src, hbonetest.ClientID, []identity.ID{hbonetest.ServerID}), hbone.Config{})
	if err == nil {
		defer c.Close()
		_, err = c.Open(ctx5(t), hbone.Request{Authority: "a:1"})
	}
	var ce *hbone.ConnError
	if !errors.As(err, &ce) || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("client: %v", err)
	}
	var ve *identity.VerifyError
	if err := <-refused; !errors.As(err, &ve) || ve.Cause != identity.UnknownAuthority {
		t.Errorf("server: %v", err)
	}
}

// TestDoubleTunnel runs one connection inside a stream of another.
func TestDoubleTunnel(t *testing.T) {
	inner := hbonetest.NewServer(t, hbonetest.Options{Memory: true}, echo)
	served := make(chan error, 1)
	outer := hbonetest.Pair(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		s, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		served <- inner.Hbone.Serve(context.Background(), s)
	})
	s := open(t, outer, "svc.example:15008")
	c, err := inner.Client(ctx5(t), s)
	if err != nil {
		t.Fatal(err)
	}
	st := open(t, c, "svc.example:80")
	a, b := tcpPair(t)
	relayed := make(chan error, 1)
	go func() { relayed <- st.Relay(b) }()
	checkEcho(t, 3, 10<<20, a, a)
	if err := <-relayed; err != nil {
		t.Error(err)
	}
	c.Close()
	if err := <-served; err != nil {
		t.Errorf("inner server: %v", err)
	}
}

// TestNothingIsLeft opens and ends everything in every way and counts goroutines and
// descriptors.
func TestNothingIsLeft(t *testing.T) {
	round := func(t *testing.T) {
		ts := newTunnels(t, hbonetest.Options{})
		for i := range 10 {
			tn := ts.open()
			mustWrite(t, tn.app, "x")
			io.ReadFull(tn.far, make([]byte, 1))
			switch i % 5 {
			case 0:
				tn.app.Close()
				tn.far.Close()
			case 1:
				reset(tn.app)
			case 2:
				tn.server.Abort(errors.New("x"))
			case 3:
				tn.client.Cancel()
				tn.far.Close()
			case 4:
				go tn.app.Write(make([]byte, 8<<20))
				for tn.server.Backlog() == 0 {
					pause()
				}
				tn.server.Abort(errors.New("x"))
			}
			tn.wait(t)
		}
	}
	t.Run("warm", round)
	fds, stacks := openFiles(t), len(ours())
	t.Run("round", round)
	for i := 0; ; i++ {
		left := ours()
		if n := openFiles(t); n <= fds && len(left) <= stacks {
			return
		} else if i == 3000 {
			t.Fatalf("%d descriptors, %d before; goroutines:\n%s", n, fds, strings.Join(left, "\n\n"))
		}
		pause()
	}
}

func openFiles(t *testing.T) int {
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(e)
}

// ours are the goroutines in this package's code.
func ours() []string {
	buf := make([]byte, 1<<20)
	var s []string
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "ambit/hbone.") {
			s = append(s, g)
		}
	}
	return s
}

// TestIdleTunnelMemory measures what an idle tunnel costs both proxies together.
func TestIdleTunnelMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	const n = 500
	s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{MaxStreams: 1000}}, func(in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			return
		}
		a, b := tcpPair(t)
		go io.Copy(b, b)
		st.Relay(a)
	})
	c, err := s.Dial(ctx5(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	open(t, c, "warm:1")
	before := heap()
	for range n {
		st := open(t, c, "10.0.0.1:80")
		a, b := tcpPair(t)
		go st.Relay(b)
		mustWrite(t, a, strings.Repeat("x", 1024))
		if _, err := io.ReadFull(a, make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%.1f KB for a tunnel in both proxies and its two applications", float64(heap()-before)/n/1024)
}
