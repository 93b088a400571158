package hbone_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
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

// TestRefusedRequestsAreTold: what no handler sees is still told, once.
func TestRefusedRequestsAreTold(t *testing.T) {
	told := make(chan error, 10)
	s := hbonetest.NewServer(t, hbonetest.Options{}, echo)
	s.Hbone.OnRefused = func(_ netip.AddrPort, err error) { told <- err }
	p := dialRaw(t, s)
	p.start()
	for i, tc := range []struct {
		code  http2.ErrCode
		block []string
	}{
		{http2.ErrCodeProtocol, []string{":method", "CONNECT"}},
		{http2.ErrCodeProtocol, []string{":method", "CONNECT", ":authority", "a:1", "Upper", "case"}},
		{http2.ErrCodeEnhanceYourCalm, []string{":method", "CONNECT", ":authority", "a:1",
			"a", strings.Repeat("x", 9000), "b", strings.Repeat("x", 9000), "c", strings.Repeat("x", 9000), "d", strings.Repeat("x", 9000),
			"e", strings.Repeat("x", 9000), "f", strings.Repeat("x", 9000), "g", strings.Repeat("x", 9000), "h", strings.Repeat("x", 9000)}},
	} {
		id := uint32(2*i + 1)
		block := p.block(tc.block...)
		first := min(len(block), 16384)
		p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:first], EndHeaders: first == len(block)})
		for block = block[first:]; len(block) > 0; {
			n := min(len(block), 16384)
			p.fr.WriteContinuation(id, n == len(block), block[:n])
			block = block[n:]
		}
		p.awaitReset(id, tc.code)
		var se *hbone.StreamError
		if err := <-told; !errors.As(err, &se) || se.Code != tc.code {
			t.Errorf("%d: told %v", i, err)
		}
	}
	p.nc.Close()
	s.Close()
	if len(told) > 0 {
		t.Errorf("told once more: %v", <-told)
	}
}
