package netns_test

import (
	"errors"
	"net"
	"testing"
	"time"
)

// A killed ztunnel leaves its pods captured: their connections wait, none
// speaks plaintext, and the next ztunnel serves them without anybody's help.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	server.listen(9000, echo)
	w.enrol(client, server)
	wire := capturing(t, w.a.ns, "wire0")
	client.mustCurl(t, server.at(8080), "token-before-the-kill")
	open := client.mustDial(t, server.at(9000))
	pingPong(t, open, "token-open-connection")

	for _, n := range []*node{w.a, w.b} {
		n.zt.kill()
		// The connection attempt waits for a ztunnel; it is answered by the
		// next one or not at all.
		result := make(chan error, 1)
		go func() {
			_, err := client.curl(server.at(8080), "token-while-away-"+n.name)
			result <- err
		}()
		// While nobody accepts the request cannot be answered.
		select {
		case err := <-result:
			if err == nil {
				t.Errorf("answered while the ztunnel of %s was dead", n.name)
			}
		case <-time.After(300 * time.Millisecond):
		}
		n.zt = n.startZtunnel(nil)
		w.waitReady(n)
		eventually(t, "service is back after the ztunnel of "+n.name, func() error {
			body, err := client.curl(server.at(8080), "token-after-the-kill")
			if err == nil && body == "" {
				err = errors.New("empty answer")
			}
			return err
		})
	}
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("the connection of the killed ztunnel goes on")
	}
	if wire.contains("token-") {
		t.Error("plaintext between the nodes")
	}
	if n := wire.lost(t); n > 0 {
		t.Errorf("the capture lost %d frames", n)
	}
}

// Without the controller open and new connections go on; when it returns, so
// do changes.
func TestControllerAway(t *testing.T) {
	w := newWorld(t)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	server.listen(9000, echo)
	w.enrol(client, server)
	open := client.mustDial(t, server.at(9000))
	pingPong(t, open, "with the controller")

	w.control.stop()
	pingPong(t, open, "without the controller")
	client.mustCurl(t, server.at(8080), "new-connection-without-the-controller")
	// The reverse direction has no pooled tunnel: certificates are at hand.
	client.serveHTTP(8080)
	server.mustCurl(t, client.at(8080), "new-tunnel-without-the-controller")

	w.control.start()
	w.control.settled(t)
	late := w.newPod(w.b, "late")
	late.serveHTTP(8080)
	w.enrol(late)
	client.mustCurl(t, late.at(8080), "after-the-return")
	w.a.zt.wantLog(t, `dst.identity="`+late.id().String()+`"`)
}

// A ztunnel that ends with a successor in place breaks nothing: not what is
// open, and no new connection is refused.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	server.listen(9000, echo)
	w.enrol(client, server)
	open := client.mustDial(t, server.at(9000))
	pingPong(t, open, "before the drain")

	// A successor is ready before the old ztunnel is told to end, as a rolling
	// update with surge has it.
	old := w.b.zt
	w.b.zt = w.b.startZtunnel([]string{"ADMIN_ADDR=127.0.0.1:25000", "STATS_ADDR=:25020", "READINESS_ADDR=:25021"})
	eventually(t, "the successor is ready", func() error {
		_, err := w.b.get("127.0.0.1:25021", "/healthz/ready")
		return err
	})
	ended := make(chan struct{})
	go func() { defer close(ended); old.terminate() }()
	old.wantLog(t, "draining")
	for range 50 {
		client.mustCurl(t, server.at(8080), "during-the-drain")
	}
	pingPong(t, open, "during the drain")
	open.CloseWrite()
	var n net.Error
	if _, err := open.Read(make([]byte, 1)); errors.As(err, &n) && n.Timeout() {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the old ztunnel does not end although nothing is open")
	}
}
