package netns_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// listening lists the TCP ports with a listener in the pod.
func (p *pod) listening(t testing.TB) (ports []uint16) {
	t.Helper()
	within(t, p.ns, func() error {
		for _, f := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + f)
			if err != nil {
				return err
			}
			for _, line := range strings.Split(string(b), "\n")[1:] {
				if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" {
					var port uint16
					if _, err := fmt.Sscanf(f[1][strings.IndexByte(f[1], ':')+1:], "%X", &port); err != nil {
						return err
					}
					ports = append(ports, port)
				}
			}
		}
		return nil
	})
	return ports
}

// ztunnel's listeners in a pod are reached by capture, not by their ports. Who
// dials a port of theirs, from another pod or from the pod itself, is refused at
// once; above all ztunnel does not go on to dial itself.
func TestListenersHaveNoWayIn(t *testing.T) {
	w := newWorld(t)
	client, server, plain := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.b, "plain")
	w.enrol(client, server)
	ports := server.listening(t)
	if len(ports) < 3 {
		t.Fatalf("listeners at %d, want outbound, inbound and HBONE", ports)
	}
	dials := 0
	for _, port := range ports {
		var to []string
		for _, a := range []string{server.addr.String(), "127.0.0.1"} {
			to = append(to, net.JoinHostPort(a, fmt.Sprint(port)))
		}
		for _, d := range []struct {
			from *pod
			to   string
		}{{client, to[0]}, {plain, to[0]}, {server, to[0]}, {server, to[1]}} {
			if port == 15008 && d.from != client {
				continue // that one is for everybody
			}
			c, err := d.from.dial(d.to)
			if err != nil {
				continue
			}
			dials++
			c.SetDeadline(time.Now().Add(patience))
			var n net.Error
			if k, err := c.Read(make([]byte, 1)); k > 0 || err == nil || errors.As(err, &n) && n.Timeout() {
				t.Errorf("%s calls %s: read %d bytes, %v", d.from.name, d.to, k, err)
			}
			c.Close()
		}
	}
	eventually(t, "nothing is open", func() error {
		for _, n := range []*node{w.a, w.b} {
			if open := n.metric(t, "ambit_connections_open"); open != 0 {
				return fmt.Errorf("%v connections on %s", open, n.name)
			}
		}
		return nil
	})
	// A call has a record at most at each of its three proxies.
	if failed := w.a.metric(t, "ambit_connections_failed_total") + w.b.metric(t, "ambit_connections_failed_total"); failed > float64(3*dials) {
		t.Errorf("%d calls became %v connections", dials, failed)
	}
	if _, ok := w.b.zt.log(`direction="inbound"`, `reason="self_call"`); !ok {
		t.Error("no refusal in the log of the server's ztunnel")
	}
}
