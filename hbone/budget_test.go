package hbone_test

import (
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
)

// TestBudgetEndsTheLargestBacklog: of two applications that read nothing the one
// with more waiting is cut at the cap; the other one, and one that reads, go on.
func TestBudgetEndsTheLargestBacklog(t *testing.T) {
	budget := hbone.NewBudget(1 << 20)
	streams := make(chan *hbone.Stream)
	c := hbonetest.Pair(t, hbonetest.Options{Server: hbone.Config{Budget: budget, FirstWindow: 4 << 20}}, func(in *hbone.Incoming) {
		s, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		streams <- s
		<-in.Context().Done()
		s.Close()
	})
	accepted := func(authority string) (client, server *hbone.Stream) {
		return open(t, c, authority), <-streams
	}
	small, smallEnd := accepted("a:1")
	large, largeEnd := accepted("a:2")
	reader, readerEnd := accepted("a:3")
	if _, err := small.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	for smallEnd.Backlog() < 100_000 {
		pause()
	}
	for err := error(nil); err == nil; {
		_, err = large.Write(make([]byte, 100_000))
	}
	_, err := io.ReadAll(largeEnd)
	var se *hbone.StreamError
	if !errors.Is(err, hbone.ErrMemory) || !errors.As(err, &se) || se.Code != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("the largest ended with %v", err)
	}
	if _, err := io.ReadAll(large); !errors.As(err, &se) || se.Code != http2.ErrCodeEnhanceYourCalm || !se.Remote {
		t.Errorf("its peer reads %v", err)
	}
	for buf := make([]byte, 100_000); ; {
		if _, err := reader.Write(buf); err != nil {
			t.Fatalf("the one that reads: %v", err)
		}
		if _, err := io.ReadFull(readerEnd, buf); err != nil {
			t.Fatalf("the one that reads: %v", err)
		}
		if readerEnd.Received() > 8<<20 {
			break
		}
	}
	small.CloseWrite()
	if b, err := io.ReadAll(smallEnd); err != nil || len(b) != 100_000 {
		t.Errorf("the small one: %d bytes, %v", len(b), err)
	}
	for _, s := range []*hbone.Stream{small, large, reader} {
		s.Close()
	}
	awaitUsed(t, budget, 0)
}

// awaitUsed waits for everything to have been given back.
func awaitUsed(t *testing.T, b *hbone.Budget, want int64) {
	t.Helper()
	for end := time.Now().Add(time.Minute); b.Used() != want; pause() {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are still held, not %d", b.Used(), want)
		}
	}
}

// TestUnreadStreamsAreBounded fills as many streams as a server announces for a
// handler that reads nothing, and states what that makes us hold.
func TestUnreadStreamsAreBounded(t *testing.T) {
	const streams, limit, slack = 200, 32 << 20, 1 << 20
	for _, tc := range []struct {
		name   string
		window uint32
		budget int64
		atMost int64
	}{
		{"every window at its largest", 4 << 20, 1 << 40, 0},
		{"windows that have to grow", 0, 1 << 40, streams * (256<<10 + 32<<10)},
		{"windows that have to grow, and a budget", 0, limit, limit + slack},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.atMost == 0 && (testing.Short() || raceDetector) {
				t.Skip("takes a GB of memory")
			}
			budget := hbone.NewBudget(tc.budget)
			cfg := hbone.Config{FirstWindow: tc.window, Budget: budget}
			size := 256 << 10
			if tc.window > 0 {
				size = int(tc.window)
			}
			var mu sync.Mutex
			var ends []*hbone.Stream
			c := hbonetest.Pair(t, hbonetest.Options{Server: cfg}, func(in *hbone.Incoming) {
				s, err := in.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				ends = append(ends, s)
				mu.Unlock()
				<-in.Context().Done()
				s.Close()
			})
			var wg sync.WaitGroup
			for range streams {
				s := open(t, c, "a:1")
				wg.Go(func() { _, _ = s.Write(make([]byte, size)) }) // a reset is what may happen
			}
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			var most int64
			cut := 0
			for settled := false; !settled; pause() {
				most = max(most, budget.Used())
				select {
				case <-done:
					// Nothing is under way any more once every byte is here or its stream gone.
					settled, cut = true, 0
					mu.Lock()
					for _, s := range ends {
						if s.Backlog() == 0 && s.Received() > 0 {
							cut++
						} else {
							settled = settled && s.Received() == uint64(size)
						}
					}
					mu.Unlock()
				default:
				}
			}
			t.Logf("%d unread streams make us hold %.0f MB; %d were ended", streams, float64(most)/1e6, cut)
			if tc.atMost > 0 && most > tc.atMost {
				t.Errorf("%d bytes held, want at most %d", most, tc.atMost)
			}
			if (cut > 0) != (tc.budget == limit) {
				t.Errorf("%d streams were ended", cut)
			}
			c.Close()
			awaitUsed(t, budget, 0)
		})
	}
}

// TestWindowOfAnUnreadSocketStaysSmall: the kernel takes MBs for an application
// that reads nothing, which is no reason to let the peer send more at once.
func TestWindowOfAnUnreadSocketStaysSmall(t *testing.T) {
	ts := newTunnels(t, hbonetest.Options{})
	tn := ts.open()
	wrote := make(chan struct{})
	go func() { defer close(wrote); io.Copy(tn.app, endless{}) }()
	for last, same := uint64(0), 0; same < 20; pause() {
		if sent := tn.client.Sent(); sent == last && tn.server.Backlog() > 0 {
			same++
		} else {
			last, same = sent, 0
		}
	}
	if n := tn.server.Backlog(); n > 1<<20 {
		t.Errorf("%d bytes held", n)
	}
	t.Logf("%d bytes held of %d sent", tn.server.Backlog(), tn.client.Sent())
	reset(tn.app)
	<-wrote
	tn.wait(t)
}

// TestWindowGrowsForAReader: an application that reads gets the whole window.
func TestWindowGrowsForAReader(t *testing.T) {
	ts := newTunnels(t, hbonetest.Options{})
	tn := ts.open()
	go tn.app.Write(make([]byte, 32<<20))
	if _, err := io.ReadFull(tn.far, make([]byte, 32<<20)); err != nil {
		t.Fatal(err)
	}
	// Whoever stops now has the whole window filled.
	wrote := make(chan struct{})
	go func() { defer close(wrote); io.Copy(tn.app, endless{}) }()
	for end := time.Now().Add(time.Minute); tn.server.Backlog() < 2<<20; pause() {
		if time.Now().After(end) {
			t.Fatalf("%d bytes held", tn.server.Backlog())
		}
	}
	reset(tn.app)
	<-wrote
	tn.wait(t)
}

// TestHandshakesAreTold: of every handshake the end, well or not.
func TestHandshakesAreTold(t *testing.T) {
	s := hbonetest.NewServer(t, hbonetest.Options{}, echo)
	ended := make(chan struct{}, 4)
	s.Hbone.OnHandshake = func() { ended <- struct{}{} }
	c, err := s.Dial(ctx5(t))
	if err != nil {
		t.Fatal(err)
	}
	<-ended // while the connection stands
	c.Close()
	nc, err := s.DialRaw()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Write([]byte("not TLS at all")); err != nil {
		t.Fatal(err)
	}
	<-ended
	nc.Close()
	s.Close()
	if len(ended) > 0 {
		t.Error("told twice")
	}
}
