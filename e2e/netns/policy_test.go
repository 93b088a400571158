package netns_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
)

// rules is what users have written about policy in a world. What it means is
// the controller's translation of it.
type rules struct {
	w    *world
	cfg  translate.Config
	set  translate.Set
	pods map[*pod]*corev1.Pod
	sent map[string]bool // keys of the policies the mesh has
	age  int
}

func newRules(w *world) *rules {
	return &rules{w: w, pods: map[*pod]*corev1.Pod{}, sent: map[string]bool{},
		cfg: translate.Config{ClusterID: "test", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}}
}

// label gives a pod its labels.
func (r *rules) label(p *pod, labels map[string]string) {
	obj := r.pods[p]
	if obj == nil {
		obj = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.name, Namespace: "demo"},
			Spec: corev1.PodSpec{NodeName: p.node.name, ServiceAccountName: p.sa}}
		for _, a := range p.addrs {
			obj.Status.PodIPs = append(obj.Status.PodIPs, corev1.PodIP{IP: a.String()})
		}
		r.pods[p] = obj
		r.set.PodList = append(r.set.PodList, obj)
	}
	obj.Labels = labels
}

// forget takes a pod out.
func (r *rules) forget(p *pod) {
	obj := r.pods[p]
	delete(r.pods, p)
	r.set.PodList = slices.DeleteFunc(r.set.PodList, func(o *corev1.Pod) bool { return o == obj })
}

// apply is kubectl apply: kind, namespace/name, and the spec. An empty spec
// deletes.
func (r *rules) apply(kind, key, spec string) {
	t := r.w.t
	t.Helper()
	ns, name, _ := strings.Cut(key, "/")
	r.age++
	meta := metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: metav1.Unix(int64(1700000000+r.age), 0)}
	var err error
	switch kind {
	case "PeerAuthentication":
		pa := &securityv1.PeerAuthentication{ObjectMeta: meta}
		if spec != "" {
			err = yaml.Unmarshal([]byte("spec: "+spec), pa)
		}
		pa.ObjectMeta = meta
		r.set.PeerList = replace(r.set.PeerList, pa, spec == "")
	case "AuthorizationPolicy":
		ap := &securityv1.AuthorizationPolicy{ObjectMeta: meta}
		if spec != "" {
			err = yaml.Unmarshal([]byte("spec: "+spec), ap)
		}
		ap.ObjectMeta = meta
		r.set.PolicyList = replace(r.set.PolicyList, ap, spec == "")
	}
	if err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
}

// replace keeps the age of an object that is there already.
func replace[T metav1.Object](all []T, o T, remove bool) []T {
	for i, old := range all {
		if old.GetNamespace() == o.GetNamespace() && old.GetName() == o.GetName() {
			if remove {
				return slices.Delete(all, i, i+1)
			}
			o.SetCreationTimestamp(old.GetCreationTimestamp())
			all[i] = o
			return all
		}
	}
	return append(all, o)
}

// sync brings the mesh up to date; on return all ztunnels have it.
func (r *rules) sync() {
	t := r.w.t
	t.Helper()
	d, err := translate.All(r.cfg, &r.set)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, p := range d.Policies {
		have[p.Key()] = true
	}
	out := mesh.Delta{Policies: d.Policies}
	for key := range r.sent {
		if !have[key] {
			out.RemovedPolicies = append(out.RemovedPolicies, key)
		}
	}
	r.sent = have
	for p := range r.pods {
		for _, w := range d.Workloads {
			if w.UID == p.meshUID() {
				named := w.Policies
				p.change = func(rec *mesh.Workload) { rec.Policies = named }
			}
		}
		out.Workloads = append(out.Workloads, p.record(p.node.agent.has(p)))
	}
	r.w.control.apply(out)
	r.w.control.settled(t)
}

// The kinds of connections that a pod can have when policy changes.
const (
	viaMesh  = "through the mesh"
	onNode   = "through the mesh on one node"
	plain    = "captured plaintext"
	old      = "older than enrolment"
	oldOfOur = "older than enrolment, from a pod in the mesh"
)

var kinds = []string{viaMesh, onNode, plain, old, oldOfOur}

// ports of the servers.
var servedPorts = []uint16{8080, 9090}

