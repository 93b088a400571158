package netns_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestControlPlaneUnderLoad is three minutes of connections between two nodes,
// new ones with handshakes of their own, pooled ones and long ones, with
// certificates that live for 30 seconds. Meanwhile pods, services and policies
// come and go, the CA's root is replaced in its four steps, controllers are
// killed, the one that leads among them, and one is rolled. No connection may
// fail. It runs where the API server is, which the layer "api" has.
//
//ambit:feature identity-rotation identity-root-change identity-root-cli identity-replicas identity-token-review
//ambit:feature binding-carried
//ambit:feature controller-failover controller-one-writer controller-reconnect controller-metrics
func TestControlPlaneUnderLoad(t *testing.T) {
	const load = 3 * time.Minute
	w, p := newPlaneWorld(t, "--max-workload-cert-ttl", "30s")
	var pods []*pod
	for i, n := range []*node{w.a, w.b, w.a, w.b} {
		pods = append(pods, p.meshed(w, n, fmt.Sprintf("app-%d", i)))
		pods[i].listen(9000, echo)
	}
	for i, from := range pods {
		to := pods[(i+1)%len(pods)] // on the other node
		eventually(t, from.name+" reaches "+to.name, func() error {
			_, err := from.curlEcho(to)
			return err
		})
	}
	before := map[*node]float64{w.a: w.a.metric(t, "ambit_connections_failed_total"), w.b: w.b.metric(t, "ambit_connections_failed_total")}
	issued := func() float64 {
		return w.a.metric(t, "ambit_certificate_requests_total", `result="success"`) + w.b.metric(t, "ambit_certificate_requests_total", `result="success"`)
	}
	first := issued()

	ctx, cancel := context.WithTimeout(t.Context(), load)
	defer cancel()
	l := newTraffic(ctx)
	for i, from := range pods {
		to := pods[(i+1)%len(pods)]
		l.call(from, to, 20*time.Millisecond) // over a pooled tunnel
		l.hold(t, from, to)
	}
	for i := range 2 { // a tunnel for each connection
		l.call(pods[i], pods[3-i], 700*time.Millisecond)
		l.call(pods[3-i], pods[i], 900*time.Millisecond)
	}
	churn := p.churn(t, l)
	watch := p.watchLeaders(t, l)

	p.drama(t, w, l)
	failures := l.end()
	churned, seen := churn(), watch()
	t.Logf("%.0f s: %d connections, %d exchanges on %d long ones, %.0f certificates, %d objects changed, %d looks at the leaders",
		time.Since(l.began).Seconds(), l.calls.Load(), l.pings.Load(), len(pods), issued()-first, churned, seen)
	for _, f := range failures {
		t.Error(f)
	}
	for n, was := range before {
		if now := n.metric(t, "ambit_connections_failed_total"); now != was {
			t.Errorf("%s counts %v failed connections", n.name, now-was)
		}
	}
	// Four identities on the nodes: more than three renewals of each.
	if got := issued() - first; got < 12 {
		t.Errorf("only %v certificates were issued in %v", got, load)
	}
	t.Run("waypoint", func(t *testing.T) { p.testWaypoint(t, w, pods[0], pods[1]) })
	t.Run("reconnect", func(t *testing.T) { p.testReconnect(t, w) })
	t.Run("metrics", p.testMetrics)
	t.Run("wrong tokens", func(t *testing.T) { p.testWrongTokens(t, w) })
}

// curlEcho is one short exchange.
func (p *pod) curlEcho(to *pod) (string, error) {
	c, err := p.dial(to.at(9000))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("ping")); err != nil {
		return "", err
	}
	buf := make([]byte, 4)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// drama is what goes wrong, and right, during the load.
