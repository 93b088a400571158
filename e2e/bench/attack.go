package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"

	"github.com/ambitmesh/ambit/e2e/assault"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// Ports of the application that is attacked, and what the attacker is told beside
// its orders.
const (
	portUnread  = 9007 // reads nothing
	portEndless = 9008 // writes without end

	preyEnv = "AMBIT_BENCH_PREY" // its address
	certEnv = "AMBIT_BENCH_ISSUER_CERT"
	keyEnv  = "AMBIT_BENCH_ISSUER_KEY"
)

// Every kind of attack has so many connections, and who is thrown out is back after
// so long.
const (
	attackers    = 5
	attackerPace = time.Second
	slowest      = 30 * time.Second // to begin at all
)

// prey is the application that is attacked.
func prey() error {
	return errors.Join(
		listen(portUnread, func(c *net.TCPConn) { assault.UntilGone(context.Background(), c) }),
		listen(portEndless, func(c *net.TCPConn) {
			block := make([]byte, 1<<16)
			for {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		}))
}

// attack carries out an order of that name: as long as it says, every attack there is.
func attack(o order) error {
	issuer, err := tls.X509KeyPair([]byte(os.Getenv(certEnv)), []byte(os.Getenv(keyEnv)))
	if err != nil {
		return err
	}
	client, err := assault.Client(issuer, identity.ID{TrustDomain: identity.DefaultTrustDomain, Namespace: "bench", ServiceAccount: "hostile"})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	at := func(port string) string { return net.JoinHostPort(os.Getenv(preyEnv), port) }
	var d net.Dialer
	a := assault.New(client, at("9007"), at("9008"))
	go func() {
		defer cancel()
		for began := time.Now(); time.Since(began) < o.For || !a.Began() && time.Since(began) < o.For+slowest; {
			time.Sleep(50 * time.Millisecond)
		}
	}()
	a.Run(ctx, o.Conns, attackerPace, func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp4", o.To) })
	if !a.Began() {
		return errors.New("the attack did not begin: " + a.String())
	}
	return nil
}

// peace is the same victim, with nobody attacked.
const peace = "in peace"

// underAttack measures one pod's traffic while another pod of the same node, so the same
// ztunnel, is attacked, and without that, in turns.
func (s *stage) underAttack(ctx context.Context) error {
	l := s.l
	target, err := l.Pod(l.B, "prey")
	if err != nil {
		return err
	}
	hostile, err := l.Pod(l.A, "hostile")
	if err != nil {
		return err
	}
	if _, err := cast(l, target.NS, "prey", "prey", nil); err != nil {
		return err
	}
	cert, key := l.Control.Issuer()
	attacker, err := cast(l, hostile.NS, "load", "hostile", nil,
		preyEnv+"="+target.Addr.String(), certEnv+"="+string(cert), keyEnv+"="+string(key))
	if err != nil {
		return err
	}
	defer attacker.Kill()
	if err := errors.Join(target.Enrol(ctx), l.Announce(ctx, target)); err != nil {
		return err
	}
	r := s.rep.row("1000/s of 1 KiB over 16 connections, another pod of the node attacked")
	r.metric("p50", "µs").ratio(ambit, peace, 0)
	r.metric("p99", "µs").ratio(ambit, peace, 0).atMost(2)
	const attacked = "CPU of the attacked ztunnel"
	r.metric(attacked, "vCPU").ratio(ambit, peace, 0)
	v := s.variant(ambit)
	once := func(name string) error {
		a, cpu, err := s.run(ctx, v, portEcho, order{Op: "openloop", Conns: 16, Rate: 1000, Size: 1024, For: s.scale.OpenLoop})
		if err != nil {
			return err
		}
		r.add("p50", name, micros(a.P50))
		r.add("p99", name, micros(a.P99))
		r.add(attacked, name, cpu[v.proxies[1]]/a.Elapsed.Seconds())
		for process, c := range cpu {
			if c > 0 {
				r.process(attacked, name, process, c/a.Elapsed.Seconds())
			}
		}
		return nil
	}
	for round := range s.scale.Rounds {
		for i := range 2 {
			if (i+round)%2 == 0 {
				if err := once(peace); err != nil {
					return err
				}
				continue
			}
			comingUp := min(3*time.Second, 2*s.scale.OpenLoop)
			ended := make(chan error, 1)
			go func() {
				_, err := attacker.do(ctx, order{Op: "attack", To: target.At(15008), Conns: attackers, For: s.scale.OpenLoop + 2*comingUp})
				ended <- err
			}()
			select {
			case err := <-ended:
				return err
			case <-time.After(comingUp):
			}
			if err := errors.Join(once(ambit), <-ended); err != nil {
				return err
			}
			time.Sleep(time.Second) // what it left behind is given back
		}
	}
	return errors.Join(target.Release(ctx), ctx.Err())
}