// crowd is a world with a client of every kind.
type crowd struct {
	*world
	*rules
	client, beside, stranger *pod
	n                        int
}

func newCrowd(t *testing.T, f families) *crowd {
	w := newWorldOf(t, f)
	c := &crowd{world: w, rules: newRules(w), client: w.newPod(w.a, "client"), beside: w.newPod(w.b, "beside"), stranger: w.newPod(w.a, "stranger")}
	w.enrol(c.client, c.beside)
	for _, p := range []*pod{c.client, c.beside, c.stranger} {
		c.label(p, map[string]string{"app": p.name})
	}
	return c
}

// target is a server with connections of every kind on each port.
type target struct {
	c      *crowd
	server *pod
	conns  map[string]*net.TCPConn // by kind and port
}

func (k *crowd) target(t *testing.T) *target {
	t.Helper()
	k.n++
	tg := &target{c: k, server: k.newPod(k.b, fmt.Sprintf("server-%d", k.n)), conns: map[string]*net.TCPConn{}}
	k.label(tg.server, map[string]string{"app": "server"})
	for _, port := range servedPorts {
		tg.server.listen(port, echo)
	}
	k.control.settled(t)
	tg.open(t, old, k.stranger)
	tg.open(t, oldOfOur, k.client)
	k.enrol(tg.server)
	tg.open(t, viaMesh, k.client)
	tg.open(t, onNode, k.beside)
	tg.open(t, plain, k.stranger)
	return tg
}

func on(kind string, port uint16) string { return fmt.Sprintf("%s, port %d", kind, port) }

func (tg *target) open(t *testing.T, kind string, from *pod) {
	t.Helper()
	for _, port := range servedPorts {
		c := from.mustDial(t, tg.server.at(port))
		pingPong(t, c, kind)
		tg.conns[on(kind, port)] = c
	}
}

// want checks which connections have been closed; only those may be.
func (tg *target) want(t *testing.T, closed ...string) {
	t.Helper()
	for _, name := range closed {
		c := tg.conns[name]
		if c == nil {
			t.Errorf("no such connection, or closed before: %s", name)
			continue
		}
		_, err := c.Read(make([]byte, 1))
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%s goes on: %v", name, err)
		}
		if strings.HasPrefix(name, "older") {
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s ends with %v, not a reset", name, err)
			}
			tg.said(t, name, c)
		}
		delete(tg.conns, name)
	}
	for name, c := range tg.conns {
		if _, err := c.Write([]byte(name)); err != nil {
			t.Fatalf("%s is closed: %v", name, err)
		}
		got := make([]byte, len(name))
		for n := 0; n < len(got); {
			k, err := c.Read(got[n:])
			if err != nil {
				t.Fatalf("%s is closed: %v", name, err)
			}
			n += k
		}
	}
}

// said wants one line about an older connection that was ended.
func (tg *target) said(t *testing.T, name string, c *net.TCPConn) {
	t.Helper()
	parts := []string{"connection destroyed", `dst.workload="` + tg.server.name + `"`, `direction="inbound"`, `reason="older_denied"`}
	if strings.HasPrefix(name, old+",") && !strings.HasPrefix(name, oldOfOur) {
		// The client's address is its own: nobody is in between.
		parts = append(parts, "src.addr="+c.LocalAddr().String()+" ", `src.workload="stranger"`)
	}
	tg.c.b.zt.wantLog(t, parts...)
}

