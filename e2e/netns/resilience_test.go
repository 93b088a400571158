package netns_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// A killed ztunnel leaves its pods captured: their connections wait, none
// speaks plaintext, and the next ztunnel serves them without anybody's help.
//
//ambit:feature lifecycle-ztunnel-killed
func TestKilled(t *testing.T) { each(t, killed) }

func killed(t *testing.T, f families) {
	w := newWorldOf(t, f)
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
//
//ambit:feature lifecycle-controller-away
func TestControllerAway(t *testing.T) { each(t, controllerAway, onlyIPv4, onlyIPv6) }

func controllerAway(t *testing.T, f families) {
	w := newWorldOf(t, f)
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
//
//ambit:feature lifecycle-rollout
func TestDrain(t *testing.T) { each(t, drain, onlyIPv4, onlyIPv6) }

// surge starts a successor of n's ztunnel beside it and returns the old one when the
// new one is ready, as a rolling update with surge does.
func (n *node) surge(t *testing.T) (old *process) {
	t.Helper()
	old = n.zt
	n.zt = n.startZtunnel([]string{"ADMIN_ADDR=127.0.0.1:25000", "STATS_ADDR=:25020", "READINESS_ADDR=:25021"})
	eventually(t, "the successor is ready", func() error {
		_, err := n.get("127.0.0.1:25021", "/healthz/ready")
		return err
	})
	return old
}

func drain(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	server.listen(9000, echo)
	w.enrol(client, server)
	open := client.mustDial(t, server.at(9000))
	pingPong(t, open, "before the drain")

	// A successor is ready before the old ztunnel is told to end, as a rolling
	// update with surge has it.
	old := w.b.surge(t)
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

// The node agent away: pods go on as they were. A new agent hands over the
// same pods, which changes nothing for them, and enrols further ones.
//
//ambit:feature lifecycle-agent-gone
func TestAgentAway(t *testing.T) { each(t, agentAway, onlyIPv4, onlyIPv6) }

func agentAway(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	server.listen(9000, echo)
	w.enrol(client, server)
	open := client.mustDial(t, server.at(9000))
	pingPong(t, open, "with the agent")
	wire := capturing(t, w.a.ns, "wire0")

	w.b.agent.stop()
	eventually(t, "ztunnel says that the agent is away", func() error {
		if _, err := w.b.get("127.0.0.1:15021", "/healthz/ready"); err == nil {
			return errors.New("still ready")
		}
		return nil
	})
	pingPong(t, open, "token-without-the-agent")
	client.mustCurl(t, server.at(8080), "token-new-without-the-agent")

	w.b.agent.start()
	w.waitReady(w.b)
	late := w.newPod(w.b, "late")
	late.serveHTTP(8080)
	w.enrol(late)
	client.mustCurl(t, late.at(8080), "token-late")
	pingPong(t, open, "token-still-open")
	if wire.contains("token-") {
		t.Error("plaintext between the nodes")
	}
}

// What was open before a pod was enrolled goes on as it was.
//
//ambit:feature policy-older-run-on
func TestOlderConnectionsRunOn(t *testing.T) { each(t, olderConnectionsRunOn) }

func olderConnectionsRunOn(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.listen(9000, echo)
	w.control.settled(t)
	old := client.mustDial(t, server.at(9000))
	pingPong(t, old, "before")
	w.enrol(client, server)
	pingPong(t, old, "after")
	fresh := client.mustDial(t, server.at(9000))
	pingPong(t, fresh, "through the mesh")
	w.release(client, server)
	pingPong(t, old, "after the release")
	old.CloseWrite()
	if _, err := old.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the end of the old connection: %v", err)
	}
}

// A policy that the workload names and that has not come yet holds new
// connections until it does.
//
//ambit:feature policy-pending
func TestPendingPolicyHolds(t *testing.T) {
	w := newWorld(t)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	w.enrol(client, server)
	server.change = func(rec *mesh.Workload) { rec.Policies = []string{"demo/later"} }
	w.announce(server, true)
	w.control.settled(t)
	answer := make(chan error, 1)
	go func() {
		_, err := client.curl(server.at(8080), "held")
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("not held: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	w.control.apply(mesh.Delta{Policies: []*mesh.Policy{{Name: "later", Namespace: "demo", Scope: mesh.ScopeWorkloadSelector,
		Rules: []mesh.Rule{{}}}}})
	if err := <-answer; err != nil {
		t.Errorf("held connection: %v", err)
	}
	w.control.apply(mesh.Delta{RemovedPolicies: []string{"demo/later"}})
	w.control.settled(t)
	if _, err := client.curl(server.at(8080), "denied"); err == nil {
		t.Error("a policy that does not come lets connections in")
	}
	w.b.zt.wantLog(t, "connection complete", `reason="policy_pending"`, "demo/later")
}

// Many short connections at once: every one is answered, and each has a source
// port of its own.
func TestManyConnections(t *testing.T) { each(t, manyConnections, onlyIPv4, onlyIPv6) }

func manyConnections(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	w.enrol(client, server)
	const workers, each = 16, 50
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	began := time.Now()
	for range workers {
		wg.Go(func() {
			for range each {
				if _, err := client.curl(server.at(8080), "one of many"); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	t.Logf("%.0f requests per second, each on a connection of its own", workers*each/time.Since(began).Seconds())
	eventually(t, "all are counted", func() error {
		if n := w.b.metric(t, "istio_tcp_connections_closed_total", `reporter="destination"`, `response_flags="-"`); n != workers*each {
			return fmt.Errorf("%v", n)
		}
		return nil
	})
	if n := w.b.metric(t, "ambit_connections_open"); n != 0 {
		t.Errorf("%v connections still open", n)
	}
}
