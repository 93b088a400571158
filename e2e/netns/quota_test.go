package netns_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// try makes up to n connections at once that have carried something, and says how many
// were refused.
func try(t *testing.T, client *pod, to string, n int) (conns []*net.TCPConn, refused int) {
	t.Helper()
	for i := range n {
		c, err := client.dial(to)
		if err == nil {
			c.SetDeadline(time.Now().Add(4 * patience))
			if err = exchange(c, fmt.Sprint("try ", i)); err == nil {
				conns = append(conns, c)
				t.Cleanup(func() { c.Close() })
				continue
			}
			c.Close()
		}
		refused++
	}
	return conns, refused
}

// TestConnectionQuota: one pod gets what one may have, with a reason for what is over,
// in both directions; another pod does not notice, and what was given back is there again.
//
//ambit:feature hbone-quota-connections
func TestConnectionQuota(t *testing.T) {
	w := newWorld(t)
	w.b.zt.kill()
	w.b.zt = w.b.startZtunnel([]string{"AMBIT_POD_CONNECTION_LIMIT=20"})
	w.waitReady(w.b)
	client, stranger := w.newPod(w.a, "client"), w.newPod(w.a, "stranger")
	server, other := w.newPod(w.b, "server"), w.newPod(w.b, "other")
	server.listen(9000, echo)
	other.listen(9000, echo)
	stranger.listen(9000, echo)
	w.enrol(client, server, other)

	// A tunnel is four, a connection in it one.
	conns, refused := try(t, client, server.at(9000), 30)
	if len(conns) != 16 || refused != 14 {
		t.Errorf("%d connections, %d refused, want 16 and 14", len(conns), refused)
	}
	w.b.zt.wantLog(t, "dst.addr="+server.at(15008), `reason="quota_connections"`, "20 of the 20 units")
	w.a.zt.wantLog(t, "dst.hbone_addr="+server.at(9000), `reason="peer_unavailable"`)
	eventually(t, "all refusals are counted", func() error {
		if n := w.b.metric(t, "ambit_connections_failed_total", `reason="quota_connections"`); n != 14 {
			return fmt.Errorf("%v are", n)
		}
		return nil
	})
	if _, refused := try(t, server, stranger.at(9000), 1); refused != 1 {
		t.Error("the pod's own connections are not counted with those to it")
	}
	if _, refused := try(t, client, other.at(9000), 10); refused > 0 {
		t.Errorf("%d refused of another pod", refused)
	}
	full := w.b.metric(t, "ambit_quota_connections_used")
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "they may come again", func() error {
		c, err := client.dial(server.at(9000))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		return exchange(c, "again")
	})
	eventually(t, "what they had is given back", func() error {
		if n := w.b.metric(t, "ambit_quota_connections_used"); n > full-16 {
			return fmt.Errorf("%v units are in use, %v before", n, full)
		}
		return nil
	})
	// Without encryption both of a connection's ends count.
	conns, _ = try(t, stranger, server.at(9000), 12)
	if len(conns) > 10 || len(conns) < 6 {
		t.Errorf("%d connections in plaintext", len(conns))
	}
}

// TestOutOfDescriptors: with none left ztunnel says so, what is open goes on, and what
// waited is served when there are some again.
//
//ambit:feature hbone-descriptors
func TestOutOfDescriptors(t *testing.T) {
	w, client, server := pair(t)
	stranger := w.newPod(w.a, "stranger")
	server.listen(9000, echo)
	w.enrol(client, server)
	steady := hold(t, client, server.at(9000), 5)
	few := uint64(w.b.metric(t, "process_open_fds")) + 10
	var before unix.Rlimit
	if err := unix.Prlimit(w.b.zt.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: few, Max: 20000}, &before); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var conns []*net.TCPConn
	for range 40 {
		conns = append(conns, stranger.mustDial(t, server.at(9000))) // the kernel takes them
	}
	w.b.zt.wantLog(t, "connections wait, ztunnel cannot accept them", "too many open files")
	for i, c := range steady {
		for j := range 50 {
			if err := exchange(c, fmt.Sprint("steady ", i, " ", j)); err != nil {
				t.Fatalf("an open connection: %v", err)
			}
		}
	}
	for _, c := range conns[:20] {
		c.Close()
	}
	// Those that wait come in as others go.
	for i, c := range conns[20:] {
		err := exchange(c, fmt.Sprint("late ", i))
		c.Close()
		if err == nil {
			continue
		}
		if i == 0 {
			t.Logf("one that was accepted, and had no socket to go on: %v", err)
		}
	}
	eventually(t, "new connections", func() error {
		c, err := client.dial(server.at(9000))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		return exchange(c, "new")
	})
	if n := w.b.metric(t, "ambit_accept_errors_total"); n == 0 || n > 10_000 {
		t.Errorf("%v errors are counted", n)
	}
	// Once a minute.
	if n := w.b.zt.count("ztunnel cannot accept them"); n < 1 || n > 1+int(time.Since(began)/time.Minute) {
		t.Errorf("said %d times in %s", n, time.Since(began))
	}
}