// reaches tells whether a new connection from a pod is served.
func (tg *target) reaches(from *pod, port uint16) error {
	c, err := from.dial(tg.server.at(port))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// all names the connections of kinds on ports.
func all(kinds []string, ports ...uint16) (out []string) {
	for _, kind := range kinds {
		for _, port := range ports {
			out = append(out, on(kind, port))
		}
	}
	return out
}

// change is one thing a user does, and what it closes.
type change struct {
	do     func(k *crowd, server *pod)
	closes []string
}

func write(kind, key, spec string) func(*crowd, *pod) {
	return func(k *crowd, _ *pod) { k.apply(kind, key, spec) }
}

// run makes changes one after the other with connections of every kind open,
// and takes them back.
func (k *crowd) run(t *testing.T, changes []change) *target {
	t.Helper()
	tg := k.target(t)
	for _, c := range changes {
		c.do(k, tg.server)
		k.sync()
		tg.want(t, c.closes...)
	}
	return tg
}

// clear takes back what users have written.
func (k *crowd) clear(tg *target) {
	k.set.PeerList, k.set.PolicyList = nil, nil
	k.forget(tg.server)
	k.sync()
}

const pa, ap = "PeerAuthentication", "AuthorizationPolicy"

// Every mode at every level, as it comes to apply to a pod with open
// connections: plaintext that STRICT refuses is closed, whoever carries it, and
// nothing else is.
//
//ambit:feature policy-peer-authentication policy-older-destroyed policy-live
func TestPeerAuthenticationOnLiveConnections(t *testing.T) {
	t.Parallel()
	k := newCrowd(t, onlyIPv4)
	plaintext := []string{plain, old, oldOfOur}
	both, none := all(plaintext, servedPorts...), []string(nil)
	for _, c := range []struct {
		name    string
		changes []change
		refused []uint16 // ports that refuse plaintext at the end
	}{
		{"mesh STRICT", []change{{write(pa, "istio-system/default", `{mtls: {mode: STRICT}}`), both}}, servedPorts},
		{"mesh PERMISSIVE, then STRICT", []change{
			{write(pa, "istio-system/default", `{mtls: {mode: PERMISSIVE}}`), none},
			{write(pa, "istio-system/default", `{mtls: {mode: STRICT}}`), both}}, servedPorts},
		{"namespace STRICT", []change{{write(pa, "demo/default", `{mtls: {mode: STRICT}}`), both}}, servedPorts},
		{"another namespace STRICT", []change{{write(pa, "other/default", `{mtls: {mode: STRICT}}`), none}}, nil},
		{"workload STRICT", []change{{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}}`), both}}, servedPorts},
		{"another workload STRICT, then this one by its labels", []change{
			{write(pa, "demo/server", `{selector: {matchLabels: {tier: back}}, mtls: {mode: STRICT}}`), none},
			{func(k *crowd, server *pod) { k.label(server, map[string]string{"app": "server", "tier": "back"}) }, both}}, servedPorts},
		{"another workload STRICT, then this one by the selector", []change{
			{write(pa, "demo/server", `{selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}}`), none},
			{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}}`), both}}, servedPorts},
		{"mesh STRICT under namespace PERMISSIVE, which is deleted", []change{
			{write(pa, "demo/default", `{mtls: {mode: PERMISSIVE}}`), none},
			{write(pa, "istio-system/default", `{mtls: {mode: STRICT}}`), none},
			{write(pa, "demo/default", ""), both}}, servedPorts},
		{"mesh STRICT under namespace DISABLE", []change{
			{write(pa, "demo/default", `{mtls: {mode: DISABLE}}`), none},
			{write(pa, "istio-system/default", `{mtls: {mode: STRICT}}`), none}}, nil},
		{"mesh STRICT under namespace UNSET", []change{
			{write(pa, "demo/default", `{mtls: {mode: UNSET}}`), none},
			{write(pa, "istio-system/default", `{mtls: {mode: STRICT}}`), both}}, servedPorts},
		{"namespace STRICT under workload PERMISSIVE, which is deleted", []change{
			{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: PERMISSIVE}}`), none},
			{write(pa, "demo/default", `{mtls: {mode: STRICT}}`), none},
			{write(pa, "demo/server", ""), both}}, servedPorts},
		{"namespace STRICT under workload UNSET", []change{
			{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: UNSET}}`), none},
			{write(pa, "demo/default", `{mtls: {mode: STRICT}}`), both}}, servedPorts},
		{"workload STRICT but for a port", []change{
			{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: PERMISSIVE}}}`), all(plaintext, 8080)}},
			[]uint16{8080}},
		{"workload STRICT but for a port with DISABLE, then all", []change{
			{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: DISABLE}}}`), all(plaintext, 8080)},
			{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: UNSET}}}`), all(plaintext, 9090)}},
			servedPorts},
		{"a port STRICT", []change{
			{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}}`), all(plaintext, 9090)}},
			[]uint16{9090}},
		{"a port STRICT without a selector means nothing", []change{
			{write(pa, "demo/default", `{mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}}`), none}}, nil},
		{"namespace STRICT, a workload's port PERMISSIVE", []change{
			{write(pa, "demo/server", `{selector: {matchLabels: {app: server}}, portLevelMtls: {9090: {mode: PERMISSIVE}}}`), none},
			{write(pa, "demo/default", `{mtls: {mode: STRICT}}`), all(plaintext, 8080)}}, []uint16{8080}},
		{"of two the older wins, until it is deleted", []change{
			{write(pa, "demo/first", `{mtls: {mode: PERMISSIVE}}`), none},
			{write(pa, "demo/another", `{mtls: {mode: STRICT}}`), none},
			{write(pa, "demo/first", ""), both}}, servedPorts},
		{"a selector in the root namespace means nothing", []change{
			{write(pa, "istio-system/server", `{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}}`), none}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			tg := k.run(t, c.changes)
			defer k.clear(tg)
			for _, port := range servedPorts {
				err := tg.reaches(k.stranger, port)
				if refused := slices.Contains(c.refused, port); refused != (err != nil) {
					t.Errorf("plaintext to port %d: %v, refused should be %v", port, err, refused)
				}
				if err := tg.reaches(k.client, port); err != nil {
					t.Errorf("from the mesh to port %d: %v", port, err)
				}
			}
			tg.want(t) // what was left is still there
		})
	}
}

