package pool

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
)

// bulk moves so much over s, there and back, that its connection is busy for the
// next sample.
func bulk(t *testing.T, s *hbone.Stream) {
	t.Helper()
	const size = 8 << 20
	sent := make(chan error, 1)
	go func() {
		buf := make([]byte, 64<<10)
		var err error
		for n := 0; n < size && err == nil; n += len(buf) {
			_, err = s.Write(buf)
		}
		sent <- err
	}()
	if _, err := io.CopyN(io.Discard, s, size); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// TestBusyConnectionsSpread: streams opened while connections are busy get further
// ones, up to the bound; with nothing to do those are closed again.
//
//ambit:feature hbone-spreading
func TestBusyConnectionsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{SpreadConns: 3, Idle: time.Minute}, hbonetest.Options{})
		first := l.open() // also the first sample
		conns := map[*hbone.Conn]int{first.Conn(): 1}
		streams := []*hbone.Stream{first}
		for range 5 {
			// Everything that is there is busy.
			for c := range conns {
				for _, s := range streams {
					if s.Conn() == c {
						bulk(t, s)
						break
					}
				}
			}
			time.Sleep(sampleTime)
			s := l.open()
			streams = append(streams, s)
			conns[s.Conn()]++
			synctest.Wait() // for a dial that was started for it
		}
		l.counts(3, 3)
		if len(conns) != 3 {
			t.Errorf("streams by connection: %v", conns)
		}
		for c, n := range conns {
			if n > 4 {
				t.Errorf("%d streams on %v", n, c)
			}
		}
		// Idle connections are no longer busy: one takes all there is.
		time.Sleep(10 * time.Second)
		a, b := l.open(), l.open()
		if a.Conn() != b.Conn() {
			t.Error("little to do, and two connections are used")
		}
		for _, s := range append(streams, a, b) {
			end(t, s)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		l.counts(3, 0)
	})
}

// TestOneStreamDoesNotBlockAnother: what one stream's reader leaves lying does not hold
// up another's messages, on the same connection.
//
//ambit:feature hbone-spreading
func TestOneStreamDoesNotBlockAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{SpreadConns: 1}, hbonetest.Options{})
		stalled, other := l.open(), l.open()
		if stalled.Conn() != other.Conn() {
			t.Fatal("two connections")
		}
		go func() {
			for buf := make([]byte, 64<<10); ; {
				if _, err := stalled.Write(buf); err != nil { // the echo is not read
					return
				}
			}
		}()
		synctest.Wait() // it can send no more
		for i := range 1000 {
			msg := fmt.Appendf(nil, "message %d", i)
			if _, err := other.Write(msg); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(other, got); err != nil || !bytes.Equal(got, msg) {
				t.Fatalf("%q %v", got, err)
			}
		}
		stalled.Reset()
		end(t, other)
	})
}

// TestRefusedStreamsAreTriedElsewhere: a peer that drains names the last stream it looks
// at; those behind it are opened on another connection, unnoticed, and the ones before
// go on.
//
//ambit:feature hbone-goaway
func TestRefusedStreamsAreTriedElsewhere(t *testing.T) {
	s := hbonetest.NewRawServer(t, hbone.Config{})
	p := New(Config{})
	defer p.Close()
	var far []io.Closer
	defer func() {
		for _, c := range far {
			c.Close() // or the pool waits for them to read its last words
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	type opened struct {
		s   *hbone.Stream
		err error
	}
	openOne := func() chan opened {
		got := make(chan opened, 1)
		go func() {
			s, err := p.Open(ctx, key, s.Dial, hbone.Request{Authority: "a:1"})
			got <- opened{s, err}
		}()
		return got
	}
	var ok bytes.Buffer
	hpack.NewEncoder(&ok).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	accept := func() *http2.Framer {
		nc := <-s.Conns
		far = append(far, nc.NetConn())
		if _, err := io.ReadFull(nc, make([]byte, len(http2.ClientPreface))); err != nil {
			t.Fatal(err)
		}
		fr := http2.NewFramer(nc, nc)
		fr.WriteSettings()
		return fr
	}
	request := func(fr *http2.Framer) uint32 {
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if f.Header().Type == http2.FrameHeaders {
				return f.Header().StreamID
			}
		}
	}
	answer := func(fr *http2.Framer, id uint32) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: ok.Bytes(), EndHeaders: true})
	}
	one := openOne()
	fr := accept()
	answer(fr, request(fr))
	kept := <-one
	if kept.err != nil {
		t.Fatal(kept.err)
	}
	two, three := openOne(), openOne()
	request(fr)
	request(fr)
	fr.WriteGoAway(1, http2.ErrCodeNo, nil)

	other := accept()
	answer(other, request(other))
	answer(other, request(other))
	for _, c := range []chan opened{two, three} {
		if r := <-c; r.err != nil || r.s.Conn() == kept.s.Conn() {
			t.Errorf("behind the GOAWAY: %v", r.err)
		}
	}
	fr.WriteData(1, true, []byte("still here"))
	if b, err := io.ReadAll(kept.s); err != nil || string(b) != "still here" {
		t.Errorf("before it: %q, %v", b, err)
	}
	kept.s.Close()

	// A single stream that is refused, without a GOAWAY, is tried again as well.
	four := openOne()
	other.WriteRSTStream(request(other), http2.ErrCodeRefusedStream)
	answer(other, request(other))
	if r := <-four; r.err != nil {
		t.Errorf("a refused stream: %v", r.err)
	}
}
