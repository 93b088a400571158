package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The load of a soak: every way a connection can live and end, a little of
// each, all at once. What a proxy forgets it forgets on the way out, and every
// way out is another one.

// counted is how often one kind of connection did what it should.
type counted struct {
	OK, Failed int
	First      string // failure
}

func (c *counted) add(err error) {
	switch {
	case err == nil:
		c.OK++
	case c.Failed == 0:
		c.First = err.Error()
		fallthrough
	default:
		c.Failed++
	}
}

func (c *counted) merge(d counted) {
	if c.First == "" {
		c.First = d.First
	}
	c.OK, c.Failed = c.OK+d.OK, c.Failed+d.Failed
}

// ways are the kinds of a mixed load: how many at once, the pause of each after
// one, and one.
var ways = []struct {
	name  string
	many  int
	pause time.Duration
	one   func(host string) error
}{
	{"short", 4, 20 * time.Millisecond, short},
	{"pooled", 8, 0, pooledUse},
	{"reset by the client", 2, 30 * time.Millisecond, resetAfterUse},
	{"given up before a byte", 1, 50 * time.Millisecond, resetUnused},
	{"half-closed by the client", 2, 30 * time.Millisecond, clientHalfCloses},
	{"half-closed by the server", 2, 30 * time.Millisecond, serverHalfCloses},
	{"a megabyte", 1, 100 * time.Millisecond, megabyte},
	{"to a closed port", 1, 50 * time.Millisecond, refused},
}

// kept is the kind of the connections that live as long as the soak.
const kept = "long-lived"

// mix runs all ways until the time is over, and ends everything but held.
func mix(o order, held []*net.TCPConn) map[string]counted {
	end := time.Now().Add(o.For)
	var mu sync.Mutex
	out := map[string]counted{}
	book := func(name string, c counted) {
		mu.Lock()
		defer mu.Unlock()
		all := out[name]
		all.merge(c)
		out[name] = all
	}
	var wg sync.WaitGroup
	for _, w := range ways {
		for range w.many {
			wg.Go(func() {
				var c counted
				defer func() { book(w.name, c) }()
				for time.Now().Before(end) {
					c.add(w.one(o.To))
					pause(w.pause)
				}
			})
		}
	}
	for _, conn := range held {
		wg.Go(func() {
			var c counted
			defer func() { book(kept, c) }()
			msg := make([]byte, o.Size)
			for time.Now().Before(end) && c.Failed == 0 {
				_ = conn.SetDeadline(time.Now().Add(slow))
				c.add(exchange(conn, msg))
				pause(100 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	return out
}

// slow is how long a step may take before it counts as failed.
const slow = 2 * time.Minute

func pause(d time.Duration) {
	if d == 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	<-t.C
}

func open(host string, port uint16) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp4", net.JoinHostPort(host, fmt.Sprint(port)), slow)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(slow))
	return c.(*net.TCPConn), nil
}

func short(host string) error {
	c, err := open(host, portEcho)
	if err != nil {
		return err
	}
	return errors.Join(exchange(c, make([]byte, 64)), c.Close())
}

// pooledUse is as a client with a pool has it: some requests on a connection.
func pooledUse(host string) error {
	c, err := open(host, portEcho)
	if err != nil {
		return err
	}
	defer c.Close()
	msg := make([]byte, 1024)
	for range 20 {
		if err := exchange(c, msg); err != nil {
			return err
		}
		pause(10 * time.Millisecond)
	}
	return nil
}

func resetAfterUse(host string) error {
	c, err := open(host, portEcho)
	if err != nil {
		return err
	}
	return errors.Join(exchange(c, make([]byte, 64)), c.SetLinger(0), c.Close())
}

func resetUnused(host string) error {
	c, err := open(host, portEcho)
	if err != nil {
		return err
	}
	return errors.Join(c.SetLinger(0), c.Close())
}

// half is what one side has to say before it half-closes.
const half = 64 << 10

func clientHalfCloses(host string) error {
	c, err := open(host, portSink)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, half)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && (len(b) != 8 || binary.BigEndian.Uint64(b) != half) {
		err = fmt.Errorf("the server read %x of %d bytes", b, half)
	}
	return err
}

// serverHalfCloses reads to the end of what the server sends and goes on.
func serverHalfCloses(host string) error {
	c, err := open(host, portFirst)
	if err != nil {
		return err
	}
	defer c.Close()
	n, err := io.Copy(io.Discard, c)
	if err == nil && n != half {
		err = fmt.Errorf("%d bytes before the server's end, want %d", n, half)
	}
	if err != nil {
		return err
	}
	for range 4 {
		if _, err := c.Write(make([]byte, half/4)); err != nil {
			return fmt.Errorf("after the server's end: %w", err)
		}
	}
	return nil
}

// first speaks and half-closes before it listens.
func first(c *net.TCPConn) {
	if _, err := c.Write(make([]byte, half)); err != nil {
		return
	}
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c)
}

func megabyte(host string) error {
	c, err := open(host, portSink)
	if err != nil {
		return err
	}
	defer c.Close()
	for range 4 {
		if _, err := c.Write(make([]byte, block)); err != nil {
			return err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	var n [8]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint64(n[:]); got != 4*block {
		return fmt.Errorf("the server read %d of %d bytes", got, 4*block)
	}
	return nil
}

// refused must not succeed: nobody listens there. With a proxy in between the
// refusal comes after the connection.
func refused(host string) error {
	c, err := open(host, portClosed)
	if err != nil {
		return nil
	}
	defer c.Close()
	if err := exchange(c, make([]byte, 1)); err == nil {
		return errors.New("a port without a listener has answered")
	} else if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		return fmt.Errorf("no refusal: %w", err)
	}
	return nil
}
