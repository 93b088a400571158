package hbone_test

import (
	"bytes"
	"context"
	"io"
	"math/rand"
	"runtime"
	"testing"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// nestedServer serves HBONE in the streams of HBONE, and says everything again.
func nestedServer(t testing.TB) *hbonetest.Server {
	var s *hbonetest.Server
	s = hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			return
		}
		inner := &hbone.Server{TLS: identity.ServerConfig(s.Source(), hbonetest.ServerID), Handler: func(in *hbone.Incoming) {
			if st, err := in.Accept(); err == nil {
				io.Copy(st, st)
				st.Close()
			}
		}}
		_ = inner.Serve(in.Context(), st)
	})
	return s
}

func nest(t testing.TB, s *hbonetest.Server, outer *hbone.Conn) *hbone.Conn {
	t.Helper()
	st, err := outer.Open(t.Context(), hbone.Request{Authority: "web:80"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := hbone.NewClient(t.Context(), st, identity.ClientConfig(s.Source(), hbonetest.ClientID, []identity.ID{hbonetest.ServerID}), hbone.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNested: what goes through a tunnel in a tunnel arrives as it was sent, ends in
// order, and the outer connection is there for the next.
func TestNested(t *testing.T) {
	s := nestedServer(t)
	outer, err := s.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	data := make([]byte, 3<<20)
	rand.New(rand.NewSource(1)).Read(data)
	for range 2 {
		c := nest(t, s, outer)
		st, err := c.Open(t.Context(), hbone.Request{Authority: "web:80"})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			st.Write(data)
			st.CloseWrite()
		}()
		got, err := io.ReadAll(st)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		c.Close()
		if outer.Err() != nil {
			t.Fatal(outer.Err())
		}
	}
}

// TestNestedIdle: an idle tunnel in a tunnel holds no buffer for what may come.
func TestNestedIdle(t *testing.T) {
	s := nestedServer(t)
	outer, err := s.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools keep goes with the second
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const n = 64
	before := heap()
	for range n {
		c := nest(t, s, outer)
		defer c.Close()
		st, err := c.Open(t.Context(), hbone.Request{Authority: "web:80"})
		if err != nil {
			t.Fatal(err)
		}
		st.Write([]byte("x"))
		if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	each := (heap() - before) / n // both ends
	t.Logf("%d bytes for each", each)
	if each > 256<<10 {
		t.Errorf("an idle tunnel in a tunnel holds %d bytes", each)
	}
}
