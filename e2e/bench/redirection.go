package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"

	"github.com/ambitmesh/ambit/cni/netns"
)

const (
	loopback = "loopback"
	iptables = "iptables"
)

// redirection measures capture alone: an application and what accepts for it
// in one pod, and nothing carried on from there. The baseline is the
// REDIRECT rule set that meshes put into pods, loopback is the floor.
func (s *stage) redirection(ctx context.Context) error {
	tool, err := exec.LookPath("iptables")
	if err != nil {
		s.rep.skip("redirection alone", "needs the Debian package iptables for its baseline")
		return nil
	}
	// Nobody has this address (RFC 5737), so what is answered was captured.
	const elsewhere = "198.51.100.7:8080"
	type scene struct {
		name, to string
		load     *player
	}
	var scenes []scene
	for _, name := range []string{loopback, iptables, ambit} {
		p, err := s.l.Pod(s.l.A, "redirect-"+name)
		if err != nil {
			return err
		}
		sc := scene{name: name, to: elsewhere}
		var env []string
		var ln *os.File
		switch name {
		case ambit:
			ln, err = p.Capture()
		case iptables:
			env = []string{"ORIGINAL_DST=1"}
			if ln, err = p.NS.ListenTCP(netip.MustParseAddrPort("0.0.0.0:15001"), netns.SocketOptions{Mark: netns.Mark}); err == nil {
				defer ln.Close()
				err = redirectRules(ctx, p.NS, tool)
			}
		default:
			sc.to = "127.0.0.1:8080"
			if ln, err = p.NS.ListenTCP(netip.MustParseAddrPort(sc.to), netns.SocketOptions{}); err == nil {
				defer ln.Close()
			}
		}
		if err != nil {
			return fmt.Errorf("redirection by %s: %w", name, err)
		}
		if _, err = cast(s.l, p.NS, "accept", "accept-"+name, []*os.File{ln}, env...); err != nil {
			return err
		}
		if sc.load, err = cast(s.l, p.NS, "load", "load-"+name, nil); err != nil {
			return err
		}
		scenes = append(scenes, sc)
	}
	r := s.rep.row("redirection alone, new connections, one at a time")
	r.metric("p50", "µs").ratio(ambit, iptables, 0).atMost(0.75)
	r.metric("CPU of both ends", "µs/connection").ratio(ambit, iptables, 0).atMost(0.75)
	r.metric("rate", "1/s").ratio(ambit, iptables, 0)
	open := s.rep.row("redirection alone, 1 byte there and back on an open connection")
	open.metric("p50", "µs").ratio(ambit, iptables, 0).atMost(0.75)
	open.metric("CPU of both ends", "µs/round trip").ratio(ambit, iptables, 0).atMost(0.75)
	for round := range s.scale.Rounds {
		for i := range scenes {
			sc := scenes[(i+round)%len(scenes)]
			before := s.m.read()
			a, err := sc.load.do(ctx, order{Op: "bareconnect", To: sc.to, Count: 10 * s.scale.Connections})
			if err != nil {
				return err
			}
			cpu := s.m.since(before)
			r.add("p50", sc.name, micros(a.P50))
			r.add("rate", sc.name, a.Count/a.Elapsed.Seconds())
			r.add("CPU of both ends", sc.name, (cpu["load-"+sc.name]+cpu["accept-"+sc.name])/a.Count*1e6)

			before = s.m.read()
			if a, err = sc.load.do(ctx, order{Op: "barepingpong", To: sc.to, Size: 1, For: s.scale.Latency / 2}); err != nil {
				return err
			}
			cpu = s.m.since(before)
			open.add("p50", sc.name, micros(a.P50))
			open.add("CPU of both ends", sc.name, (cpu["load-"+sc.name]+cpu["accept-"+sc.name])/a.Count*1e6)
		}
	}
	return nil
}

//go:embed redirect.rules
var rules string

// redirectRules puts the baseline's rules into a namespace of the bench. No
// part of Ambit has or wants such rules: this is what it is compared with.
func redirectRules(ctx context.Context, ns *netns.NS, tool string) error {
	return ns.Do(func() error {
		run := func(stdin string, name string, args ...string) error {
			cmd := exec.CommandContext(ctx, name, args...)
			if stdin != "" {
				f, err := os.CreateTemp("", "ambit-bench-rules-")
				if err != nil {
					return err
				}
				defer os.Remove(f.Name())
				defer f.Close()
				if _, err := f.WriteString(stdin); err != nil {
					return err
				}
				if _, err := f.Seek(0, 0); err != nil {
					return err
				}
				cmd.Stdin = f
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
			}
			return nil
		}
		return errors.Join(
			run(rules, tool+"-restore"),
			run("", "ip", "rule", "add", "fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100"),
			run("", "ip", "route", "add", "local", "default", "dev", "lo", "table", "100"),
		)
	})
}