// Every way in which a policy comes to refuse a connection, or does not.
//
//ambit:feature policy-live policy-older-destroyed
func TestPolicyChangesOnLiveConnections(t *testing.T) {
	t.Parallel()
	k := newCrowd(t, onlyIPv4)
	principal := func(p *pod) string { return p.id().Principal() }
	from := func(action string, who ...string) string {
		return `{action: ` + action + `, rules: [{from: [{source: {principals: [` + strings.Join(who, ", ") + `]}}]}]}`
	}
	selecting := func(app, rest string) string { return `{selector: {matchLabels: {app: ` + app + `}}, ` + rest[1:] }
	deny, everything := `{action: DENY, rules: [{}]}`, all(kinds, servedPorts...)
	none := []string(nil)
	for _, c := range []struct {
		name    string
		changes []change
	}{
		{"DENY of an identity", []change{
			{write(ap, "demo/p", from("DENY", principal(k.client))), all([]string{viaMesh}, servedPorts...)}}},
		{"DENY of an address", []change{
			{write(ap, "demo/p", `{action: DENY, rules: [{from: [{source: {ipBlocks: [`+k.stranger.host()+`/32]}}]}]}`), all([]string{plain, old}, servedPorts...)}}},
		{"DENY of the address of a client in the mesh", []change{
			{write(ap, "demo/p", `{action: DENY, rules: [{from: [{source: {ipBlocks: [`+k.client.host()+`/32]}}]}]}`), all([]string{viaMesh, oldOfOur}, servedPorts...)}}},
		{"DENY of a port", []change{
			{write(ap, "demo/p", `{action: DENY, rules: [{to: [{operation: {ports: ["9090"]}}]}]}`), all(kinds, 9090)}}},
		{"DENY of all in the mesh", []change{{write(ap, "istio-system/p", deny), everything}}},
		{"DENY in another namespace", []change{{write(ap, "other/p", deny), none}}},
		{"DENY that is narrow, then wide", []change{
			{write(ap, "demo/p", from("DENY", "cluster.local/ns/demo/sa/nobody")), none},
			{write(ap, "demo/p", from("DENY", principal(k.client), principal(k.beside))), all([]string{viaMesh, onNode}, servedPorts...)},
			{write(ap, "demo/p", ""), none}}},
		{"ALLOW of an identity", []change{
			{write(ap, "demo/p", from("ALLOW", principal(k.client))), all([]string{onNode, plain, old, oldOfOur}, servedPorts...)}}},
		{"ALLOW of nothing", []change{{write(ap, "demo/p", `{}`), everything}}},
		{"ALLOW of all, another beside it, and the first deleted", []change{
			{write(ap, "demo/p", `{rules: [{}]}`), none},
			{write(ap, "demo/q", from("ALLOW", principal(k.beside))), none},
			{write(ap, "demo/p", ""), all([]string{viaMesh, plain, old, oldOfOur}, servedPorts...)},
			{write(ap, "demo/q", ""), none}}},
		{"DENY by selector: the selector changes", []change{
			{write(ap, "demo/p", selecting("other", deny)), none},
			{write(ap, "demo/p", selecting("server", deny)), everything}}},
		{"DENY by selector: the pod's labels change", []change{
			{write(ap, "demo/p", selecting("other", deny)), none},
			{func(k *crowd, server *pod) { k.label(server, map[string]string{"app": "other"}) }, everything}}},
		{"ALLOW by selector lets go of the pod", []change{
			{write(ap, "demo/p", selecting("server", from("ALLOW", principal(k.client)))), all([]string{onNode, plain, old, oldOfOur}, servedPorts...)},
			{func(k *crowd, server *pod) { k.label(server, map[string]string{"app": "free"}) }, none}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tg := k.run(t, c.changes)
			k.clear(tg)
			tg.want(t)
		})
	}
}

