package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	caclient "github.com/ambitmesh/ambit/controller/ca/client"
	"github.com/ambitmesh/ambit/controller/kube"
	"github.com/ambitmesh/ambit/controller/mesh"
	xdsclient "github.com/ambitmesh/ambit/controller/xds/client"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// running is the whole program against the lab, and one ztunnel's clients.
type running struct {
	*lab
	xds, http *net.TCPListener // kept over a restart of the controller
	log       *logBuffer
	whole     *testing.T // outlives the subtests
	account   string     // kubeconfig of the controller's own account
	stop      func()
	store     *mesh.Store // what the ztunnel on node-a knows
	certs     *caclient.Source
}

// logBuffer collects what the controller says.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func loopback(t *testing.T) *net.TCPListener {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t).(*net.TCPListener)
	t.Cleanup(func() { l.Close() })
	return l
}

// start runs the controller; its listeners are duplicates, so that their ports
// stay and clients wait in the backlog while it is away.
func (r *running) start(t *testing.T, args ...string) {
	t.Helper()
	r.launch(t, args...)
	r.awaitReady(t)
}

func (r *running) launch(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{"--kubeconfig", r.account, "--replica", "first", "--address", r.xds.Addr().String(), "--monitoring-address", r.http.Addr().String()}, args...)
	cfg := must(parse(args, func(string) (string, bool) { return "", false }, t.Output()))(t)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	c := must(newController(cfg, slog.New(slog.NewTextHandler(r.log, nil))))(t)
	c.listen = func(_, address string) (net.Listener, error) {
		of := r.xds
		if address == r.http.Addr().String() {
			of = r.http
		}
		f, err := of.File()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return net.FileListener(f)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("controller: %v", err)
			}
		})
	}
	t.Cleanup(r.stop)
}

func (r *running) awaitReady(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		if body := r.get("/ready"); !strings.HasPrefix(body, "ready") {
			return fmt.Errorf("%s\n%s", body, r.log)
		}
		return nil
	})
}

