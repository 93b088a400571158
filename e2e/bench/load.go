package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// load carries out one order after the other.
func load(in io.Reader, out io.Writer) error {
	var held []*net.TCPConn // what "hold" opened
	enc := json.NewEncoder(out)
	for dec := json.NewDecoder(in); ; {
		var o order
		if err := dec.Decode(&o); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		var a answer
		var err error
		switch o.Op {
		case "bulkup", "bulkdown":
			a, err = bulk(o)
		case "pingpong":
			a, err = pingPong(o)
		case "openloop":
			a, err = openLoop(o)
		case "connect":
			a, err = connections(o)
		case "bareconnect":
			a, err = connectBare(o)
		case "barepingpong":
			a, err = pingPongBare(o)
		case "hold":
			var more []*net.TCPConn
			more, err = hold(o)
			held = append(held, more...)
		case "mix":
			a.Kinds = mix(o, held)
		case "attack":
			err = attack(o)
		case "release":
			for _, c := range held {
				_ = c.Close()
			}
			held = nil
		default:
			err = fmt.Errorf("unknown order %q", o.Op)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

func dial(to string) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp4", to, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func dialAll(o order) ([]*net.TCPConn, error) {
	conns := make([]*net.TCPConn, o.Conns)
	for i := range conns {
		var err error
		if conns[i], err = dial(o.To); err != nil {
			return conns[:i], err
		}
	}
	return conns, nil
}

func closeAll(conns []*net.TCPConn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// bulk is until the last byte has been read by the other application.
func bulk(o order) (answer, error) {
	conns, err := dialAll(o)
	defer closeAll(conns)
	if err != nil {
		return answer{}, err
	}
	var total atomic.Uint64
	errs := make([]error, len(conns))
	began := time.Now()
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			n, err := bulkOne(c, o, began.Add(o.For))
			total.Add(n)
			errs[i] = err
		})
	}
	wg.Wait()
	return answer{Bytes: float64(total.Load()), Elapsed: time.Since(began)}, errors.Join(errs...)
}

func bulkOne(c *net.TCPConn, o order, end time.Time) (uint64, error) {
	_ = c.SetDeadline(end.Add(20 * time.Second))
	buf := make([]byte, block)
	if o.Op == "bulkup" {
		for time.Now().Before(end) {
			if _, err := c.Write(buf); err != nil {
				return 0, err
			}
		}
		if err := c.CloseWrite(); err != nil {
			return 0, err
		}
		var n [8]byte
		_, err := io.ReadFull(c, n[:])
		return binary.BigEndian.Uint64(n[:]), err
	}
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(o.For.Milliseconds()))); err != nil {
		return 0, err
	}
	var n uint64
	for {
		k, err := c.Read(buf)
		n += uint64(k)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// pingPong has one message under way on one connection.
func pingPong(o order) (answer, error) {
	c, err := dial(o.To)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(o.For + 20*time.Second))
	msg := make([]byte, o.Size)
	var took []time.Duration
	began := time.Now()
	for at := began; at.Sub(began) < o.For; {
		if err := exchange(c, msg); err != nil {
			return answer{}, err
		}
		now := time.Now()
		took, at = append(took, now.Sub(at)), now
	}
	return timed(took, time.Since(began)), nil
}

func exchange(c *net.TCPConn, msg []byte) error {
	if _, err := c.Write(msg); err != nil {
		return err
	}
	_, err := io.ReadFull(c, msg)
	return err
}

func timed(took []time.Duration, elapsed time.Duration) answer {
	if len(took) == 0 {
		return answer{Elapsed: elapsed}
	}
	slices.Sort(took)
	return answer{Count: float64(len(took)), Elapsed: elapsed, P50: took[len(took)/2], P99: took[len(took)*99/100]}
}

// openLoop sends at fixed times whether or not earlier answers have come, and
// counts each latency from when the message was due: what waits behind a slow
// answer is slow as well.
func openLoop(o order) (answer, error) {
	conns, err := dialAll(o)
	defer closeAll(conns)
	if err != nil {
		return answer{}, err
	}
	perConn := int(o.For.Seconds()*float64(o.Rate)) / len(conns)
	step := time.Second / time.Duration(o.Rate)
	began := time.Now().Add(5 * time.Millisecond)
	due := func(conn, k int) time.Time { return began.Add(step * time.Duration(k*len(conns)+conn)) }

	took := make([][]time.Duration, len(conns))
	errs := make([]error, len(conns)+1)
	var wg sync.WaitGroup
	for i, c := range conns {
		_ = c.SetDeadline(began.Add(o.For + 10*time.Second))
		wg.Go(func() {
			buf := make([]byte, o.Size)
			for k := range perConn {
				if _, err := io.ReadFull(c, buf); err != nil {
					errs[i] = err
					return
				}
				took[i] = append(took[i], time.Since(due(i, k)))
			}
		})
	}
	wg.Go(func() {
		// Go's timers wake on whole milliseconds; a thread of one's own sleeps
		// to some ten microseconds.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
			errs[len(conns)] = err
			return
		}
		msg := make([]byte, o.Size)
		for k := range perConn {
			for i, c := range conns {
				if wait := time.Until(due(i, k)); wait > 0 {
					ts := unix.NsecToTimespec(int64(wait))
					_ = unix.Nanosleep(&ts, nil)
				}
				if _, err := c.Write(msg); err != nil {
					errs[len(conns)] = err
					return
				}
			}
		}
	})
	wg.Wait()
	elapsed := time.Since(began)
	return timed(slices.Concat(took...), elapsed), errors.Join(errs...)
}

// connections opens, moves one byte each way, closes; o.Conns at a time.
func connections(o order) (answer, error) {
	var next atomic.Int64
	took := make([][]time.Duration, o.Conns)
	errs := make([]error, o.Conns)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range o.Conns {
		wg.Go(func() {
			one := []byte{1}
			for next.Add(1) <= int64(o.Count) {
				at := time.Now()
				c, err := dial(o.To)
				if err == nil {
					_ = c.SetDeadline(at.Add(10 * time.Second))
					err = exchange(c, one)
					_ = c.Close()
				}
				if err != nil {
					errs[i] = err
					return
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(began)
	return timed(slices.Concat(took...), elapsed), errors.Join(errs...)
}

// hold opens connections that have all been used once and leaves them open.
func hold(o order) ([]*net.TCPConn, error) {
	conns, err := dialAll(o)
	if err != nil {
		return conns, err
	}
	msg := make([]byte, o.Size)
	for _, c := range conns {
		if err := exchange(c, msg); err != nil {
			return conns, err
		}
	}
	return conns, nil
}