// A policy that the workload names and that has not come closes no connection of
// any kind, though an ALLOW that is there admits none of them.
//
//ambit:feature policy-pending
func TestPendingPolicyClosesNothing(t *testing.T) {
	t.Parallel()
	k := newCrowd(t, onlyIPv4)
	tg := k.target(t)
	p := &mesh.Policy{Name: "later", Namespace: "demo", Scope: mesh.ScopeWorkloadSelector, Rules: []mesh.Rule{{}}}
	tg.server.change = func(rec *mesh.Workload) { rec.Policies = []string{p.Key()} }
	// One after the other: workloads and policies travel apart, and the ALLOW by
	// itself would close everything.
	k.announce(tg.server, true)
	k.control.settled(t)
	k.control.apply(mesh.Delta{Policies: []*mesh.Policy{{Name: "nobody", Namespace: "demo", Scope: mesh.ScopeNamespace}}})
	k.control.settled(t)
	tg.want(t)
	held := make(chan error, 1)
	go func() { held <- tg.reaches(k.client, 8080) }()
	k.b.zt.wantLog(t, "connection complete", `reason="policy_pending"`, `dst.workload="`+tg.server.name+`"`)
	if err := <-held; err == nil {
		t.Error("a connection was let in without the policy")
	}
	tg.want(t)
	k.control.apply(mesh.Delta{Policies: []*mesh.Policy{p}})
	k.control.settled(t)
	tg.want(t)
	if err := tg.reaches(k.client, 8080); err != nil {
		t.Errorf("with the policy there: %v", err)
	}
	k.control.apply(mesh.Delta{RemovedPolicies: []string{p.Key()}})
	k.control.settled(t)
	tg.want(t)
	p.Action = mesh.Deny
	k.control.apply(mesh.Delta{Policies: []*mesh.Policy{p}})
	tg.want(t, all(kinds, servedPorts...)...)
}

// STRICT that was there first holds for what a pod brings along, and for what
// a ztunnel finds when it starts: also what changed while none was there.
//
//ambit:feature policy-older-destroyed policy-older-untouched
func TestOlderConnectionsMeetPolicy(t *testing.T) { each(t, olderConnectionsMeetPolicy) }

