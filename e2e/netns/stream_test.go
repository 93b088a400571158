package netns_test

import (
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"math/rand/v2"
)

func echo(c *net.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
}

func pingPong(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(s))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != s {
		t.Fatalf("sent %q, came back %q: %v", s, got, err)
	}
}

// pair is a client on one node and a server on the other, both meshed.
func pair(t testing.TB) (w *world, client, server *pod) { return pairOf(t, onlyIPv4) }

func pairOf(t testing.TB, f families) (w *world, client, server *pod) {
	w = newWorldOf(t, f)
	client, server = w.newPod(w.a, "client"), w.newPod(w.b, "server")
	return w, client, server
}

const gibibyte = 1 << 30

// pattern writes n pseudo-random bytes and returns their checksum. One block is
// repeated with its number, which is quick and still shows loss and reordering.
func pattern(w io.Writer, n int) ([32]byte, error) {
	block := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range block {
		block[i] = byte(r.Uint32())
	}
	h := sha256.New()
	for i := 0; i < n; i += len(block) {
		block[0], block[1], block[2], block[3] = byte(i>>20), byte(i>>28), byte(i>>36), 0xa5
		h.Write(block)
		if _, err := w.Write(block); err != nil {
			return [32]byte{}, err
		}
	}
	return [32]byte(h.Sum(nil)), nil
}

//ambit:feature traffic-bulk
func TestBulkEachWay(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 2 GiB")
	}
	for _, c := range []struct {
		f    families
		size int
	}{{onlyIPv4, gibibyte}, {onlyIPv6, gibibyte / 8}} {
		t.Run(c.f.String(), func(t *testing.T) { bulkEachWay(t, c.f, c.size) })
	}
}

func bulkEachWay(t *testing.T, f families, size int) {
	w, client, server := pairOf(t, f)
	sums := make(chan [32]byte, 2)
	server.listen(9001, func(c *net.TCPConn) { // upload
		h := sha256.New()
		if n, err := io.Copy(h, c); err != nil || n != int64(size) {
			t.Errorf("server received %d: %v", n, err)
		}
		sums <- [32]byte(h.Sum(nil))
	})
	server.listen(9002, func(c *net.TCPConn) { // download
		sum, err := pattern(c, size)
		if err != nil {
			t.Errorf("server sends: %v", err)
		}
		sums <- sum
		c.CloseWrite()
	})
	w.enrol(client, server)

	t.Run("up", func(t *testing.T) {
		c := client.mustDial(t, server.at(9001))
		began := time.Now()
		sum, err := pattern(c, size)
		if err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		if got := <-sums; got != sum {
			t.Errorf("checksum %x, want %x", got, sum)
		}
		t.Logf("%d MiB in %s", size>>20, time.Since(began).Round(time.Millisecond))
	})
	t.Run("down", func(t *testing.T) {
		c := client.mustDial(t, server.at(9002))
		began := time.Now()
		h := sha256.New()
		if n, err := io.Copy(h, c); err != nil || n != int64(size) {
			t.Fatalf("received %d: %v", n, err)
		}
		if want := <-sums; [32]byte(h.Sum(nil)) != want {
			t.Errorf("checksum %x, want %x", h.Sum(nil), want)
		}
		t.Logf("%d MiB in %s", size>>20, time.Since(began).Round(time.Millisecond))
	})
}

//ambit:feature traffic-half-close
func TestHalfClose(t *testing.T) { each(t, halfClose, onlyIPv4, onlyIPv6) }

func halfClose(t *testing.T, f families) {
	w, client, server := pairOf(t, f)
	server.listen(9003, func(c *net.TCPConn) { // answers after the client has ended
		b, _ := io.ReadAll(c)
		c.Write(append([]byte("got "), b...))
	})
	server.listen(9004, func(c *net.TCPConn) { // ends first, then listens
		c.Write([]byte("over"))
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		w.t.Logf("server read %q after its own end", b)
		if string(b) != "the rest" {
			w.t.Errorf("server read %q", b)
		}
	})
	w.enrol(client, server)
	t.Run("client first", func(t *testing.T) {
		c := client.mustDial(t, server.at(9003))
		c.Write([]byte("question"))
		c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "got question" {
			t.Fatalf("%q: %v", b, err)
		}
	})
	t.Run("server first", func(t *testing.T) {
		c := client.mustDial(t, server.at(9004))
		if b, err := io.ReadAll(c); err != nil || string(b) != "over" {
			t.Fatalf("%q: %v", b, err)
		}
		if _, err := c.Write([]byte("the rest")); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		w.b.zt.wantLog(t, "connection complete", "dst.hbone_addr="+server.at(9004), "bytes_sent=4 bytes_recv=8")
	})
}

