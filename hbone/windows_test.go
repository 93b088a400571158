package hbone_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
)

// sends is a handler that answers with n bytes.
func sends(t *testing.T, n int) func(*hbone.Incoming) {
	return func(in *hbone.Incoming) {
		s, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := s.Write(bytes.Repeat([]byte{'x'}, n)); err != nil {
			t.Errorf("write: %v", err)
		}
		s.Close()
	}
}

// ledger is a peer's own account of what it may be sent on a stream.
type ledger struct {
	p      *rawPeer
	window int // negative after a smaller SETTINGS_INITIAL_WINDOW_SIZE
	got    int
	ended  bool
}

// take reads frames until a DATA frame of the stream or the answer to what, a PING.
func (l *ledger) take(ping byte) {
	l.p.t.Helper()
	l.p.await("DATA or PING", func(f http2.Frame) bool {
		switch f := f.(type) {
		case *http2.DataFrame:
			n := len(f.Data())
			l.got += n
			if l.window -= n; n > 0 && l.window < 0 {
				l.p.t.Fatalf("DATA of %d bytes, %d beyond the window", n, -l.window)
			}
			l.ended = f.StreamEnded()
			return true
		case *http2.PingFrame:
			return f.IsAck() && f.Data[0] == ping
		}
		return false
	})
}

// settle reads until want bytes have come in all.
func (l *ledger) settle(want int) {
	for l.got < want {
		l.take(0)
	}
}

// TestNegativeWindow shrinks a window below what was sent in it: nothing comes until it
// is positive again, and then everything, once.
//
//ambit:feature hbone-window-games
func TestNegativeWindow(t *testing.T) {
	const size = 200_000
	s := hbonetest.NewServer(t, hbonetest.Options{}, sends(t, size))
	p := dialRaw(t, s)
	p.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 50_000})
	p.fr.WriteWindowUpdate(0, 1<<20)
	p.connect(1, false)
	l := &ledger{p: p, window: 50_000}
	l.settle(50_000)
	p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	l.window = 10 - 50_000
	for _, more := range []int{30_000, 19_989} { // up to -1
		p.fr.WriteWindowUpdate(1, uint32(more))
		l.window += more
		p.fr.WritePing(false, [8]byte{byte(more)})
		before := l.got
		l.take(byte(more))
		if l.got != before || l.window >= 0 {
			t.Fatalf("%d bytes came with a window of %d", l.got-before, l.window)
		}
	}
	p.fr.WriteWindowUpdate(1, 2)
	l.window += 2
	l.settle(50_001)
	p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100_010})
	l.window += 100_000
	l.settle(150_001)
	p.fr.WriteWindowUpdate(1, 1<<20)
	l.window += 1 << 20
	for !l.ended {
		l.take(0)
	}
	if l.got != size {
		t.Errorf("%d bytes", l.got)
	}
}

// TestOneByteWindows: a peer that lets us send a byte at a time gets a byte at a time,
// and its other streams everything meanwhile.
//
//ambit:feature hbone-window-games
func TestOneByteWindows(t *testing.T) {
	const bytes = 2000
	s := hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		if in.Authority == "fast:1" {
			echo(in)
			return
		}
		sends(t, bytes)(in)
	})
	p := dialRaw(t, s)
	p.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	p.connect(1, false)
	p.awaitStatus(1, "200")
	p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: p.block(":method", "CONNECT", ":authority", "fast:1"), EndHeaders: true})
	p.awaitStatus(3, "200")
	p.fr.WriteWindowUpdate(3, 1<<20)
	slow, fast, ended := 0, 0, false
	for slow < bytes {
		p.fr.WriteWindowUpdate(1, 1)
		p.fr.WriteData(3, false, []byte("quick"))
		want := slow + 1
		p.await("a byte, and the echo", func(f http2.Frame) bool {
			switch d, ok := f.(*http2.DataFrame); {
			case !ok:
			case d.StreamID == 3:
				fast += len(d.Data())
			default:
				slow += len(d.Data())
				ended = ended || d.StreamEnded()
			}
			return slow >= want && fast == 5*want
		})
		if slow > want {
			t.Fatalf("%d bytes for a window of %d", slow, want)
		}
	}
	for !ended {
		p.await("END_STREAM", func(f http2.Frame) bool {
			d, ok := f.(*http2.DataFrame)
			ended = ok && d.StreamID == 1 && d.StreamEnded()
			return ended
		})
	}
}

// TestZeroWindowHoldsNothing: streams that may not be sent to cost no buffers, however
// much there is to send.
//
//ambit:feature hbone-window-games
func TestZeroWindowHoldsNothing(t *testing.T) {
	const streams, size = 100, 100_000
	budget := hbone.NewBudget(1 << 30)
	s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{Budget: budget}}, sends(t, size))
	p := dialRaw(t, s)
	p.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	p.fr.WriteWindowUpdate(0, streams*size)
	for i := range streams {
		p.connect(uint32(2*i+1), false)
	}
	for range streams {
		p.await("status", func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders })
	}
	p.fr.WritePing(false, [8]byte{1})
	p.await("PING", func(f http2.Frame) bool {
		if f.Header().Type == http2.FrameData {
			t.Fatal("DATA without a window")
		}
		return f.Header().Type == http2.FramePing
	})
	awaitUsed(t, budget, 0)
	p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
	got, ended := 0, 0
	for ended < streams {
		p.await("DATA", func(f http2.Frame) bool {
			d, ok := f.(*http2.DataFrame)
			if ok {
				got += len(d.Data())
				if d.StreamEnded() {
					ended++
				}
			}
			return ok
		})
	}
	if got != streams*size {
		t.Errorf("%d bytes", got)
	}
}

