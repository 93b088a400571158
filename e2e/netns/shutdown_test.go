package netns_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"golang.org/x/sys/unix"
)

// TestShutdown: a ztunnel that is told to end waits for what is open, says that it
// is not ready and still tells its metrics; it ends in order with the last
// connection, or at its deadline, which resets what is left and says so.
//
//ambit:feature telemetry-shutdown
func TestShutdown(t *testing.T) { each(t, shutdown, onlyIPv4) }

func shutdown(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.listen(9000, echo)
	w.enrol(client, server)
	restart := func(deadline string) {
		w.b.zt.terminate()
		w.b.zt = w.b.startZtunnel([]string{"CONNECTION_TERMINATION_DEADLINE=" + deadline})
		w.waitReady(w.b)
	}
	ended := func(what string) {
		t.Helper()
		select {
		case <-w.b.zt.done:
		case <-time.After(patience):
			t.Fatalf("%s: it does not end", what)
		}
		if code := w.b.zt.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("%s: exit code %d", what, code)
		}
	}

	restart("1h")
	open := client.mustDial(t, server.at(9000))
	pingPong(t, open, "before")
	if body, err := w.b.post("127.0.0.1:15000", "/quitquitquit"); err != nil || body != "shutdown now\n" {
		t.Fatalf("%q %v", body, err)
	}
	eventually(t, "it is not ready", func() error {
		_, err := w.b.get("127.0.0.1:15021", "/healthz/ready")
		if err == nil {
			return errors.New("it is ready")
		}
		if !strings.Contains(err.Error(), "pending: proxy") {
			return fmt.Errorf("readiness: %w", err)
		}
		return nil
	})
	pingPong(t, open, "while it drains")
	if n := w.b.metric(t, "istio_tcp_connections_opened_total"); n == 0 {
		t.Error("its metrics are empty while it drains")
	}
	open.Close()
	ended("with the last connection")

	w.b.zt = w.b.startZtunnel([]string{"CONNECTION_TERMINATION_DEADLINE=1s"})
	w.waitReady(w.b)
	open = client.mustDial(t, server.at(9000))
	pingPong(t, open, "before the deadline")
	if err := w.b.zt.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	open.SetReadDeadline(time.Now().Add(patience))
	if _, err := open.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what is open at the deadline ends with %v", err)
	}
	ended("at the deadline")
	w.b.zt.wantLog(t, "connection complete", `error="connection closed due to connection drain`, `reason="drained"`)
}

// post posts nothing to a component of the node.
func (n *node) post(addr, path string) (string, error) {
	c, err := n.ns.DialTCP(n.w.t.Context(), netip.AddrPort{}, netip.MustParseAddrPort(addr), netns.SocketOptions{})
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.0\r\nContent-Length: 0\r\n\r\n", path); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	_, body, ok := strings.Cut(string(b), "\r\n\r\n")
	if !ok || !strings.Contains(string(b), " 200 ") {
		return "", fmt.Errorf("answer %.100q: %w", b, err)
	}
	return body, nil
}

// TestMaliciousCalls: who calls the ports of a ztunnel, at its own address, its
// pod's or loopback, from a meshed pod or another, is refused, hung up on, or told
// that it is no request; nothing goes around in circles, and pods are served on.
//
//ambit:feature security-malicious-calls
func TestMaliciousCalls(t *testing.T) { each(t, maliciousCalls, onlyIPv4) }

