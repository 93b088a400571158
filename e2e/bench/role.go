package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/e2e/bench/lab"
)

// The bench starts itself again for everything that is not Ambit: load,
// application, plain proxy. Each is a process of its own, inside a pod's
// namespace, so the kernel counts its CPU apart. roleEnv says which it is.
const roleEnv = "AMBIT_BENCH_ROLE"

// Ports of the application, and how far away the plain proxies' are.
const (
	portSink   = 9001 // reads to the end, answers how much it was
	portSource = 9002 // reads for how many ms to send, sends
	portEcho   = 9003
	portFirst  = 9004 // sends and half-closes, then reads to the end
	portClosed = 9005 // nobody

	shiftCopy   = 1000
	shiftSplice = 2000
)

// order is what a load process is told, answer what it says.
type order struct {
	Op    string        // bulkup, bulkdown, pingpong, openloop, connect, bareconnect, barepingpong, hold, mix, release, attack
	To    string        // address; of mix the host
	Conns int           // at once
	Size  int           // bytes of a message
	Rate  int           // messages a second, all connections together
	Count int           // connect: how many
	For   time.Duration // the others: how long
}

type answer struct {
	Err     string
	Bytes   float64
	Count   float64 // messages or connections
	Elapsed time.Duration
	P50     time.Duration
	P99     time.Duration
	Kinds   map[string]counted // of mix
}

// role runs a child to its end: that of its standard input.
func role(name string) error {
	switch name {
	case "load":
		return load(os.Stdin, os.Stdout)
	case "app":
		for port, serve := range map[uint16]func(*net.TCPConn){portSink: sink, portSource: source, portEcho: echo, portFirst: first} {
			if err := listen(port, serve); err != nil {
				return err
			}
		}
	case "prey":
		if err := prey(); err != nil {
			return err
		}
	case "proxy": // NEXT is the address that everything goes on to, SHIFT what the last hop takes off
		next, last := os.Getenv("NEXT"), os.Getenv("LAST") != ""
		for _, port := range []uint16{portSink, portSource, portEcho} {
			for shift, carry := range map[uint16]func(dst, src *net.TCPConn){shiftCopy: userCopy, shiftSplice: spliceCopy} {
				to := port + shift
				if last {
					to = port
				}
				if err := listen(port+shift, twoWay(net.JoinHostPort(next, fmt.Sprint(to)), carry)); err != nil {
					return err
				}
			}
		}
	case "accept": // descriptor 3 is the listener
		go func() {
			err := acceptBare(3, os.Getenv("ORIGINAL_DST") != "")
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}()
	default:
		return fmt.Errorf("unknown role %q", name)
	}
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func listen(port uint16, serve func(*net.TCPConn)) error {
	ln, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	go accept(ln, serve)
	return nil
}

// accept serves until the process ends.
func accept(ln net.Listener, serve func(*net.TCPConn)) {
	if err := serveUntilClosed(ln, serve); !errors.Is(err, net.ErrClosed) {
		fmt.Fprintln(os.Stderr, err)
	}
}

// serveUntilClosed returns when the last connection has ended.
func serveUntilClosed(ln net.Listener, serve func(*net.TCPConn)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer c.Close()
			serve(c.(*net.TCPConn))
		})
	}
}

// player is a running child.
type player struct {
	*lab.Process
	enc *json.Encoder
	dec *json.Decoder
}

// cast starts a child inside a namespace and waits until it is ready.
func cast(l *lab.Lab, ns *netns.NS, what, name string, files []*os.File, env ...string) (*player, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := l.Run(ns, lab.Command{Name: name, Path: self, Pipes: true, Files: files, Env: append([]string{roleEnv + "=" + what}, env...)})
	if err != nil {
		return nil, err
	}
	if what != "load" {
		ready := make([]byte, len("ready\n"))
		if _, err := io.ReadFull(p.Out, ready); err != nil {
			return nil, fmt.Errorf("%s ended before it was ready: %w", name, err)
		}
	}
	return &player{Process: p, enc: json.NewEncoder(p.In), dec: json.NewDecoder(p.Out)}, nil
}

// do has a load process carry out an order.
func (p *player) do(ctx context.Context, o order) (answer, error) {
	// A child that does not answer must not hold the bench for ever.
	ctx, cancel := context.WithTimeout(ctx, o.For+time.Minute)
	defer cancel()
	stop := context.AfterFunc(ctx, p.Kill)
	defer stop()
	var a answer
	if err := errors.Join(p.enc.Encode(o), p.dec.Decode(&a)); err != nil {
		return a, fmt.Errorf("%s of %s: %w", o.Op, p.Name, errors.Join(ctx.Err(), err))
	}
	if a.Err != "" {
		return a, fmt.Errorf("%s of %s to %s: %s", o.Op, p.Name, o.To, a.Err)
	}
	return a, nil
}
