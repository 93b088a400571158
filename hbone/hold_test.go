package hbone_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
)

// TestPartsBoundTheirOwn: one part full of what nobody reads costs another nothing.
//
//ambit:feature hbone-quota-backlog
func TestPartsBoundTheirOwn(t *testing.T) {
	whole := hbone.NewBudget(8 << 20)
	parts := []*hbone.Budget{whole.Part(1 << 20), whole.Part(4 << 20)}
	type pair struct {
		c    *hbone.Conn
		ends chan *hbone.Stream
	}
	var pairs []pair
	for _, part := range parts {
		p := pair{ends: make(chan *hbone.Stream, 1)}
		p.c = hbonetest.Pair(t, hbonetest.Options{Server: hbone.Config{Budget: part, FirstWindow: 4 << 20}}, func(in *hbone.Incoming) {
			s, err := in.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			p.ends <- s
			<-in.Context().Done()
			s.Close()
		})
		pairs = append(pairs, p)
	}
	other := open(t, pairs[1].c, "a:1")
	otherEnd := <-pairs[1].ends
	if _, err := other.Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	for otherEnd.Backlog() < 2<<20 {
		pause()
	}
	full := open(t, pairs[0].c, "a:1")
	fullEnd := <-pairs[0].ends
	for err := error(nil); err == nil; {
		_, err = full.Write(make([]byte, 100_000))
	}
	if _, err := io.ReadAll(fullEnd); !errors.Is(err, hbone.ErrShare) || errors.Is(err, hbone.ErrMemory) {
		t.Errorf("the part's own ended with %v", err)
	}
	other.CloseWrite()
	if b, err := io.ReadAll(otherEnd); err != nil || len(b) != 2<<20 {
		t.Errorf("the other part's: %d bytes, %v", len(b), err)
	}
	full.Close()
	other.Close()
	awaitUsed(t, whole, 0)
	awaitUsed(t, parts[0], 0)
}

// TestUnfinishedInputIsCounted: whoever stops in the middle of a record, a frame or a
// header block makes us hold no more than he sent once memory is tight, and it
// is counted.
//
//ambit:feature hbone-unfinished
func TestUnfinishedInputIsCounted(t *testing.T) {
	for _, tc := range []struct {
		name  string
		send  func(p *rawPeer)
		loose int64 // at most, while memory is not tight
		tight int64
	}{
		{"half a TLS record", func(p *rawPeer) {
			p.tcp.Write(append([]byte{0x17, 3, 3, 0x40, 0}, make([]byte, 1000)...))
		}, 256 << 10, 1005},
		{"half a frame", func(p *rawPeer) {
			p.nc.Write(append([]byte{0, 0x40, 0, byte(http2.FrameHeaders), 0, 0, 0, 0, 1}, make([]byte, 2000)...))
		}, 2009, 2009},
		{"half a header block", func(p *rawPeer) {
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT", "x", strings.Repeat("v", 3000))})
		}, 3200, 3200},
	} {
		for _, tight := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, tight %v", tc.name, tight), func(t *testing.T) {
				budget := hbone.NewBudget(4 << 20)
				s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{Budget: budget, FirstWindow: 4 << 20}}, func(in *hbone.Incoming) {
					if st, err := in.Accept(); err == nil {
						<-in.Context().Done()
						st.Close()
					}
				})
				held := int64(0)
				if tight {
					c, err := s.Dial(ctx5(t))
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if _, err := open(t, c, "a:1").Write(make([]byte, 5<<19)); err != nil {
						t.Fatal(err)
					}
					held = 5 << 19
					awaitHeld(t, budget, held, held)
				}
				p := dialRaw(t, s)
				p.start()
				p.fr.WritePing(false, [8]byte{7})
				p.await("answer", func(f http2.Frame) bool { return f.Header().Type == http2.FramePing })
				tc.send(p)
				most := tc.loose
				if tight {
					most = tc.tight
				}
				awaitHeld(t, budget, held+1000, held+most)
				p.tcp.Close()
				awaitHeld(t, budget, held, held)
			})
		}
	}
}

// awaitHeld waits until what is held lies between least and most, and stays.
func awaitHeld(t *testing.T, b *hbone.Budget, least, most int64) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for same := 0; same < 5; pause() {
		if n := b.Used(); n >= least && n <= most {
			same++
			continue
		}
		same = 0
		if time.Now().After(end) {
			t.Fatalf("%d bytes are held, want %d to %d", b.Used(), least, most)
		}
	}
}

// TestLargeRequestsAreCounted: headers of requests that are not answered yet are memory
// like any other.
//
//ambit:feature hbone-header-flood
func TestLargeRequestsAreCounted(t *testing.T) {
	const requests, size = 150, 60_000
	budget := hbone.NewBudget(2 << 20)
	s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{Budget: budget}}, func(in *hbone.Incoming) {
		<-in.Context().Done()
		in.Reject(503)
	})
	p := dialRaw(t, s)
	p.start()
	kv := []string{":method", "CONNECT", ":authority", "a:1"}
	for range size / 7000 {
		kv = append(kv, "x", strings.Repeat("v", 7000))
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range requests {
			block := p.block(kv...)
			id := uint32(2*i + 1)
			first := min(len(block), 16000)
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:first], EndHeaders: first == len(block)})
			for block = block[first:]; len(block) > 0; {
				n := min(len(block), 16000)
				p.fr.WriteContinuation(id, n == len(block), block[:n])
				block = block[n:]
			}
		}
	}()
	resets := 0
	for resets < requests/2 {
		f := p.await("RST_STREAM", func(f http2.Frame) bool { return f.Header().Type == http2.FrameRSTStream }).(*http2.RSTStreamFrame)
		if f.ErrCode != http2.ErrCodeEnhanceYourCalm {
			t.Fatalf("RST_STREAM %v", f.ErrCode)
		}
		resets++
		if n := budget.Used(); n > 4<<20 {
			t.Fatalf("%d bytes held", n)
		}
	}
	<-sent
	p.tcp.Close()
	awaitUsed(t, budget, 0)
}