func maliciousCalls(t *testing.T, f families) {
	w := newWorldOf(t, f)
	captured, server, plain := w.newPod(w.a, "captured"), w.newPod(w.b, "server"), w.newPod(w.b, "plain")
	server.serveHTTP(8080)
	// The mesh knows its ztunnels, or their own listeners wait to hear of them.
	for _, n := range []*node{w.a, w.b} {
		w.control.apply(mesh.Delta{Workloads: []*mesh.Workload{{UID: "test//Pod/ambit-system/ztunnel-" + n.name, Name: "ztunnel-" + n.name,
			Namespace: "ambit-system", ServiceAccount: "ztunnel", Node: n.name, Protocol: mesh.ProtocolHBONE, NativeTunnel: true, ClusterID: "test",
			Addresses: []netip.Addr{netip.MustParseAddr(f.used().wireAddr(n.number))}}}})
	}
	w.enrol(captured, server)
	calls, answered := 0, 0
	for _, from := range []*pod{captured, plain, server} {
		for _, host := range []string{f.used().wireAddr(1), f.used().wireAddr(2), from.host(), server.host(), f.used().loopback()} {
			for _, port := range []string{"15000", "15001", "15006", "15008", "15020", "15021", "15053", "15080"} {
				calls++
				answer, err := malicious(from, net.JoinHostPort(strings.Trim(host, "[]"), port))
				switch {
				case err != nil:
					t.Errorf("%s calls %s port %s: %v", from.name, host, port, err)
				case strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.1 %d", http.StatusBadRequest)):
					answered++
					if port != "15020" && port != "15021" {
						t.Errorf("%s reaches port %s of %s", from.name, port, host)
					}
				case answer != "":
					t.Errorf("%s calls %s port %s: %.60q", from.name, host, port, answer)
				}
			}
		}
	}
	if answered == 0 {
		t.Error("not even ztunnel's metrics were reached: is the right address called?")
	}
	eventually(t, "nothing is open", func() error {
		for _, n := range []*node{w.a, w.b} {
			if open := n.metric(t, "ambit_connections_open"); open != 0 {
				return fmt.Errorf("%v connections on %s", open, n.name)
			}
		}
		return nil
	})
	// A call passes three proxies at most, each of which has one record of it.
	seen := 0.0
	for _, n := range []*node{w.a, w.b} {
		seen += n.metric(t, "istio_tcp_connections_opened_total") + n.metric(t, "ambit_connections_failed_total")
	}
	if seen > float64(6*calls) {
		t.Errorf("%d calls became %v connections", calls, seen)
	}
	captured.mustCurl(t, server.at(8080), "afterwards")
}

// malicious says something that is no request of any kind, and what comes back;
// the error is for who neither answers nor hangs up.
func malicious(from *pod, to string) (string, error) {
	c, err := from.dial(to)
	if err != nil {
		return "", nil
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("no request\r\n\r\n")); err != nil {
		return "", nil
	}
	b, err := io.ReadAll(io.LimitReader(c, 4096))
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return string(b), err
	}
	return string(b), nil
}

// TestUnreadyWithoutDescriptors: a ztunnel whose pods use nearly all of its
// descriptors is not ready, with the figures, and is again when they end; it serves
// on meanwhile.
//
//ambit:feature telemetry-descriptors
func TestUnreadyWithoutDescriptors(t *testing.T) {
	w := newWorld(t)
	server, outside := w.newPod(w.b, "server"), w.newPod(w.a, "outside")
	server.listen(9000, echo)
	w.enrol(server)
	ready := func() string {
		_, err := w.b.get("127.0.0.1:15021", "/healthz/ready")
		return fmt.Sprint(err)
	}
	used := int(w.b.metric(t, "process_open_fds"))
	const room = 60
	if err := unix.Prlimit(w.b.zt.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(used + room), Max: 20000}, nil); err != nil {
		t.Fatal(err)
	}
	if r := ready(); r != "<nil>" {
		t.Fatalf("with %d of %d used: %s", used, used+room, r)
	}
	var open []*net.TCPConn
	for range room * 9 / 20 { // two descriptors each: nine tenths of what is left
		c := outside.mustDial(t, server.at(9000))
		pingPong(t, c, "one more")
		open = append(open, c)
	}
	if r := ready(); !strings.Contains(r, "pending: descriptors (") || !strings.Contains(r, fmt.Sprintf(" of %d are open", used+room)) {
		t.Errorf("with few left: %s", r)
	}
	w.b.zt.wantLog(t, "descriptors run out")
	pingPong(t, open[0], "an open one goes on")
	last := outside.mustDial(t, server.at(9000))
	pingPong(t, last, "a new one is served")
	last.Close()
	for _, c := range open {
		c.Close()
	}
	eventually(t, "it is ready again", func() error {
		if r := ready(); r != "<nil>" {
			return errors.New(r)
		}
		return nil
	})
	w.b.zt.wantLog(t, "there are descriptors again")
}