// TestPaddingIsGivenBack: padding counts against the windows and is nobody's to read, so
// that its credit comes back though the application takes nothing.
//
//ambit:feature hbone-padding
func TestPaddingIsGivenBack(t *testing.T) {
	const frames, window = 2000, 65535
	received := make(chan *hbone.Stream, 1)
	s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{StreamWindow: window, ConnWindow: window}}, func(in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		received <- st
		<-in.Context().Done()
		st.Close()
	})
	p := dialRaw(t, s)
	p.start()
	p.connect(1, false)
	p.awaitStatus(1, "200")
	st := <-received
	stream, conn := window, window
	for range frames {
		for stream < 257 || conn < 257 {
			p.await("WINDOW_UPDATE", func(f http2.Frame) bool {
				w, ok := f.(*http2.WindowUpdateFrame)
				if ok && w.StreamID == 0 {
					conn += int(w.Increment)
				} else if ok {
					stream += int(w.Increment)
				}
				return ok
			})
		}
		p.fr.WriteDataPadded(1, false, []byte{'x'}, make([]byte, 255))
		stream, conn = stream-257, conn-257
	}
	for st.Received() < frames {
		pause()
	}
	if n := st.Backlog(); n != frames {
		t.Errorf("%d bytes held, want the %d that are not padding", n, frames)
	}
}

// TestPeerLowersItsStreamLimit while streams are open: they go on, no others are opened
// until enough have ended, and a higher limit is used at once.
//
//ambit:feature hbone-stream-limit
func TestPeerLowersItsStreamLimit(t *testing.T) {
	s := hbonetest.NewRawServer(t, hbone.Config{})
	c, err := s.Dial(ctx5(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	changed := make(chan struct{}, 100)
	c.Notify(func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	usable := func(want bool) {
		t.Helper()
		for c.Usable() != want {
			<-changed
		}
	}
	nc := <-s.Conns
	defer nc.NetConn().Close() // or our own end waits for it to read the last words
	if _, err := io.ReadFull(nc, make([]byte, len(http2.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(nc, nc)
	limit := func(n uint32) {
		fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: n})
		for acked := false; !acked; {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			sf, ok := f.(*http2.SettingsFrame)
			acked = ok && sf.IsAck()
		}
	}
	var hb bytes.Buffer
	hpack.NewEncoder(&hb).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	var streams []*hbone.Stream
	limit(3)
	answer := make(chan *hbone.Stream)
	for len(streams) < 3 {
		go func() { st, _ := c.Open(ctx5(t), hbone.Request{Authority: "a:1"}); answer <- st }()
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if h, ok := f.(*http2.HeadersFrame); ok {
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: h.StreamID, BlockFragment: hb.Bytes(), EndHeaders: true})
				break
			}
		}
		streams = append(streams, <-answer)
	}
	full := func(when string) {
		t.Helper()
		if _, err := c.Open(ctx5(t), hbone.Request{Authority: "a:1"}); !errors.Is(err, hbone.ErrFull) {
			t.Errorf("%s: %v", when, err)
		}
	}
	full("three of three")
	limit(1)
	for _, st := range streams {
		if _, err := st.Write([]byte("still here")); err != nil {
			t.Errorf("an open stream: %v", err)
		}
	}
	streams[0].Close()
	full("two of one")
	streams[1].Close()
	full("one of one")
	streams[2].Close()
	usable(true)
	limit(0)
	usable(false)
	full("none of none")
	limit(5)
	usable(true)
	if err := c.Err(); err != nil {
		t.Error(err)
	}
}

// TestRapidResetRunsFewHandlers: streams opened and taken back at once (CVE-2023-44487)
// end the connection after a burst, and never more handlers run than streams
// are allowed.
//
//ambit:feature hbone-floods
func TestRapidResetRunsFewHandlers(t *testing.T) {
	running := make(chan struct{}, 400) // twice what is announced
	s := hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		select {
		case running <- struct{}{}:
		default:
			t.Error("too many handlers run")
			return
		}
		<-in.Context().Done()
		in.Reject(503)
		<-running
	})
	p := dialRaw(t, s)
	p.start()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range 20_000 {
			p.connect(uint32(2*i+1), false)
			if p.fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel) != nil {
				return
			}
		}
	}()
	p.awaitGoAway(http2.ErrCodeEnhanceYourCalm)
	p.nc.Close()
	<-sent
	s.Close()
	if len(running) > 0 {
		t.Errorf("%d handlers are left", len(running))
	}
}

// TestResetsOfEndedStreamsCostNothing: they are answered by nothing, and the connection
// goes on.
//
//ambit:feature hbone-floods
func TestResetsOfEndedStreamsCostNothing(t *testing.T) {
	s := hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) { in.Reject(404) })
	p := dialRaw(t, s)
	p.start()
	p.connect(1, false)
	p.awaitReset(1, http2.ErrCodeNo)
	for range 20_000 {
		p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		p.fr.WriteWindowUpdate(1, 1)
	}
	p.connect(3, false)
	f := p.await("an answer", func(f http2.Frame) bool { return f.Header().StreamID != 0 })
	if h, ok := f.(*http2.MetaHeadersFrame); !ok || h.StreamID != 3 || !strings.HasPrefix(h.PseudoValue("status"), "404") {
		t.Errorf("answered with %v", f)
	}
}