func olderConnectionsMeetPolicy(t *testing.T, f families) {
	k := newCrowd(t, f)
	server := k.newPod(k.b, "server")
	k.label(server, map[string]string{"app": "server"})
	server.listen(8080, echo)
	k.stranger.listen(8080, echo)
	k.control.settled(t)
	open := func(from, to *pod) *net.TCPConn {
		c := from.mustDial(t, to.at(8080))
		pingPong(t, c, "older")
		return c
	}
	in, out, itself := open(k.stranger, server), open(server, k.stranger), open(server, server)
	gone := func(what string, c *net.TCPConn) {
		t.Helper()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v, not a reset", what, err)
		}
	}
	lines := func(want int) {
		t.Helper()
		eventually(t, "lines about destroyed connections", func() error {
			if n := k.b.zt.count("connection destroyed", `reason="older_denied"`); n != want {
				return fmt.Errorf("%d, want %d", n, want)
			}
			if n := k.b.metric(t, "ambit_connections_failed_total", `reporter="destination"`, `reason="older_denied"`); n != float64(want) {
				return fmt.Errorf("%v counted, want %d", n, want)
			}
			return nil
		})
	}

	k.apply(pa, "demo/default", `{mtls: {mode: STRICT}}`)
	k.sync()
	k.enrol(server)
	gone("an older connection into a pod that is enrolled under STRICT", in)
	pingPong(t, out, "out of the pod")
	pingPong(t, itself, "the pod with itself")
	lines(1)

	// A second pod under PERMISSIVE; STRICT comes while ztunnel is away.
	k.apply(pa, "demo/default", "")
	k.sync()
	second := k.newPod(k.b, "second")
	k.label(second, map[string]string{"app": "server"})
	second.listen(8080, echo)
	k.control.settled(t)
	in = open(k.stranger, second)
	k.enrol(second)
	carried, inPlain := open(k.client, second), open(k.stranger, second)
	pingPong(t, in, "under PERMISSIVE")
	k.b.zt.kill()
	for _, c := range []*net.TCPConn{carried, inPlain} {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("what ztunnel carried goes on without it: %v", err)
		}
	}
	pingPong(t, in, "without ztunnel")
	k.apply(pa, "demo/default", `{mtls: {mode: STRICT}}`)
	d, err := translate.All(k.cfg, &k.set)
	if err != nil {
		t.Fatal(err)
	}
	k.control.apply(mesh.Delta{Policies: d.Policies})
	pingPong(t, in, "STRICT, without ztunnel")
	k.b.zt = k.b.startZtunnel(nil)
	k.waitReady(k.b)
	k.sync()
	gone("an older connection that ztunnel finds at its start", in)
	carried = open(k.client, second)
	pingPong(t, out, "out of the pod")
	pingPong(t, itself, "the pod with itself")
	pingPong(t, carried, "the mesh")
	lines(1)
	// A third, under PERMISSIVE again, that begins to leave the mesh and is asked
	// back: what was made meanwhile went past ztunnel too.
	k.apply(pa, "demo/default", "")
	k.sync()
	third := k.newPod(k.b, "third")
	k.label(third, map[string]string{"app": "server"})
	third.listen(8080, echo)
	k.enrol(third)
	carried = open(k.client, third)
	k.b.agent.interrupt(third, func() { in = open(k.stranger, third) })
	pingPong(t, in, "under PERMISSIVE")
	k.apply(pa, "demo/default", `{mtls: {mode: STRICT}}`)
	k.sync()
	gone("a connection made while the pod was leaving", in)
	pingPong(t, carried, "the mesh")
	lines(2)
	if n := k.b.metric(t, "ambit_older_connections_refused"); n != 0 {
		t.Errorf("%v refused connections go on", n)
	}
}

// A probe passes the mesh, so a connection of the node's to a probe's port looks
// like an older one. STRICT does not end it, nor the next; on another port the
// node is a client like any.
//
//ambit:feature policy-older-probes
func TestProbesAreNotOlder(t *testing.T) { each(t, probesAreNotOlder, onlyIPv4, onlyIPv6) }

func probesAreNotOlder(t *testing.T, f families) {
	k := newCrowd(t, f)
	server := k.newPod(k.b, "server")
	k.label(server, map[string]string{"app": "server"})
	server.probes = []uint16{8080}
	for _, port := range servedPorts {
		server.listen(port, echo)
	}
	kubelet := &pod{node: k.b, ns: k.b.ns, name: "kubelet"}
	k.enrol(server)
	before := kubelet.mustDial(t, server.at(8080))
	pingPong(t, before, "a probe")
	other := kubelet.mustDial(t, server.at(9090))
	pingPong(t, other, "not a probe")
	k.apply(pa, "demo/default", `{mtls: {mode: STRICT}}`)
	k.sync()
	if _, err := other.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the node's connection to another port goes on: %v", err)
	}
	pingPong(t, before, "the probe under STRICT")
	pingPong(t, kubelet.mustDial(t, server.at(8080)), "the next probe")
	pingPong(t, before, "the probe again")
	if n := k.b.zt.count("connection destroyed"); n != 0 {
		t.Errorf("%d connections were taken for older ones", n)
	}
}