func (p *plane) drama(t *testing.T, w *world, l *traffic) {
	say := func(format string, args ...any) {
		t.Logf("%6.1fs "+format, append([]any{time.Since(l.began).Seconds()}, args...)...)
	}
	was := must(p.rotation())(t)
	if was.Phase != "settled" || was.Problem != "" {
		t.Errorf("before: %+v", was)
	}
	l.pause(10 * time.Second)
	// Steps one to three.
	at := time.Now()
	if out, err := p.ambit("ca", "rotate", "--wait", "--timeout", "4m"); err != nil {
		t.Errorf("ambit ca rotate: %v\n%s", err, out)
	}
	switched := must(p.rotation())(t)
	if switched.Phase != "retiring" || switched.Signer == was.Signer {
		t.Errorf("after the rotation: %+v", switched)
	}
	say("every ztunnel has the new root and the new key signs, after %v", time.Since(at).Round(time.Millisecond))
	for _, n := range []*node{w.a, w.b} {
		eventually(t, n.name+" trusts both roots", func() error {
			if got := n.metric(t, "ambit_trust_anchors"); got != 2 {
				return fmt.Errorf("%v anchors", got)
			}
			return nil
		})
	}
	l.pause(10 * time.Second)
	leader := must(p.leader())(t)
	at = time.Now()
	leader.end(syscall.SIGKILL)
	say("killed %s, which led", leader.name)
	// What needs a writer waits for the next one.
	next := p.awaitLeader(t, leader)
	say("%s leads, %v after the kill", next.name, time.Since(at).Round(100*time.Millisecond))
	leader.start()
	say("%s is back", leader.name)
	l.pause(5 * time.Second)
	next.end(syscall.SIGKILL)
	say("killed %s, which led", next.name)
	next.start() // at once: it finds its own Lease, which another one may take meanwhile
	eventuallyLong(t, "somebody leads again", func() error { return p.writes(t) })
	say("a status is written again")
	// Step four, by itself.
	eventuallyLong(t, "the old root is removed", func() error {
		s, err := p.rotation()
		if err == nil && s.Phase != "settled" {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	say("the old root is removed")
	for _, n := range []*node{w.a, w.b} {
		eventually(t, n.name+" trusts one root", func() error {
			if got := n.metric(t, "ambit_trust_anchors"); got != 1 {
				return fmt.Errorf("%v anchors", got)
			}
			return nil
		})
	}
	// A roll of the Deployment.
	leader = must(p.leader())(t)
	at = time.Now()
	leader.end(syscall.SIGTERM)
	next = p.awaitLeader(t, leader)
	say("%s leads, %v after %s was told to end", next.name, time.Since(at).Round(100*time.Millisecond), leader.name)
	leader.start()
	if s := must(p.rotation())(t); s.Signer != switched.Signer {
		t.Errorf("the signer changed again: %+v", s)
	}
	<-l.ctx.Done()
}

// eventuallyLong is for what takes a Lease's or a certificate's time.
func eventuallyLong(t testing.TB, what string, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for err := cond(); err != nil; err = cond() {
		if time.Now().After(deadline) {
			t.Errorf("%s: %v", what, err)
			return
		}
		<-tick.C
	}
}

func (p *plane) awaitLeader(t *testing.T, but *replica) (now *replica) {
	t.Helper()
	eventuallyLong(t, "another one leads", func() error {
		r, err := p.leader()
		if err == nil && r == but {
			err = fmt.Errorf("the Lease is still %s's", r.name)
		}
		if err != nil {
			return err
		}
		if v, err := r.metric("ambit_controller_leader"); err != nil || v != 1 {
			return fmt.Errorf("%s does not write yet: %v, %w", r.name, v, err)
		}
		now = r
		return nil
	})
	if now == nil {
		t.FailNow()
	}
	return now
}

// policy is one that touches no connection of the load.
func (p *plane) policy(name string) *securityv1.AuthorizationPolicy {
	return &securityv1.AuthorizationPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "demo"},
		Spec: v1beta1.AuthorizationPolicy{
			Selector: &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": "app-1"}},
			Action:   v1beta1.AuthorizationPolicy_DENY,
			Rules:    []*v1beta1.Rule{{To: []*v1beta1.Rule_To{{Operation: &v1beta1.Operation{Ports: []string{"1"}}}}}},
		},
	}
}

// writes reports whether a policy made now gets its condition soon.
func (p *plane) writes(t *testing.T) error {
	name := fmt.Sprintf("probe-%d", time.Now().UnixNano())
	policies := p.istio.SecurityV1().AuthorizationPolicies("demo")
	if _, err := policies.Create(p.ctx, p.policy(name), metav1.CreateOptions{}); err != nil {
		return err
	}
	defer policies.Delete(p.ctx, name, metav1.DeleteOptions{})
	deadline := time.Now().Add(3 * time.Second)
	for time.Now().Before(deadline) {
		ap, err := policies.Get(p.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(ap.Status.Conditions) == 1 && ap.Status.Conditions[0].ObservedGeneration == ap.Generation {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
			return t.Context().Err()
		}
	}
	return errors.New("no condition yet")
}

// churn changes objects of every kind until the load ends; the result waits
// for that and for the last status, and returns how many there were.
func (p *plane) churn(t *testing.T, l *traffic) func() int {
	var changed int
	done := make(chan struct{})
	failed := func(err error) bool {
		if err != nil && p.ctx.Err() == nil {
			t.Errorf("churn: %v", err)
		}
		return err != nil
	}
	policies := p.istio.SecurityV1().AuthorizationPolicies("demo")
	go func() {
		defer close(done)
		for i := 0; l.pause(150 * time.Millisecond); i++ {
			name := fmt.Sprintf("churn-%d", i%8)
			labels := map[string]string{"app": "churn"}
			switch (i / 8) % 2 {
			case 0:
				_, err := p.pod("demo", name, "churn", []string{"node-a", "node-b"}[i%2], fmt.Sprintf("10.78.0.%d", i%8+1), labels, map[string]string{"ambient.istio.io/redirection": "enabled"})
				_, err2 := p.client.CoreV1().Services("demo").Create(p.ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
					Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
				_, err3 := policies.Create(p.ctx, p.policy(name), metav1.CreateOptions{})
				if failed(errors.Join(err, err2, err3)) {
					return
				}
			case 1:
				if failed(errors.Join(p.client.CoreV1().Pods("demo").Delete(p.ctx, name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}),
					p.client.CoreV1().Services("demo").Delete(p.ctx, name, metav1.DeleteOptions{}),
					policies.Delete(p.ctx, name, metav1.DeleteOptions{}))) {
					return
				}
			}
			changed += 3
		}
	}()
	return func() int {
		<-done
		eventuallyLong(t, "every policy has its condition", func() error {
			all, err := policies.List(p.ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, ap := range all.Items {
				if len(ap.Status.Conditions) != 1 || ap.Status.Conditions[0].ObservedGeneration != ap.Generation {
					return fmt.Errorf("%s has %v", ap.Name, ap.Status.Conditions)
				}
			}
			return nil
		})
		return changed
	}
}

// watchLeaders looks all the time whether one replica at most says that it
// writes, and whether one that does not say so writes a status. Replicas are
// asked one after the other, so what looks wrong is asked again: a Lease may have
// gone from one to the other in between.
func (p *plane) watchLeaders(t *testing.T, l *traffic) func() int64 {
	var looks atomic.Int64
	done := make(chan struct{})
	ask := func(r *replica) (leads bool, statuses float64, err error) {
		body, err := r.get("/metrics")
		return sumMetric(body, "ambit_controller_leader") == 1,
			sumMetric(body, "ambit_controller_writes_total", `object="authorizationpolicy_status"`), err
	}
	go func() {
		defer close(done)
		written := map[*replica]float64{} // while it did not lead
		for l.pause(300 * time.Millisecond) {
			var leading []*replica
			for _, r := range p.replicas {
				leads, now, err := ask(r)
				switch was, ok := written[r]; {
				case err != nil: // it is away, and counts from nothing when it is back
					delete(written, r)
				case leads:
					leading = append(leading, r)
					delete(written, r)
				case ok && now != was:
					if leads, _, err := ask(r); err == nil && !leads {
						t.Errorf("%s wrote %v statuses without the Lease", r.name, now-was)
					}
					delete(written, r)
				default:
					written[r] = now
				}
			}
			if len(leading) > 1 {
				// The first led before and after the second was asked: at once, then.
				if still, _, err := ask(leading[0]); err == nil && still {
					t.Errorf("%s and %s write at once", leading[0].name, leading[1].name)
				}
			}
			looks.Add(1)
		}
	}()
	return func() int64 { <-done; return looks.Load() }
}

// testReconnect: a ztunnel whose controller is killed goes on with another one
// without being sent again what it has.
func (p *plane) testReconnect(t *testing.T, w *world) {
	for i := range 100 { // something to send
		if _, err := p.pod("demo", fmt.Sprintf("many-%d", i), "many", "node-a", fmt.Sprintf("10.78.1.%d", i+1), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	last := fmt.Sprintf("demo/%s", "many-99")
	for _, n := range []*node{w.a, w.b} {
		eventuallyLong(t, n.name+" knows them", func() error {
			body, err := n.get("127.0.0.1:15000", "/config_dump")
			if err == nil && !strings.Contains(body, "test//Pod/"+last) {
				err = errors.New("not all of them")
			}
			return err
		})
	}
	count := func(n *node, name string) float64 { return n.metric(t, name) }
	type sample struct{ bytes, ended float64 }
	before := map[*node]sample{}
	for _, n := range []*node{w.a, w.b} {
		before[n] = sample{count(n, "istio_xds_message_bytes_total"), count(n, "istio_xds_connection_terminations_total")}
	}
	for _, r := range p.replicas { // one after the other: every ztunnel loses its own
		r.end(syscall.SIGKILL)
		r.start()
		eventuallyLong(t, "both ztunnels have a controller", func() error {
			clients := 0.0
			for _, r := range p.replicas {
				v, err := r.metric("pilot_xds", `type="ztunnel"`)
				if err != nil {
					return err
				}
				clients += v
			}
			if clients != 2 {
				return fmt.Errorf("%v clients", clients)
			}
			return nil
		})
	}
	for _, n := range []*node{w.a, w.b} {
		got := sample{count(n, "istio_xds_message_bytes_total"), count(n, "istio_xds_connection_terminations_total")}
		lost, sent := got.ended-before[n].ended, got.bytes-before[n].bytes
		t.Logf("%s: %v streams lost, %v bytes of resources received again, of %v in all", n.name, lost, sent, before[n].bytes)
		if lost == 0 {
			t.Errorf("%s lost no stream: nothing was tried", n.name)
		}
		if sent > 0 {
			t.Errorf("%s was sent %v bytes that it had", n.name, sent)
		}
	}
}

// testMetrics: what Istio's dashboards read of a control plane says something.
func (p *plane) testMetrics(t *testing.T) {
	sum := func(name string, parts ...string) (all float64) {
		for _, r := range p.replicas {
			v, err := r.metric(name, parts...)
			if err != nil {
				t.Error(err)
			}
			all += v
		}
		return all
	}
	// Made to happen here, for both replicas are fresh.
	made := p.policy("metrics")
	must(p.istio.SecurityV1().AuthorizationPolicies("demo").Create(p.ctx, made, metav1.CreateOptions{}))(t)
	for name, parts := range map[string][]string{
		"pilot_xds":                                  {`type="ztunnel"`, `version="dev"`},
		"pilot_xds_pushes":                           {`type="wads"`},
		"pilot_xds_push_time_count":                  {`type="wads"`},
		"pilot_xds_config_size_bytes_count":          {`type="wads"`},
		"pilot_proxy_convergence_time_count":         nil,
		"pilot_services":                             nil,
		"citadel_server_csr_count":                   nil,
		"citadel_server_root_cert_expiry_seconds":    nil,
		"citadel_server_success_cert_issuance_count": nil,
	} {
		eventuallyLong(t, name+" is counted", func() error {
			if v := sum(name, parts...); v <= 0 {
				return fmt.Errorf("%v", v)
			}
			return nil
		})
	}
}

// testWrongTokens: who has no token, one of another audience, or one of a pod
// that has ended gets neither a certificate nor the mesh.
func (p *plane) testWrongTokens(t *testing.T, w *world) {
	gone := must(p.client.CoreV1().Pods("ambit-system").Get(p.ctx, "ztunnel-node-b", metav1.GetOptions{}))(t)
	// The ztunnel of node-b goes on living, its pod does not.
	if err := p.client.CoreV1().Pods("ambit-system").Delete(p.ctx, gone.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	was := w.b.metric(t, "ambit_certificate_requests_total", `result="denied"`)
	eventuallyLong(t, "its certificates are refused", func() error {
		if now := w.b.metric(t, "ambit_certificate_requests_total", `result="denied"`); now == was {
			return errors.New("none refused yet")
		}
		return nil
	})
	w.b.zt.wantLog(t, "certificate not obtained", "is not known or has ended")
	if got := w.b.metric(t, "ambit_certificates_overdue"); got == 0 {
		t.Error("nothing is counted as overdue")
	}
}
