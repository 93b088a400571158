package hbone

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/http2"
)

// TestLargest reads like the rule: of the part that has most, the largest.
func TestLargest(t *testing.T) {
	a, b := NewBudget(1).Part(1), NewBudget(1).Part(1)
	name := map[*Budget]string{a: "a", b: "b"}
	for _, tc := range []struct {
		name    string
		holders []holder
		over    int64
		want    string
	}{
		{"nobody", nil, 10, ""},
		{"nothing to make room for", []holder{{5, a, nil, nil}}, 0, ""},
		{"the largest of one part", []holder{{1, a, nil, nil}, {5, a, nil, nil}, {3, a, nil, nil}}, 4, "a5 "},
		{"as many as it takes", []holder{{1, a, nil, nil}, {5, a, nil, nil}, {3, a, nil, nil}}, 6, "a5 a3 "},
		{"many small ones of one part before the only large one of another",
			[]holder{{4, a, nil, nil}, {2, b, nil, nil}, {2, b, nil, nil}, {2, b, nil, nil}}, 2, "b2 "},
		{"until another part has more", []holder{{4, a, nil, nil}, {3, b, nil, nil}, {2, b, nil, nil}}, 5, "b3 a4 "},
		{"all there is", []holder{{1, a, nil, nil}, {1, b, nil, nil}}, 100, "a1 b1 "},
	} {
		got := ""
		chosen := largest(tc.holders, tc.over)
		for _, h := range chosen {
			got += fmt.Sprintf("%s%d ", name[h.part], h.bytes)
		}
		if tc.name == "all there is" && len(chosen) == 2 {
			continue // in either order
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// TestLargestTakesEnough compares with what has to hold whatever is chosen.
func TestLargestTakesEnough(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	parts := []*Budget{NewBudget(1), NewBudget(1), NewBudget(1)}
	for range 2000 {
		var holders []holder
		sum := int64(0)
		for range rnd.IntN(20) {
			h := holder{bytes: 1 + rnd.Int64N(100), part: parts[rnd.IntN(3)]}
			holders = append(holders, h)
			sum += h.bytes
		}
		over := rnd.Int64N(500)
		got, last := int64(0), int64(0)
		chosen := largest(holders, over)
		for _, h := range chosen {
			got += h.bytes
			last = h.bytes
		}
		if got < min(over, sum) {
			t.Fatalf("%d of %d, and %d there are", got, over, sum)
		}
		if len(chosen) > 0 && got-last >= over {
			t.Fatalf("one too many: %d of %d, the last %d", got, over, last)
		}
	}
}

// TestNothingIsHeldWhileSwamped: when what is to be given back has not been yet, data
// that would have to be held ends its stream, and large requests are refused.
func TestNothingIsHeldWhileSwamped(t *testing.T) {
	accepted := make(chan *Stream, 2)
	c, stop := parser(false, func(in *Incoming) {
		s, err := in.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- s
		<-in.Context().Done()
	})
	defer stop()
	whole := NewBudget(4000)
	c.cfg.Budget = whole.Part(1000)
	parse := func(write func(fr *http2.Framer, block func(kv ...string) []byte)) {
		t.Helper()
		if _, err := c.in.parse(frames(write)); err != nil {
			t.Fatal(err)
		}
	}
	parse(func(fr *http2.Framer, block func(kv ...string) []byte) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":method", "CONNECT", ":authority", "a:1"), EndHeaders: true})
	})
	s := <-accepted
	c.cfg.Budget.add(1250)
	for _, more := range []int64{0, 1} { // at the edge, and beyond it
		c.cfg.Budget.add(more)
		if got := c.cfg.Budget.swamped(); (got != nil) != (more > 0) {
			t.Errorf("%d of 1000 used: %v", c.cfg.Budget.Used(), got)
		}
	}
	var b bytes.Buffer
	http2.NewFramer(&b, nil).WriteData(1, false, []byte("more"))
	if _, err := c.in.parse(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 4)); !errors.Is(err, ErrShare) {
		t.Errorf("the stream ended with %v", err)
	}
	if n := c.cfg.Budget.Used(); n != 1251 {
		t.Errorf("%d bytes are held", n)
	}
	c.cfg.Budget.add(-1251)
}