// TestWindowsShrinkFirst: while memory is tight, what a slow application takes is not
// given back to its peer, down to the smallest window, and new connections begin with
// that; nobody is reset for it. Later everything is as before.
//
//ambit:feature hbone-quota-backlog
func TestWindowsShrinkFirst(t *testing.T) {
	const window = 512 << 10
	budget := hbone.NewBudget(2 << 20)
	ends := make(chan *hbone.Stream, 3)
	s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{Budget: budget, FirstWindow: window, StreamWindow: window}}, func(in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		ends <- st
		<-in.Context().Done()
	})
	p := dialRaw(t, s)
	p.start()
	var streams []*hbone.Stream
	fill := func(id uint32, n int) {
		p.connect(id, false)
		p.awaitStatus(id, "200")
		streams = append(streams, <-ends)
		for ; n > 0; n -= 16000 {
			p.fr.WriteData(id, false, make([]byte, min(n, 16000)))
		}
	}
	fill(1, 500_000)
	fill(3, 500_000)
	fill(5, 500_000)
	for streams[2].Backlog() < 500_000 {
		pause()
	}
	slow := streams[2]
	credit := func(ping byte) (n int) {
		p.fr.WritePing(false, [8]byte{ping})
		p.await("PING", func(f http2.Frame) bool {
			if w, ok := f.(*http2.WindowUpdateFrame); ok && w.StreamID == 5 {
				n += int(w.Increment)
			}
			pong, ok := f.(*http2.PingFrame)
			return ok && pong.IsAck() && pong.Data[0] == ping
		})
		return n
	}
	buf := make([]byte, 50_000)
	for range 8 { // 400 000 bytes: more than three quarters of the window
		if _, err := io.ReadFull(slow, buf); err != nil {
			t.Fatal(err)
		}
	}
	// 12 288 bytes of the window were never used; with what comes now that is the smallest.
	given := credit(1)
	if left := window - 500_000 + given; left > 65535 {
		t.Errorf("the peer may send %d bytes while memory is tight", left)
	}
	c := dialRaw(t, s)
	c.start()
	f := c.await("SETTINGS", func(f http2.Frame) bool { return f.Header().Type == http2.FrameSettings }).(*http2.SettingsFrame)
	if v, _ := f.Value(http2.SettingInitialWindowSize); v != 65535 {
		t.Errorf("a new connection begins with %d bytes", v)
	}
	for _, st := range streams {
		if _, err := io.CopyN(io.Discard, st, int64(st.Backlog())); err != nil {
			t.Fatalf("somebody was reset: %v", err)
		}
	}
	// Memory is there again: an application that takes what comes gets its window back.
	awaitUsed(t, budget, 0)
	room := window - 500_000 + given + credit(2)
	for range 40 {
		n := min(room, 16000)
		p.fr.WriteData(5, false, make([]byte, n))
		if _, err := io.ReadFull(slow, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		room += credit(3) - n
	}
	if room < window/2 {
		t.Errorf("with memory again the peer may send %d bytes", room)
	}
}

// TestQueueIsShortWhileTight: what is queued for a peer that does not read is an eighth
// of the usual while memory is tight, and what was held up goes on when the peer reads.
//
//ambit:feature hbone-quota-backlog
func TestQueueIsShortWhileTight(t *testing.T) {
	const size = 32 << 20
	budget := hbone.NewBudget(8 << 20)
	ends := make(chan *hbone.Stream, 1)
	s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{Budget: budget, FirstWindow: 8 << 20, StreamWindow: 8 << 20, ConnWindow: 16 << 20}}, func(in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		if in.Authority == "unread:1" {
			ends <- st
			<-in.Context().Done()
			return
		}
		st.Write(make([]byte, size/8))
		st.Close()
	})
	c, err := s.Dial(ctx5(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := open(t, c, "unread:1").Write(make([]byte, 5<<20)); err != nil {
		t.Fatal(err)
	}
	held := int64((<-ends).Backlog())
	for held < 5<<20 {
		held = budget.Used()
		pause()
	}
	p := dialRaw(t, s)
	p.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	p.fr.WriteWindowUpdate(0, 1<<30)
	for i := range 8 {
		p.connect(uint32(2*i+1), false)
	}
	// Until the kernel takes no more and nothing moves.
	for last, same := int64(0), 0; same < 20; pause() {
		if n := budget.Used(); n == last && n > held {
			same++
		} else {
			last, same = n, 0
		}
	}
	if n := budget.Used() - held; n > 1<<20 {
		t.Errorf("%d bytes are queued for a peer that does not read", n)
	}
	got := 0
	for ended := 0; ended < 8; {
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
	if got != size {
		t.Errorf("%d bytes", got)
	}
}
