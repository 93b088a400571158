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
// once; above all ztunnel does not go on to dial itself. That holds as well where
// the application has the customary ports and ours are any.
//
//ambit:feature security-own-ports
func TestListenersHaveNoWayIn(t *testing.T) { each(t, listenersHaveNoWayIn, onlyIPv4, onlyIPv6) }

func listenersHaveNoWayIn(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, plain := w.newPod(w.a, "client"), w.newPod(w.b, "plain")
	usual, taken := w.newPod(w.b, "usual"), w.newPod(w.b, "taken")
	taken.listen(15001, echo)
	taken.listen(15006, echo)
	w.enrol(client, usual, taken)
	dials := 0
	for _, server := range []*pod{usual, taken} {
		ports := server.listening(t)
		t.Logf("%s listens at %d", server.name, ports)
		ours := 0
		for _, port := range ports {
			from := []*pod{client, plain, server}
			switch {
			case port == 15008:
				ours++
				from = from[:1] // that one is for everybody
			case server == taken && (port == 15001 || port == 15006):
				from = from[:2] // within the pod it is the application's
			default:
				ours++
			}
			for _, p := range from {
				at := []string{server.addr.String()}
				if p == server {
					at = append(at, f.used().loopback())
				}
				for _, a := range at {
					dials++
					turnedAway(t, p, net.JoinHostPort(a, fmt.Sprint(port)))
				}
			}
		}
		if ours < 3 {
			t.Errorf("%s: %d listeners of ours, want outbound, inbound and HBONE", server.name, ours)
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
	for _, server := range []*pod{usual, taken} {
		w.b.zt.wantLog(t, `direction="inbound"`, "dst.addr="+server.host(), `reason="self_call"`)
	}
}

// turnedAway wants a connection that is refused or ends without a byte.
func turnedAway(t *testing.T, p *pod, to string) {
	t.Helper()
	c, err := p.dial(to)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	var n net.Error
	if k, err := c.Read(make([]byte, 1)); k > 0 || err == nil || errors.As(err, &n) && n.Timeout() {
		t.Errorf("%s calls %s: read %d bytes, %v", p.name, to, k, err)
	}
}