func (r *running) get(path string) string {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + r.http.Addr().String() + path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

// connect runs the two clients of a ztunnel that is pod.
func (r *running) connect(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	token := func() (string, error) { return r.token(pod) }
	roots := func() (*tls.Config, error) {
		cm, err := r.client.CoreV1().ConfigMaps("ambit-system").Get(context.Background(), kube.RootConfigMap, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(cm.Data[kube.RootKey])) {
			return nil, errors.New("no certificate in the ConfigMap")
		}
		return &tls.Config{RootCAs: pool, ServerName: "ambit-controller.ambit-system.svc"}, nil
	}
	eventually(t, func() error { _, err := roots(); return err })
	r.store = mesh.NewStore()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	r.certs = caclient.New(caclient.Config{Address: r.xds.Addr().String(), TLS: roots, Token: token, ClusterID: "Kubernetes", Impersonate: true, Logger: log})
	x := xdsclient.New(xdsclient.Config{
		Address: r.xds.Addr().String(), TLS: roots, Token: token, ClusterID: "Kubernetes",
		NodeID: "ztunnel~10.0.0.1~" + pod.Name + ".ambit-system~ambit-system.svc.cluster.local", Store: r.store, Trust: r.certs.SetRoots, Logger: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = x.Run(ctx) })
	wg.Go(func() { _ = r.certs.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	select {
	case <-x.Synced():
	case <-time.After(patience):
		t.Fatalf("xDS does not sync\n%s", r.log)
	}
}

// await waits until what the ztunnel knows satisfies ok.
func (r *running) await(t *testing.T, what string, ok func(*mesh.Snapshot) bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		changed := r.store.Changed()
		if ok(r.store.Load()) {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("never seen: %s\n%s", what, r.log)
		}
	}
}

const podUID = "Kubernetes//Pod/"

// TestAPIMode drives the whole program with a real API server, the shipped RBAC,
// real tokens and the ztunnel's own clients.
//
//ambit:feature binding-status binding-sticky binding-required binding-ingress
//ambit:feature mesh-config-reload mesh-config-unknown mesh-config-bad mesh-config-discovery
//ambit:feature beside-reads beside-writes
//ambit:feature identity-root-stalled identity-root-abort identity-secret-damaged controller-bad-object controller-api
//ambit:feature workload-allocate workload-allocate-coexist
func TestAPIMode(t *testing.T) {
	before := runtime.NumGoroutine()
	l := newLab(t)
	r := &running{lab: l, log: &logBuffer{}}
	r.namespace(t, "ambit-system", nil)
	r.namespace(t, "istio-system", nil)
	r.namespace(t, "prod", map[string]string{"istio.io/dataplane-mode": "ambient"})
	r.namespace(t, "plain", nil)
	r.node(t, "node-a", "zone-a")
	r.node(t, "node-b", "zone-b")
	ztunnel := r.pod(t, "ambit-system", "ztunnel-a", "node-a", "10.0.0.1", map[string]string{"app": "ztunnel"})
	r.pod(t, "prod", "web-1", "node-a", "10.0.0.2", map[string]string{"app": "web"})
	r.pod(t, "prod", "db-1", "node-b", "10.0.1.2", map[string]string{"app": "db"})
	r.pod(t, "plain", "legacy-1", "node-a", "10.0.0.3", nil)
	r.service(t)

	t.Run("program", func(t *testing.T) { // its end is the end of everything it started
		r.whole, r.xds, r.http = t, loopback(t), loopback(t)
		r.account = l.leastPrivilege(t)
		r.start(t)
		r.connect(t, ztunnel)
		t.Run("workloads", r.testWorkloads)
		t.Run("policies", r.testPolicies)
		t.Run("bad policy", r.testBadPolicy)
		t.Run("peer authentication", r.testPeerAuthentication)
		t.Run("external", r.testExternal)
		t.Run("waypoints", r.testWaypoints)
		t.Run("settings of the mesh", r.testMeshConfig)
		t.Run("certificates", r.testCertificates)
		t.Run("readers", r.testReaders)
		t.Run("root certificates", r.testRoots)
		t.Run("pods that end", r.testEnd)
		t.Run("secret lost", r.testSecretLost)
		t.Run("restart", r.testRestart)
		t.Run("root change", r.testRootChange)
		t.Run("latency", r.testLatency)
		t.Run("second replica", r.testSecondReplica)
	})
	t.Run("beside Istio", func(t *testing.T) { testBesideIstio(t, l) })
	t.Run("secret race", l.testSecretRace)
	t.Run("malformed secret", l.testMalformedSecret)
	eventually(t, func() error {
		if now := runtime.NumGoroutine(); now > before+2 { // the API client's idle connection
			buf := make([]byte, 1<<16)
			return fmt.Errorf("%d goroutines, %d before:\n%s", now, before, buf[:runtime.Stack(buf, true)])
		}
		return nil
	})
}

func (l *lab) service(t *testing.T) {
	t.Helper()
	_, err := l.client.CoreV1().Services("prod").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func (r *running) testWorkloads(t *testing.T) {
	w := r.store.Load().Workload(podUID + "prod/web-1")
	if w == nil || w.Node != "node-a" || w.ServiceAccount != "web" || w.Protocol != mesh.ProtocolTCP || w.Locality.Zone != "zone-a" || w.Health != mesh.Healthy {
		t.Fatalf("web-1 is %+v", w)
	}
	const key = "prod/web.prod.svc.cluster.local"
	if s := r.store.Load().Service(key); s == nil || len(s.Addresses) != 1 {
		t.Fatalf("service is %+v", s)
	}
	if e := r.store.Load().Endpoints(key); len(e) != 1 || e[0].Workload.Name != "web-1" {
		t.Fatalf("endpoints are %+v", e)
	}
	r.patchPod(t, "prod", "web-1", `{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}`, "status")
	r.await(t, "web-1 reached by tunnel", func(s *mesh.Snapshot) bool {
		return s.Workload(podUID+"prod/web-1").Protocol == mesh.ProtocolHBONE
	})
	r.patchPod(t, "prod", "db-1", `{"metadata":{"labels":{"app":"web"}}}`)
	r.await(t, "db-1 an endpoint by its new label", func(s *mesh.Snapshot) bool { return len(s.Endpoints(key)) == 2 })
	r.patchPod(t, "prod", "db-1", `{"metadata":{"labels":{"app":"db"}},"status":{"conditions":[]}}`)
	r.await(t, "db-1 no endpoint any more", func(s *mesh.Snapshot) bool { return len(s.Endpoints(key)) == 1 })
	r.patchPod(t, "prod", "db-1", `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`, "status")
	r.await(t, "db-1 unhealthy", func(s *mesh.Snapshot) bool {
		return s.Workload(podUID+"prod/db-1").Health == mesh.Unhealthy
	})
	if clients := r.get("/debug/clients"); !strings.Contains(clients, "ztunnel~10.0.0.1~ztunnel-a.ambit-system") {
		t.Errorf("/debug/clients: %s", clients)
	}
}

func denyPolicy(name string, ports ...string) *securityv1.AuthorizationPolicy {
	return &securityv1.AuthorizationPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "prod"},
		Spec: v1beta1.AuthorizationPolicy{
			Selector: &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": "web"}},
			Action:   v1beta1.AuthorizationPolicy_DENY,
			Rules:    []*v1beta1.Rule{{To: []*v1beta1.Rule_To{{Operation: &v1beta1.Operation{Ports: ports}}}}},
		},
	}
}

func (r *running) testPolicies(t *testing.T) {
	if said := strings.Count(r.log.String(), "group=security.istio.io/v1"); said != 1 {
		t.Errorf("missing CRDs were mentioned %d times", said)
	}
	r.installCRDs(t)
	policies := r.istio.SecurityV1().AuthorizationPolicies("prod")
	eventually(t, func() error { // the API server serves a new type after a moment
		_, err := policies.Create(t.Context(), denyPolicy("no-9999", "9999"), metav1.CreateOptions{})
		return err
	})
	r.await(t, "policy and its attachment", func(s *mesh.Snapshot) bool {
		return s.Policy("prod/no-9999") != nil && slices.Contains(s.Workload(podUID+"prod/web-1").Policies, "prod/no-9999")
	})
	if db := r.store.Load().Workload(podUID + "prod/db-1"); len(db.Policies) != 0 {
		t.Errorf("db-1 names %v", db.Policies)
	}
	r.condition(t, "no-9999", "True", "Accepted", "attached to ztunnel")
}

// condition waits for the ztunnel condition of a policy in prod.
func (r *running) condition(t *testing.T, name, status, reason, message string) {
	t.Helper()
	eventually(t, func() error {
		ap, err := r.istio.SecurityV1().AuthorizationPolicies("prod").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range ap.Status.Conditions {
			if c.Type == "ZtunnelAccepted" && c.Status == status && c.Reason == reason && strings.Contains(c.Message, message) && c.ObservedGeneration == ap.Generation {
				return nil
			}
		}
		return fmt.Errorf("%s: conditions of generation %d are %v", name, ap.Generation, ap.Status.Conditions)
	})
}

func (r *running) edit(t *testing.T, name string, change func(*securityv1.AuthorizationPolicy)) {
	t.Helper()
	policies := r.istio.SecurityV1().AuthorizationPolicies("prod")
	eventually(t, func() error { // a status write may come between
		ap, err := policies.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(ap)
		_, err = policies.Update(t.Context(), ap, metav1.UpdateOptions{})
		return err
	})
}

func (r *running) testBadPolicy(t *testing.T) {
	good := r.store.Load().Policy("prod/no-9999")
	r.edit(t, "no-9999", func(ap *securityv1.AuthorizationPolicy) {
		ap.Spec.Selector.MatchLabels["app"] = "db"
		ap.Spec.Rules[0].From = []*v1beta1.Rule_From{{Source: &v1beta1.Source{IpBlocks: []string{"10.0.0.1", "10.0.0.0/99"}}}}
	})
	const field = `spec.rules[0].from[0].source.ipBlocks[1]: "10.0.0.0/99": not an IP or CIDR`
	r.condition(t, "no-9999", "False", "Invalid", field+"; the last version without errors stays in force")
	if !strings.Contains(r.log.String(), "AuthorizationPolicy prod/no-9999: "+strings.ReplaceAll(field, `"`, `\"`)) {
		t.Errorf("the log does not name the field\n%s", r.log)
	}
	// Everything else goes on, so this arrives after the bad one was judged.
	if _, err := r.istio.SecurityV1().AuthorizationPolicies("prod").Create(t.Context(), denyPolicy("other", "1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "another policy", func(s *mesh.Snapshot) bool { return s.Policy("prod/other") != nil })
	s := r.store.Load()
	if s.Policy("prod/no-9999") != good {
		t.Errorf("the policy in force is %+v, was %+v", s.Policy("prod/no-9999"), good)
	}
	if !slices.Contains(s.Workload(podUID+"prod/web-1").Policies, "prod/no-9999") || len(s.Workload(podUID+"prod/db-1").Policies) > 0 {
		t.Error("the bad version's selector counts")
	}
	r.edit(t, "no-9999", func(ap *securityv1.AuthorizationPolicy) { ap.Spec.Rules[0].From[0].Source.IpBlocks[1] = "10.0.0.0/8" })
	r.await(t, "the mended policy on db-1 only", func(s *mesh.Snapshot) bool {
		return len(s.Workload(podUID+"prod/db-1").Policies) == 1 && !slices.Contains(s.Workload(podUID+"prod/web-1").Policies, "prod/no-9999")
	})
	r.condition(t, "no-9999", "True", "Accepted", "attached to ztunnel")
}

func (r *running) testPeerAuthentication(t *testing.T) {
	const strict = "istio-system/istio_converted_static_strict"
	peers := r.istio.SecurityV1().PeerAuthentications("prod")
	_, err := peers.Create(t.Context(), &securityv1.PeerAuthentication{
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec:       v1beta1.PeerAuthentication{Mtls: &v1beta1.PeerAuthentication_MutualTLS{Mode: v1beta1.PeerAuthentication_MutualTLS_STRICT}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.await(t, "strict on prod alone", func(s *mesh.Snapshot) bool {
		return s.Policy(strict) != nil && slices.Contains(s.Workload(podUID+"prod/web-1").Policies, strict) &&
			slices.Contains(s.Workload(podUID+"prod/db-1").Policies, strict) && len(s.Workload(podUID+"plain/legacy-1").Policies) == 0
	})
	if err := peers.Delete(t.Context(), "default", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "no strict any more", func(s *mesh.Snapshot) bool {
		return s.Policy(strict) == nil && !slices.Contains(s.Workload(podUID+"prod/web-1").Policies, strict)
	})
}

func id(namespace, account string) identity.ID {
	return identity.ID{TrustDomain: identity.DefaultTrustDomain, Namespace: namespace, ServiceAccount: account}
}

// refused expects the CA to say no to id, with a reason.
func (r *running) refused(t *testing.T, id identity.ID, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := r.certs.Certificate(ctx, id)
	var e *caclient.Error
	if !errors.As(err, &e) || !e.Denied || !strings.Contains(err.Error(), reason) {
		t.Errorf("certificate for %v: %v, want a denial saying %q", id, err, reason)
	}
	r.certs.Forget(id)
}

func (r *running) testCertificates(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cert, err := r.certs.Certificate(ctx, id("prod", "web"))
	if err != nil {
		t.Fatal(err)
	}
	if got := must(identity.FromCertificate(cert.Leaf))(t); got != id("prod", "web") {
		t.Errorf("certificate is for %v", got)
	}
	if _, err := r.certs.Certificate(ctx, id("ambit-system", "ztunnel")); err != nil {
		t.Errorf("ztunnel's own: %v", err)
	}
	r.refused(t, id("prod", "db"), "no enrolled pod of spiffe://cluster.local/ns/prod/sa/db on node node-a")
	r.refused(t, id("plain", "legacy"), "no enrolled pod of spiffe://cluster.local/ns/plain/sa/legacy on node node-a")
	r.refused(t, identity.ID{TrustDomain: "elsewhere", Namespace: "prod", ServiceAccount: "web"}, "not of trust domain cluster.local")
}

// testReaders: a token for our audience is not enough to read the mesh.
func (r *running) testReaders(t *testing.T) {
	web := must(r.client.CoreV1().Pods("prod").Get(t.Context(), "web-1", metav1.GetOptions{}))(t)
	token := must(r.token(web))(t)
	conn := must(grpc.NewClient(r.xds.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}))))(t)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), patience)
	defer cancel()
	stream := must(discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx))(t)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "prod/web is not one of --trusted-node-accounts") {
		t.Errorf("the stream of an ordinary pod: %v", err)
	}
}

