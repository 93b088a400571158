package hbone_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
)

// TestDrainedTailArrives: a drained server closes after its last stream, while
// the client, slow to read, has not got the end of it and still sends.
func TestDrainedTailArrives(t *testing.T) {
	const size = 3 << 20
	accepted := make(chan struct{})
	s := hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		close(accepted)
		st.Write(make([]byte, size))
		st.CloseWrite()
		io.Copy(io.Discard, st)
	})
	p := dialRaw(t, s)
	p.tcp.SetReadBuffer(64 << 10)
	p.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 8 << 20})
	p.fr.WriteWindowUpdate(0, 8<<20)
	p.connect(1, true)
	<-accepted
	s.GoAway()
	got, ended := 0, false
	ping := func() { p.fr.WritePing(false, [8]byte{1}) } // what makes a closed socket answer with a reset
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			if !ended || got != size {
				t.Fatalf("%d bytes of %d, END_STREAM %v, then %v", got, size, ended, err)
			}
			return
		}
		switch f := f.(type) {
		case *http2.PingFrame:
			if !f.IsAck() {
				p.fr.WritePing(true, f.Data)
			}
		case *http2.DataFrame:
			got += len(f.Data())
			ended = f.StreamEnded()
			if got%7 == 0 || got > size/2 && got < size/2+100_000 {
				ping()
			}
		}
		if ended {
			p.nc.Close()
		}
	}
}

// TestDrainDoesNotBreakHandshakes: a connection accepted just before a drain is
// told by GOAWAY, not by a broken handshake.
func TestDrainDoesNotBreakHandshakes(t *testing.T) {
	s := hbonetest.NewServer(t, hbonetest.Options{OnHandshakeError: func(err error) { t.Errorf("handshake: %v", err) }}, echo)
	nc, err := s.DialRaw()
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Conn: nc, reading: make(chan struct{}), open: make(chan struct{})}
	type result struct {
		c   *hbone.Conn
		err error
	}
	done := make(chan result)
	go func() {
		c, err := s.Client(context.Background(), g)
		done <- result{c, err}
	}()
	<-g.reading // our hello is out
	s.GoAway()
	close(g.open)
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.c.Close()
	<-r.c.Done()
	if err := r.c.Err(); !errors.Is(err, hbone.ErrPeerClosed) {
		t.Errorf("ended with %v", err)
	}
}

// gate is a connection that reads nothing until it is opened.
type gate struct {
	net.Conn
	first         atomic.Bool
	reading, open chan struct{}
}

func (g *gate) Read(p []byte) (int, error) {
	if !g.first.Swap(true) {
		close(g.reading)
	}
	<-g.open
	return g.Conn.Read(p)
}