//ambit:feature traffic-reset
func TestReset(t *testing.T) { each(t, reset, onlyIPv4, onlyIPv6) }

func reset(t *testing.T, f families) {
	w, client, server := pairOf(t, f)
	seen := make(chan error, 1)
	server.listen(9005, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 5))
		c.Write([]byte("ready"))
		_, err := c.Read(make([]byte, 1))
		seen <- err
	})
	server.listen(9006, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 5))
		c.SetLinger(0)
	})
	w.enrol(client, server)
	t.Run("by the client", func(t *testing.T) {
		c := client.mustDial(t, server.at(9005))
		c.Write([]byte("hello"))
		io.ReadFull(c, make([]byte, 5))
		c.SetLinger(0)
		c.Close()
		select {
		case err := <-seen:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server read %v, not a reset", err)
			}
		case <-time.After(patience):
			t.Error("the server saw nothing")
		}
		w.b.zt.wantLog(t, "dst.hbone_addr="+server.at(9005), `reason="client_reset"`)
	})
	t.Run("by the server", func(t *testing.T) {
		c := client.mustDial(t, server.at(9006))
		c.Write([]byte("hello"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client read %v, not a reset", err)
		}
		w.a.zt.wantLog(t, "dst.hbone_addr="+server.at(9006), `reason="server_reset"`)
	})
	t.Run("nobody listens", func(t *testing.T) {
		c, err := client.dial(server.at(9999))
		if err == nil {
			if _, err = c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client read %v, not a reset", err)
			}
			c.Close()
		}
		w.b.zt.wantLog(t, "dst.hbone_addr="+server.at(9999), `reason="connect_refused"`)
		w.a.zt.wantLog(t, "dst.hbone_addr="+server.at(9999), `reason="peer_unavailable"`)
	})
}

// A reader that stops neither slows its neighbour on the same tunnel nor makes
// anybody buffer more than the stream's window.
func TestStalledReader(t *testing.T) {
	for _, f := range []families{onlyIPv4, onlyIPv6} {
		t.Run(f.String(), func(t *testing.T) { stalledReader(t, f) })
	}
}

func stalledReader(t *testing.T, f families) {
	w, client, server := pairOf(t, f)
	stalled := make(chan struct{})
	server.listen(9007, func(c *net.TCPConn) { <-stalled })
	t.Cleanup(func() { close(stalled) })
	server.listen(9000, echo)
	w.enrol(client, server)

	c := client.mustDial(t, server.at(9007))
	neighbour := client.mustDial(t, server.at(9000))
	pingPong(t, neighbour, "before")
	before := w.b.metric(t, "process_resident_memory_bytes")

	// Fill what there is to fill: it ends by the deadline, not by an error.
	c.SetWriteDeadline(time.Now().Add(2 * time.Second))
	block := make([]byte, 1<<20)
	written := 0
	for {
		n, err := c.Write(block)
		written += n
		if err != nil {
			break
		}
		if written > 256<<20 {
			t.Fatal("256 MiB were taken for a reader that does not read")
		}
	}
	t.Logf("%d MiB taken before back pressure", written>>20)
	began := time.Now()
	for range 200 {
		pingPong(t, neighbour, "the neighbour goes on as before")
	}
	t.Logf("round trip of the neighbour: %s", time.Since(began)/200)
	if grown := w.b.metric(t, "process_resident_memory_bytes") - before; grown > 32<<20 {
		t.Errorf("ztunnel grew by %.0f MiB", grown/(1<<20))
	}
}
