package hbone_test

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
)

func TestHalfClose(t *testing.T) {
	ts := newTunnels(t, hbonetest.Options{})
	for _, order := range []string{"client first", "server first"} {
		t.Run(order, func(t *testing.T) {
			tn := ts.open()
			first, second := tn.app, tn.far
			if order == "server first" {
				first, second = second, first
			}
			mustWrite(t, first, "question")
			first.CloseWrite()
			if b, err := io.ReadAll(second); err != nil || string(b) != "question" {
				t.Fatalf("%q %v", b, err)
			}
			// The other direction goes on for as long as it likes.
			for range 3 {
				mustWrite(t, second, "part of the answer ")
				b := make([]byte, 19)
				if _, err := io.ReadFull(first, b); err != nil {
					t.Fatal(err)
				}
			}
			mustWrite(t, second, "end")
			second.CloseWrite()
			if b, err := io.ReadAll(first); err != nil || string(b) != "end" {
				t.Fatalf("%q %v", b, err)
			}
			if c, s := tn.wait(t); c != nil || s != nil {
				t.Errorf("client %v, server %v", c, s)
			}
		})
	}
	if n := ts.c.Streams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
}

func mustWrite(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
}

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

func wantReset(t testing.TB, c *net.TCPConn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
}

//ambit:feature hbone-reset
func TestResetPasses(t *testing.T) {
	ts := newTunnels(t, hbonetest.Options{})
	check := func(t *testing.T, near, far error) {
		t.Helper()
		var se *hbone.StreamError
		if !errors.As(near, &se) || se.Remote || se.Code != http2.ErrCodeConnect || !errors.Is(near, syscall.ECONNRESET) && !errors.Is(near, syscall.EPIPE) {
			t.Errorf("relay next to the reset: %v", near)
		}
		se = nil
		if !errors.As(far, &se) || !se.Remote || se.Code != http2.ErrCodeConnect {
			t.Errorf("relay far from the reset: %v", far)
		}
	}
	t.Run("by the client's application", func(t *testing.T) {
		tn := ts.open()
		reset(tn.app)
		wantReset(t, tn.far)
		c, s := tn.wait(t)
		check(t, c, s)
	})
	t.Run("by the server's application", func(t *testing.T) {
		tn := ts.open()
		reset(tn.far)
		wantReset(t, tn.app)
		c, s := tn.wait(t)
		check(t, s, c)
	})
	t.Run("after a half-close", func(t *testing.T) {
		tn := ts.open()
		tn.app.CloseWrite()
		if b, err := io.ReadAll(tn.far); err != nil || len(b) != 0 {
			t.Fatal(err)
		}
		reset(tn.far)
		wantReset(t, tn.app)
		c, s := tn.wait(t)
		check(t, s, c)
	})
	t.Run("by the half that had closed", func(t *testing.T) {
		tn := ts.open()
		tn.app.CloseWrite()
		if b, err := io.ReadAll(tn.far); err != nil || len(b) != 0 {
			t.Fatal(err)
		}
		reset(tn.app)
		c, s := tn.wait(t)
		check(t, c, s)
		// Having read EOF it goes on reading EOF, but cannot write any more.
		if _, err := tn.far.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write: %v", err)
		}
	})
	t.Run("in the middle of data", func(t *testing.T) {
		tn := ts.open()
		failed := make(chan error, 1)
		go func() {
			_, err := io.Copy(tn.app, endless{})
			failed <- err
		}()
		io.ReadFull(tn.far, make([]byte, 1<<20))
		reset(tn.far)
		if err := <-failed; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write: %v, want a reset", err)
		}
		c, s := tn.wait(t)
		check(t, s, c)
	})
	if n := ts.c.Streams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
}

//ambit:feature hbone-reset
func TestCancelIsAnOrderlyEnd(t *testing.T) {
	ts := newTunnels(t, hbonetest.Options{})
	tn := ts.open()
	mustWrite(t, tn.app, "all of it")
	b := make([]byte, 9)
	io.ReadFull(tn.far, b)
	tn.server.Cancel()
	if b, err := io.ReadAll(tn.app); err != nil || len(b) != 0 {
		t.Errorf("client's application: %q %v", b, err)
	}
	c, s := tn.wait(t)
	if c != nil || s == nil {
		t.Errorf("client %v, server %v", c, s)
	}
}

func TestAbort(t *testing.T) {
	ts := newTunnels(t, hbonetest.Options{})
	tn := ts.open()
	denied := errors.New("policy changed")
	tn.server.Abort(denied)
	wantReset(t, tn.app)
	wantReset(t, tn.far)
	c, s := tn.wait(t)
	if s != denied {
		t.Errorf("server relay: %v", s)
	}
	var se *hbone.StreamError
	if !errors.As(c, &se) || !se.Remote || se.Code != http2.ErrCodeConnect {
		t.Errorf("client relay: %v", c)
	}
}

func TestConnectionEndResetsTunnels(t *testing.T) {
	ts := newTunnels(t, hbonetest.Options{})
	tn := ts.open()
	ts.c.Close()
	wantReset(t, tn.app)
	wantReset(t, tn.far)
	c, s := tn.wait(t)
	var ce *hbone.ConnError
	if !errors.As(c, &ce) || !errors.Is(c, hbone.ErrClosed) {
		t.Errorf("client relay: %v", c)
	}
	if ce = nil; !errors.As(s, &ce) {
		t.Errorf("server relay: %v", s)
	}
}

// TestStalledReader has one application that reads nothing. Its neighbour must not
// notice, and what is held for it is bounded by its stream window.
//
//ambit:feature hbone-backpressure
func TestStalledReader(t *testing.T) {
	const window = 1 << 20
	ts := newTunnels(t, hbonetest.Options{Server: hbone.Config{StreamWindow: window, ConnWindow: 2 << 20}})
	stalled, other := ts.open(), ts.open()
	wrote := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(stalled.app, endless{})
		wrote <- n
	}()
	const size = 64 << 20 // many connection windows
	for round := range 2 {
		go func() {
			other.app.Write(make([]byte, size))
			if round == 1 {
				other.app.CloseWrite()
			}
		}()
		if _, err := io.ReadFull(other.far, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	if n := stalled.server.Backlog(); n > window {
		t.Errorf("%d bytes held for a window of %d", n, window)
	}
	if n := stalled.client.Sent(); n < window {
		t.Errorf("the stalled stream sent %d bytes only", n)
	}
	reset(stalled.app)
	<-wrote
	stalled.wait(t)
	other.far.CloseWrite()
	if c, s := other.wait(t); c != nil || s != nil {
		t.Errorf("client %v, server %v", c, s)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestStalledReaderCatchesUp drains a backlog and checks every byte.
//
//ambit:feature hbone-backpressure
func TestStalledReaderCatchesUp(t *testing.T) {
	ts := newTunnels(t, hbonetest.Options{Server: hbone.Config{FirstWindow: 4 << 20}})
	tn := ts.open()
	sum := make(chan string, 1)
	go func() {
		h, err := random(tn.app, 7, 30<<20)
		if err != nil {
			t.Error(err)
		}
		tn.app.CloseWrite()
		sum <- string(h.Sum(nil))
	}()
	for tn.server.Backlog() < 1<<20 {
		pause()
	}
	got, n, err := sumOf(tn.far)
	if err != nil || n != 30<<20 || got != <-sum {
		t.Errorf("%d bytes, %v", n, err)
	}
	tn.far.CloseWrite()
	if c, s := tn.wait(t); c != nil || s != nil {
		t.Errorf("client %v, server %v", c, s)
	}
}
