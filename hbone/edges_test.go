package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestOpenDuringSettings opens streams while the peer changes the initial
// window; each must end up with the last one, however the two interleave.
func TestOpenDuringSettings(t *testing.T) {
	c, stop := parser(true, nil)
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	var opened sync.WaitGroup
	for range 4 {
		opened.Go(func() {
			for range 500 {
				opened.Go(func() { c.Open(ctx, Request{Authority: "a:1"}) })
			}
		})
	}
	c.mu.Lock()
	c.peerStreams = maxWindow
	c.mu.Unlock()
	window := uint32(1000)
	for {
		c.mu.Lock()
		n := len(c.streams)
		c.mu.Unlock()
		if n == 2000 {
			break
		}
		window++
		var b bytes.Buffer
		http2.NewFramer(&b, nil).WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
		c.in.abuse = bucket{}
		c.out.mu.Lock()
		c.out.answers = 0
		c.out.mu.Unlock()
		if _, err := c.in.parse(b.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	wrong := 0
	for _, s := range c.streams {
		if s.send.window != int64(window) {
			wrong++
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d streams have another window than %d", wrong, len(c.streams), window)
	}
	cancel()
	opened.Wait()
}

// TestSpentStreamNumbers: a connection without stream numbers left is retired.
func TestSpentStreamNumbers(t *testing.T) {
	c, stop := parser(true, nil)
	defer stop()
	c.mu.Lock()
	c.nextID = maxWindow
	c.mu.Unlock()
	if c.Retired() || !c.Acquire(1) {
		t.Fatal("retired with a number left")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c.OpenAcquired(ctx, Request{Authority: "a:1"}) // gave up before it took the number
	c.mu.Lock()
	c.nextID += 2
	c.mu.Unlock()
	if !c.Retired() || c.Usable() || c.Acquire(1) {
		t.Error("still in use without stream numbers")
	}
}

// TestForgedPong: only the payload we sent is an answer.
func TestForgedPong(t *testing.T) {
	c, stop := parser(true, nil)
	defer stop()
	c.startPing()
	c.pingDue()
	c.pong([8]byte{'k', 'e', 'e', 'p'})
	c.mu.Lock()
	waiting, data := c.ping.waiting, c.ping.data
	c.mu.Unlock()
	if !waiting {
		t.Error("a made-up PING answer counts")
	}
	c.pong(data)
	c.mu.Lock()
	waiting = c.ping.waiting
	c.mu.Unlock()
	if waiting {
		t.Error("the answer does not count")
	}
}

// TestConnectionEndsBehindEndStream: the peer may close the connection as soon
// as it reads our END_STREAM, before CloseWrite has returned. The tunnel has
// ended in order; what waits for the application still reaches it.
func TestConnectionEndsBehindEndStream(t *testing.T) {
	c, stop := parser(true, nil)
	defer stop()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	app, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := newStream(c, 1, minWindow)
	c.mu.Lock()
	c.nextID, c.active = 3, 1
	c.streams[1] = s
	c.mu.Unlock()
	want := bytes.Repeat([]byte("tail "), 1000)
	s.holdLocked([][]byte{want})
	s.receiveEnd()
	relayed := make(chan error)
	go func() { relayed <- s.Relay(nc.(*net.TCPConn)) }()
	got, err := io.ReadAll(app)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// CloseWrite as far as its frame is on its way.
	s.send.mu.Lock()
	s.send.closed = true
	s.halves.Or(endQueued)
	s.send.mu.Unlock()
	c.fail(&ConnError{Op: "read", Err: ErrPeerClosed})
	s.ended(sendEnded)
	app.Close()
	if err := <-relayed; err != nil {
		var ce *ConnError
		t.Errorf("relay: %v (connection error: %v)", err, errors.As(err, &ce))
	}
}

// stuck is a record layer whose peer does not read.
type stuck struct {
	discard
	release chan struct{}
}

func (r stuck) Write([][]byte) error { <-r.release; return nil }

// TestPeerThatNeverReads: requests whose answers pile up end the connection.
func TestPeerThatNeverReads(t *testing.T) {
	handled := make(chan struct{}, 1)
	c, stop := parser(false, func(in *Incoming) {
		in.Reject(400)
		handled <- struct{}{}
	})
	release := make(chan struct{})
	c.rec = stuck{release: release}
	defer stop()
	defer close(release)
	c.out.writing = true // somebody writes, and is stuck
	if _, err := c.in.parse(frames(func(*http2.Framer, func(...string) []byte) {})); err != nil {
		t.Fatal(err)
	}
	var hb bytes.Buffer
	hpack.NewEncoder(&hb).WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	hpack.NewEncoder(&hb).WriteField(hpack.HeaderField{Name: ":authority", Value: "x"})
	for id := uint32(1); id < 400_000; id += 2 {
		var b bytes.Buffer
		http2.NewFramer(&b, nil).WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: hb.Bytes(), EndHeaders: true})
		if _, err := c.in.parse(b.Bytes()); err != nil {
			var ce *ConnError
			if !errors.As(err, &ce) || ce.Code != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("ended with %v", err)
			}
			return
		}
		<-handled
	}
	t.Errorf("%d bytes of answers wait", c.out.staged)
}

// TestStalledHandshakeHoldsNoBuffer: anybody can begin a handshake.
func TestStalledHandshakeHoldsNoBuffer(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	b := newGatherConn(ours)
	sent := []byte{22, 3, 1, 0, 4, 'a', 'b', 'c', 'd', 23, 3, 3, 0, 1, 'x'}
	go theirs.Write(sent)
	var got []byte
	for len(got) < len(sent) {
		p := make([]byte, 600)
		n, err := b.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p[:n]...)
		if b.buf != nil {
			t.Fatalf("holds a buffer of %d bytes", len(b.buf))
		}
	}
	if !bytes.Equal(got, sent) || b.left != 0 {
		t.Errorf("%x, %d left", got, b.left)
	}
}
