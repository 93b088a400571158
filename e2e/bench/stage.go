package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/ambitmesh/ambit/e2e/bench/lab"
)

// stage is the lab with everybody in place: one pair of pods in the mesh, one
// pair outside it that also holds the plain proxies, both with the client on
// node a and the application on node b.
type stage struct {
	l     *lab.Lab
	m     *meter
	scale scale
	rep   *report

	meshed, plain         *player // load
	other                 *player // in a lab of its own with another ztunnel; nil without one
	otherServer           *lab.Pod
	meshServer, plainPeer *lab.Pod
	meshClient            *lab.Pod
}

// scale is how long and how often.
type scale struct {
	Rounds       int
	Bulk         time.Duration
	Latency      time.Duration
	OpenLoop     time.Duration
	Idle         time.Duration
	Connections  int // one at a time; four times as many 32 at a time
	Tunnels      int
	Pods         int
	AtOnce       int
	Changes      int
	Workloads    int
	ManyWorkload int
	Restarts     int
}

var (
	quick = scale{Rounds: 5, Bulk: 800 * time.Millisecond, Latency: time.Second, OpenLoop: 2 * time.Second, Idle: 5 * time.Second, Connections: 800,
		Tunnels: 1000, Pods: 100, AtOnce: 50, Changes: 30, Workloads: 1000, ManyWorkload: 10000, Restarts: 3}
	full = scale{Rounds: 11, Bulk: 3 * time.Second, Latency: 2 * time.Second, OpenLoop: 5 * time.Second, Idle: 20 * time.Second, Connections: 2000,
		Tunnels: 1000, Pods: 100, AtOnce: 50, Changes: 60, Workloads: 1000, ManyWorkload: 10000, Restarts: 5}
	smoke = scale{Rounds: 1, Bulk: 100 * time.Millisecond, Latency: 100 * time.Millisecond, OpenLoop: 200 * time.Millisecond, Idle: 100 * time.Millisecond,
		Connections: 40, Tunnels: 20, Pods: 6, AtOnce: 3, Changes: 2, Workloads: 50, ManyWorkload: 200, Restarts: 1}
)

// variant is one way from a client to an application.
type variant struct {
	name    string
	load    *player
	pod     *lab.Pod // where the application is
	shift   uint16   // of the port that is dialled; its plain proxy is in the client's own pod
	proxies [2]string
}

const (
	noMesh  = "no mesh"
	copied  = "copy"
	spliced = "splice"
	ambit   = "Ambit"
	// otherOne is a ztunnel of another revision, or with other settings.
	otherOne = "other"
)

func (s *stage) variant(name string) variant {
	proxies := [2]string{"proxy-a", "proxy-b"}
	switch name {
	case noMesh:
		return variant{name: name, load: s.plain, pod: s.plainPeer}
	case copied:
		return variant{name: name, load: s.plain, shift: shiftCopy, proxies: proxies}
	case spliced:
		return variant{name: name, load: s.plain, shift: shiftSplice, proxies: proxies}
	}
	if name == otherOne {
		return variant{name: name, load: s.other, pod: s.otherServer, proxies: [2]string{otherOne + " ztunnel-node-a", otherOne + " ztunnel-node-b"}}
	}
	return variant{name: ambit, load: s.meshed, pod: s.meshServer, proxies: [2]string{"ztunnel-node-a", "ztunnel-node-b"}}
}

func (v variant) to(port uint16) string {
	if v.shift > 0 {
		return net.JoinHostPort("127.0.0.1", fmt.Sprint(port+v.shift))
	}
	return v.pod.At(port)
}

// set makes the pods of the traffic rows and everything that runs in them.
func (s *stage) set(ctx context.Context) error {
	l := s.l
	pods := map[string]*lab.Pod{}
	for name, n := range map[string]*lab.Node{"client-m": l.A, "server-m": l.B, "client-p": l.A, "server-p": l.B} {
		p, err := l.Pod(n, name)
		if err != nil {
			return err
		}
		pods[name] = p
	}
	s.meshClient, s.meshServer, s.plainPeer = pods["client-m"], pods["server-m"], pods["server-p"]
	var errs []error
	start := func(pod, role, name string, env ...string) *player {
		p, err := cast(l, pods[pod].NS, role, name, nil, env...)
		errs = append(errs, err)
		return p
	}
	s.meshed = start("client-m", "load", "load-m")
	start("server-m", "app", "app-m")
	s.plain = start("client-p", "load", "load-p")
	start("server-p", "app", "app-p")
	start("client-p", "proxy", "proxy-a", "NEXT="+s.plainPeer.Addr.String())
	start("server-p", "proxy", "proxy-b", "NEXT="+s.plainPeer.Addr.String(), "LAST=1")
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := errors.Join(s.meshClient.Enrol(ctx), s.meshServer.Enrol(ctx)); err != nil {
		return err
	}
	return l.Announce(ctx, s.meshClient, s.meshServer)
}

// setOther is the pair of pods in the mesh once more, in a lab with another
// ztunnel.
func (s *stage) setOther(ctx context.Context, l *lab.Lab) error {
	client, err := l.Pod(l.A, "client-m")
	if err != nil {
		return err
	}
	if s.otherServer, err = l.Pod(l.B, "server-m"); err != nil {
		return err
	}
	if s.other, err = cast(l, client.NS, "load", "load-m", nil); err != nil {
		return err
	}
	if _, err = cast(l, s.otherServer.NS, "app", "app-m", nil); err != nil {
		return err
	}
	if err := errors.Join(client.Enrol(ctx), s.otherServer.Enrol(ctx), l.Announce(ctx, client, s.otherServer)); err != nil {
		return err
	}
	return lab.Eventually(ctx, func() error {
		return exchangeFrom(ctx, client, s.otherServer.At(portEcho), 5*time.Second)
	})
}

// run has one variant carry out an order, and returns the CPU seconds of every
// process besides the answer.
func (s *stage) run(ctx context.Context, v variant, port uint16, o order) (answer, map[string]float64, error) {
	o.To = v.to(port)
	before := s.m.read()
	a, err := v.load.do(ctx, o)
	return a, s.m.since(before), err
}

// exchangeFrom is one connection and one byte each way, from this process.
func exchangeFrom(ctx context.Context, p *lab.Pod, to string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	c, err := p.Dial(ctx, to)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(wait))
	one := []byte{1}
	if _, err := c.Write(one); err != nil {
		return err
	}
	_, err = io.ReadFull(c, one)
	return err
}

// program builds the ztunnel to measure.
func program(ctx context.Context, dir string) (string, error) {
	path := dir + "/ambit-ztunnel"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/ambitmesh/ambit/cmd/ambit-ztunnel")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build ambit-ztunnel: %w\n%s", err, out)
	}
	return path, nil
}
