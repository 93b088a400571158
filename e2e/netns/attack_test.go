package netns_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/e2e/assault"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// attackMemory is what ztunnel is told that it has, and attackPeak what it may take at
// most: with the program's own pages, and what Go has not given back yet.
const (
	attackMemory = 128 << 20
	attackPeak   = 160 << 20
)

// TestUnderAttack: three hostile peers, with every attack there is at once on one pod,
// cannot make ztunnel take more memory than stated, nor fail a single exchange of
// another pod; the attacked pod serves again when they stop.
//
//ambit:feature hbone-under-attack hbone-quota-backlog hbone-header-flood
func TestUnderAttack(t *testing.T) {
	w := newWorld(t)
	w.b.zt.kill()
	w.b.zt = w.b.startZtunnel([]string{"GOMEMLIMIT=" + strconv.Itoa(attackMemory)})
	w.waitReady(w.b)
	server, other, client := w.newPod(w.b, "server"), w.newPod(w.b, "other"), w.newPod(w.a, "client")
	strangers := []*pod{w.newPod(w.a, "stranger1"), w.newPod(w.a, "stranger2"), w.newPod(w.a, "stranger3")}
	ctx, cancel := context.WithCancel(context.Background())
	server.listen(9007, func(c *net.TCPConn) { assault.UntilGone(ctx, c) })
	server.listen(9008, func(c *net.TCPConn) {
		block := make([]byte, 1<<16)
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	server.listen(9000, echo)
	other.listen(9000, echo)
	w.enrol(server, other, client)
	steady := hold(t, client, other.at(9000), 20)
	idle := w.b.zt.memory(t, "VmRSS")

	data := w.control.authority.SecretData()
	issuer, err := tls.X509KeyPair(data["ca-cert.pem"], data["ca-key.pem"])
	if err != nil {
		t.Fatal(err)
	}
	hostile, err := assault.Client(issuer, identity.ID{TrustDomain: "cluster.local", Namespace: "demo", ServiceAccount: "stranger"})
	if err != nil {
		t.Fatal(err)
	}
	a := assault.New(hostile, server.at(9007), server.at(9008))
	var attackers sync.WaitGroup
	for _, p := range strangers {
		attackers.Go(func() {
			a.Run(ctx, 5, 250*time.Millisecond, func(context.Context) (net.Conn, error) { return p.dial(server.at(15008)) })
		})
	}
	stopped := sync.OnceFunc(func() { cancel(); attackers.Wait() })
	t.Cleanup(stopped)

	backlog, exchanges := 0.0, 0
	limit := w.b.metric(t, "ambit_backlog_limit_bytes")
	for !a.Came(10) || exchanges < 400 {
		for i, c := range steady {
			c.SetDeadline(time.Now().Add(4 * patience))
			if err := exchange(c, fmt.Sprint("steady ", i, " ", exchanges)); err != nil {
				t.Fatalf("exchange %d, %s: %v", exchanges, a, err)
			}
			exchanges++
		}
		// And a connection of its own now and then.
		c, err := client.dial(other.at(9000))
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		c.SetDeadline(time.Now().Add(4 * patience))
		if err := exchange(c, fmt.Sprint("new ", exchanges)); err != nil {
			t.Fatalf("a new connection behind %d exchanges, %s: %v", exchanges, a, err)
		}
		c.Close()
		backlog = max(backlog, w.b.metric(t, "ambit_backlog_bytes"))
		if exchanges > 1_000_000 {
			t.Fatalf("the attack does not come up: %s", a)
		}
	}
	peak := w.b.zt.memory(t, "VmHWM")
	t.Logf("%s; %d exchanges beside it; idle %d MB, peak %d MB, backlog %.1f of %.1f MB", a, exchanges, idle>>20, peak>>20, backlog/1e6, limit/1e6)
	if peak > attackPeak {
		t.Errorf("ztunnel took %d MB with a limit of %d MB", peak>>20, attackMemory>>20)
	}
	if backlog > limit/2 { // the pod's share is half of that
		t.Errorf("%.0f bytes held, the limit of all pods is %.0f", backlog, limit)
	}
	if n := w.b.metric(t, "ambit_connections_failed_total", `reason="quota_backlog"`); n == 0 {
		t.Error("no backlog was reset: was there an attack?")
	}
	if n := w.b.metric(t, "ambit_connections_failed_total", `reason="memory_pressure"`); n > 0 {
		t.Errorf("%v resets for the whole node's sake, one pod was to blame", n)
	}
	stopped()
	eventually(t, "the attacked pod serves again", func() error {
		c, err := client.dial(server.at(9000))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		return exchange(c, "after all")
	})
	for _, c := range steady {
		c.Close()
	}
}

// memory is a field of the kernel's account of p, in bytes.
func (p *process) memory(t testing.TB, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s", field)
	return 0
}