func (r *running) testRoots(t *testing.T) {
	ctx := t.Context()
	same := func(namespace string) func() error {
		return func() error {
			cm, err := r.client.CoreV1().ConfigMaps(namespace).Get(ctx, kube.RootConfigMap, metav1.GetOptions{})
			if err == nil && !strings.HasPrefix(cm.Data[kube.RootKey], "-----BEGIN CERTIFICATE-----") {
				err = fmt.Errorf("%s holds %q", namespace, cm.Data)
			}
			return err
		}
	}
	for _, ns := range []string{"default", "kube-system", "prod", "ambit-system"} {
		eventually(t, same(ns))
	}
	cm := must(r.client.CoreV1().ConfigMaps("prod").Get(ctx, kube.RootConfigMap, metav1.GetOptions{}))(t)
	cm.Data[kube.RootKey] = "forged"
	must(r.client.CoreV1().ConfigMaps("prod").Update(ctx, cm, metav1.UpdateOptions{}))(t)
	eventually(t, same("prod"))
	if err := r.client.CoreV1().ConfigMaps("plain").Delete(ctx, kube.RootConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, same("plain"))
	r.namespace(t, "later", nil)
	eventually(t, same("later"))
	for _, ns := range []string{"kube-public", "kube-node-lease"} {
		if err := same(ns)(); !apierrors.IsNotFound(err) {
			t.Errorf("ConfigMap in %s: %v", ns, err)
		}
	}
	if _, err := r.client.CoreV1().ConfigMaps("prod").Get(ctx, kube.IstioRootConfigMap, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%s without --istio-names: %v", kube.IstioRootConfigMap, err)
	}
}

func (r *running) testEnd(t *testing.T) {
	r.pod(t, "prod", "batch-1", "node-a", "10.0.0.9", nil)
	r.await(t, "batch-1", func(s *mesh.Snapshot) bool { return s.Workload(podUID+"prod/batch-1") != nil })
	r.patchPod(t, "prod", "batch-1", `{"status":{"phase":"Succeeded"}}`, "status")
	r.await(t, "batch-1 gone", func(s *mesh.Snapshot) bool { return s.Workload(podUID+"prod/batch-1") == nil })
	r.refused(t, id("prod", "batch"), "no enrolled pod")
}

func (r *running) testSecretLost(t *testing.T) {
	secrets := r.client.CoreV1().Secrets("ambit-system")
	old := must(secrets.Get(t.Context(), kube.SelfSignedSecret, metav1.GetOptions{}))(t)
	if err := secrets.Delete(t.Context(), kube.SelfSignedSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	intact := func(want string) func() error {
		return func() error {
			line := `ambit_ca_secret_intact{secret="ambit-ca-secret"} ` + want
			if !strings.Contains(r.get("/metrics"), line) {
				return errors.New("no metric " + line)
			}
			return nil
		}
	}
	eventually(t, intact("0"))
	r.pod(t, "prod", "late-1", "node-a", "10.0.0.10", nil)
	r.await(t, "late-1", func(s *mesh.Snapshot) bool { return s.Workload(podUID+"prod/late-1") != nil })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := r.certs.Certificate(ctx, id("prod", "late")); err != nil {
		t.Errorf("without its Secret the CA does not sign: %v", err)
	}
	old.ResourceVersion, old.UID = "", ""
	must(secrets.Create(t.Context(), old, metav1.CreateOptions{}))(t)
	eventually(t, intact("1"))
}

func (r *running) testRestart(t *testing.T) {
	mark := r.store.Load().Mark()
	r.stop()
	r.start(r.whole)
	if _, err := r.istio.SecurityV1().AuthorizationPolicies("prod").Create(t.Context(), denyPolicy("marker", "2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "a change after the restart", func(s *mesh.Snapshot) bool { return s.Policy("prod/marker") != nil })
	changes, ok := r.store.Changes(mark, r.store.Load())
	// web-1 changes because it names the marker.
	if !ok || !slices.Equal(changes.Policies, []string{"prod/marker"}) || len(changes.Services) > 0 ||
		slices.ContainsFunc(changes.Workloads, func(uid string) bool { return uid != podUID+"prod/web-1" }) {
		t.Errorf("the restart changed %+v (known: %t), want the marker alone", changes, ok)
	}
}

// testLatency measures kubectl apply to a ztunnel's new snapshot.
func (r *running) testLatency(t *testing.T) {
	const rounds = 50
	took := make([]time.Duration, rounds)
	for i := range took {
		ap := denyPolicy(fmt.Sprintf("latency-%d", i), "3")
		start := time.Now()
		if _, err := r.istio.SecurityV1().AuthorizationPolicies("prod").Create(t.Context(), ap, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		r.await(t, ap.Name, func(s *mesh.Snapshot) bool { return s.Policy("prod/"+ap.Name) != nil })
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	t.Logf("policy created -> in the ztunnel's snapshot, %d rounds: p50 %v, p99 %v, max %v", rounds, took[rounds/2], took[rounds*99/100], took[rounds-1])
}

// testSecondReplica: it serves from the start, and writes once the first has
// gone.
func (r *running) testSecondReplica(t *testing.T) {
	second := &running{lab: r.lab, whole: r.whole, account: r.account, log: &logBuffer{}, xds: loopback(r.whole), http: loopback(r.whole)}
	// Settings that cannot be read: who has last good ones goes on, who has none waits.
	settings := r.client.CoreV1().ConfigMaps("istio-system")
	must(settings.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"},
		Data: map[string]string{"mesh": "outboundTrafficPolicy: {mode: ALLOW_SOME}"}}, metav1.CreateOptions{}))(t)
	second.launch(r.whole, "--replica", "second")
	eventually(t, func() error {
		if said := second.log.String(); !strings.Contains(said, "there are no earlier ones") {
			return errors.New("it does not say that it waits: " + said)
		}
		return nil
	})
	if body := second.get("/ready"); strings.HasPrefix(body, "ready") {
		t.Errorf("ready without settings: %s", body)
	}
	must(0, settings.Delete(t.Context(), "istio", metav1.DeleteOptions{}))(t)
	second.awaitReady(r.whole)
	leads := func(r *running, want string) func() error {
		return func() error {
			if !strings.Contains(r.get("/metrics"), "\nambit_controller_leader "+want+"\n") {
				return errors.New("ambit_controller_leader is not " + want)
			}
			return nil
		}
	}
	eventually(t, leads(r, "1"))
	eventually(t, leads(second, "0"))
	r.stop()
	eventually(t, leads(second, "1"))
	if err := r.client.CoreV1().ConfigMaps("plain").Delete(t.Context(), kube.RootConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := r.client.CoreV1().ConfigMaps("plain").Get(t.Context(), kube.RootConfigMap, metav1.GetOptions{})
		return err
	})
	r.testExternalGoesOn(t)
}
