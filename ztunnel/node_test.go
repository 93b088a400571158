package ztunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/handoff"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

// noCertificates records what is wanted and has nothing.
type noCertificates struct{ wanted, unwanted []identity.ID }

func (c *noCertificates) Certificate(context.Context, identity.ID) (*tls.Certificate, error) {
	return nil, errors.New("no CA here")
}
func (c *noCertificates) Roots() *x509.CertPool   { return nil }
func (c *noCertificates) Terms() *identity.Terms  { return nil }
func (c *noCertificates) Prefetch(id identity.ID) { c.wanted = append(c.wanted, id) }
func (c *noCertificates) Forget(id identity.ID)   { c.unwanted = append(c.unwanted, id) }

func newNode(t testing.TB) *Node {
	t.Helper()
	levels, err := live.NewLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{NodeName: "n1", Version: "test", Store: mesh.NewStore(), Synced: make(chan struct{}),
		Certificates: &noCertificates{}, Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
		Levels: levels, Grace: time.Second, Socket: t.TempDir() + "/none.sock"})
}

// owning runs the pod set's owner for the length of a test, and then nothing
// may be left of it.
func owning(t *testing.T, n *Node) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); n.own(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func newPod(t testing.TB, uid string) handoff.Pod {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces: needs root")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	p := handoff.Pod{UID: uid, Name: "pod-" + uid, Namespace: "ns", ServiceAccount: "sa", NS: ns}
	listen := func() *os.File {
		f, err := ns.ListenTCP(netip.MustParseAddrPort("[::]:0"), netns.SocketOptions{Mark: netns.Mark, Transparent: true})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	p.Listeners = &handoff.Listeners{Outbound: listen(), Inbound: listen(), HBONE: []*os.File{listen()}}
	return p
}

// uids are the pods served.
func uids(n *Node) string {
	var out []string
	n.do(func(s *podSet) {
		for uid := range s.pods {
			out = append(out, uid)
		}
	})
	return strings.Join(out, ",")
}

//ambit:feature xds-warm zds-orders
func TestPodSet(t *testing.T) {
	before := openFiles(t)
	t.Run("snapshot", func(t *testing.T) {
		n := newNode(t)
		owning(t, n)
		ctx := context.Background()
		add := func(p handoff.Pod) {
			t.Helper()
			if err := n.Add(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
		add(newPod(t, "1"))
		add(newPod(t, "2"))
		n.SnapshotDone()
		n.do(func(s *podSet) { s.connected(true) })
		if len(uids(n)) != 3 {
			t.Fatalf("serves %s", uids(n))
		}
		if r := ready(n); !strings.Contains(r, "proxy, state manager") || strings.Contains(r, "workload") {
			t.Errorf("readiness: %s", r)
		}
		// Again, and the same: no-ops, and what was handed over is closed.
		again := newPod(t, "2")
		again.NS.Close()
		n.do(func(s *podSet) {
			f, err := os.Open("/proc/self/fd/" + itoa(s.pods["2"].pod.NS.File()))
			if err != nil {
				t.Error(err)
				return
			}
			again.NS, err = netns.FromFile(f)
			if err != nil {
				t.Error(err)
			}
		})
		add(again)
		if len(uids(n)) != 3 {
			t.Errorf("serves %s", uids(n))
		}
		// A new namespace under a known UID replaces the pod.
		add(newPod(t, "2"))

		// A new connection: pods go on until its snapshot is complete.
		n.do(func(s *podSet) { s.connected(false) })
		if r := ready(n); !strings.Contains(r, "workload proxy manager") {
			t.Errorf("readiness: %s", r)
		}
		if len(uids(n)) != 3 {
			t.Errorf("serves %s", uids(n))
		}
		n.Keep("1")
		n.Del("2") // before the end of the snapshot it only is not wanted
		if len(uids(n)) != 3 {
			t.Errorf("serves %s", uids(n))
		}
		n.SnapshotDone()
		if uids(n) != "1" {
			t.Errorf("serves %s", uids(n))
		}
		n.Del("1")
		n.Del("unknown")
		if uids(n) != "" {
			t.Errorf("serves %s", uids(n))
		}
	})
	t.Run("two lives of a pod share no pooled connection", func(t *testing.T) {
		n := newNode(t)
		owning(t, n)
		lives := map[string]bool{}
		for range 3 {
			if err := n.Add(context.Background(), newPod(t, "1")); err != nil { // each in a namespace of its own
				t.Fatal(err)
			}
			n.do(func(s *podSet) { lives[s.pods["1"].life] = true })
		}
		if len(lives) != 3 {
			t.Errorf("lives %v", lives)
		}
	})
	t.Run("a pod that cannot be served is pending", func(t *testing.T) {
		n := newNode(t)
		owning(t, n)
		p := newPod(t, "1")
		p.Listeners.Inbound.Close()
		p.Listeners.Inbound = nil
		if err := n.Add(context.Background(), p); err == nil || !strings.Contains(err.Error(), "ns/pod-1") {
			t.Errorf("error %v", err)
		}
		n.SnapshotDone()
		n.do(func(s *podSet) { s.connected(true) })
		if r := ready(n); !strings.Contains(r, "workload proxy manager") {
			t.Errorf("readiness: %s", r)
		}
		n.Del("1")
		n.do(func(s *podSet) { s.connected(true) })
		if r := ready(n); strings.Contains(r, "workload proxy manager") {
			t.Errorf("readiness: %s", r)
		}
	})
	t.Run("port dialect", func(t *testing.T) {
		n := newNode(t)
		owning(t, n)
		p := newPod(t, "1")
		p.Listeners.Close()
		p.Listeners = nil
		if err := n.Add(context.Background(), p); err != nil {
			t.Fatal(err)
		}
		// What is redirected without NAT keeps its address: the pod calls the
		// mesh's own port, which is refused.
		c, err := p.NS.DialTCP(context.Background(), netip.AddrPort{}, netip.MustParseAddrPort("127.0.0.1:15006"), netns.SocketOptions{})
		if err == nil {
			c.SetDeadline(time.Now().Add(time.Minute))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("not refused: %v", err)
		}
	})
	// Descriptors of what nobody holds are closed some time after a collection.
	for end := time.Now().Add(time.Minute); openFiles(t) > before+1 && time.Now().Before(end); {
		runtime.GC()
		<-time.After(10 * time.Millisecond)
	}
	if after := openFiles(t); after > before+1 { // the runtime's poller
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func itoa(f *os.File) string {
	b, _ := json.Marshal(f.Fd())
	return string(b)
}

func openFiles(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func ready(n *Node) string {
	w := httptest.NewRecorder()
	n.ready.ServeHTTP(w, httptest.NewRequest("GET", "/healthz/ready", nil))
	return w.Body.String()
}

// TestServerDeadlines: who connects and says or reads nothing is let go.
func TestServerDeadlines(t *testing.T) {
	n := newNode(t)
	n.cfg.AdminAddr, n.cfg.StatsAddr, n.cfg.ReadyAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	servers, err := n.listen()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		s.ln.Close()
		h := s.http
		if h.ReadHeaderTimeout == 0 || h.IdleTimeout == 0 || s.name != "admin server" && (h.ReadTimeout == 0 || h.WriteTimeout == 0) {
			t.Errorf("%s: header %v, read %v, idle %v, write %v", s.name, h.ReadHeaderTimeout, h.ReadTimeout, h.IdleTimeout, h.WriteTimeout)
		}
	}
}

//ambit:feature xds-warm
func TestReadiness(t *testing.T) {
	r := newReadiness(nil, nil, "b", "a")
	get := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := get("GET", "/healthz/ready"); code != 500 || body != "not ready, pending: a, b\n" {
		t.Errorf("%d %q", code, body)
	}
	r.done("a")
	r.done("b")
	if code, body := get("GET", "/healthz/ready"); code != 200 || body != "ready\n" {
		t.Errorf("%d %q", code, body)
	}
	if code, _ := get("POST", "/healthz/ready"); code != 405 {
		t.Error(code)
	}
	if code, _ := get("GET", "/other"); code != 404 {
		t.Error(code)
	}
}

func TestAdminAndMetrics(t *testing.T) {
	n := newNode(t)
	owning(t, n)
	ip := netip.MustParseAddr("10.0.0.1")
	b := mesh.NewBuilder(nil)
	b.Apply(mesh.Delta{
		Workloads: []*mesh.Workload{{UID: "c//Pod/ns/p", Name: "p", Namespace: "ns", Addresses: []netip.Addr{ip}, Protocol: mesh.ProtocolHBONE,
			Services: map[string][]mesh.Port{"ns/web.ns": nil}}},
		Services: []*mesh.Service{{Name: "web", Namespace: "ns", Hostname: "web.ns", Ports: []mesh.Port{{ServicePort: 80, TargetPort: 8080}},
			Addresses: []mesh.NetworkAddress{{Prefix: netip.MustParsePrefix("10.1.0.1/32")}}}},
		Policies: []*mesh.Policy{{Name: "deny", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny,
			Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{NotPrincipals: []mesh.StringMatch{{Kind: mesh.Presence}}}}}}}}}},
	})
	n.cfg.Store.Swap(b.Build())
	admin := n.admin()
	do := func(method, target string) (int, string) {
		w := httptest.NewRecorder()
		admin.ServeHTTP(w, httptest.NewRequest(method, target, nil))
		return w.Code, w.Body.String()
	}
	_, body := do("GET", "/config_dump")
	var dump struct {
		Workloads []struct {
			WorkloadIPs []string `json:"workloadIps"`
			Protocol    string
			Status      string
			ClusterID   string `json:"clusterId"`
			Services    []string
		}
		Services []struct {
			VIPs      []string `json:"vips"`
			Ports     map[string]int
			Endpoints map[string]struct{ WorkloadUID string }
		}
		Policies []struct {
			Action, Scope string
			Rules         [][][]map[string]any
		}
		WorkloadState map[string]any
	}
	if err := json.Unmarshal([]byte(body), &dump); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if len(dump.Workloads) != 1 || dump.Workloads[0].WorkloadIPs[0] != "10.0.0.1" || dump.Workloads[0].Protocol != "HBONE" ||
		dump.Workloads[0].Status != "Healthy" || dump.Workloads[0].ClusterID != "Kubernetes" || dump.Workloads[0].Services[0] != "ns/web.ns" {
		t.Errorf("%+v", dump.Workloads)
	}
	if len(dump.Services) != 1 || dump.Services[0].VIPs[0] != "/10.1.0.1" || dump.Services[0].Ports["80"] != 8080 || len(dump.Services[0].Endpoints) != 1 {
		t.Errorf("%+v", dump.Services)
	}
	if len(dump.Policies) != 1 || dump.Policies[0].Action != "Deny" || dump.Policies[0].Scope != "Namespace" {
		t.Errorf("%+v", dump.Policies)
	} else if m := dump.Policies[0].Rules[0][0][0]["notPrincipals"]; m == nil {
		t.Errorf("%+v", dump.Policies[0].Rules)
	}

	for _, tt := range []struct {
		method, target string
		code           int
		body           string
	}{
		{"GET", "/logging", 405, ""},
		{"POST", "/logging", 200, "current log level is info\n"},
		{"POST", "/logging?level=xds=debug,warn", 200, "current log level is xds=debug,warn\n"},
		{"POST", "/logging?level=nonsense", 400, ""},
		{"POST", "/logging?reset", 200, "current log level is info\n"},
		{"GET", "/quitquitquit", 405, ""},
		{"POST", "/quitquitquit", 200, "shutdown now\n"},
		{"POST", "/quitquitquit", 200, "shutdown now\n"},
		{"GET", "/nothing", 404, ""},
	} {
		code, body := do(tt.method, tt.target)
		if code != tt.code || tt.body != "" && body != tt.body {
			t.Errorf("%s %s: %d %q", tt.method, tt.target, code, body)
		}
	}

	h := metricsHandler(n.table.Flush, n.cfg.Registry)
	for accept, want := range map[string]string{
		"": "text/plain; charset=utf-8",
		"application/openmetrics-text;version=1.0.0,text/plain": "application/openmetrics-text;charset=utf-8;version=1.0.0",
	} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		body, _ := io.ReadAll(w.Body)
		if got := w.Header().Get("Content-Type"); got != want {
			t.Errorf("Accept %q: %q", accept, got)
		}
		for _, s := range []string{`istio_build{component="ztunnel",tag="test"} 1`, "workload_manager_active_proxy_count 0", "workload_manager_proxies_started_total 0"} {
			if !strings.Contains(string(body), s) {
				t.Errorf("no %q in the metrics", s)
			}
		}
		if !strings.HasSuffix(string(body), "# EOF\n") {
			t.Errorf("ends with %q", body[max(0, len(body)-20):])
		}
	}
}

// A node without a control plane comes up, says that it is not ready, and ends
// when told.
func TestRunWithoutControlPlane(t *testing.T) {
	n := newNode(t)
	n.cfg.ReadyAddr = "127.0.0.1:0"
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	n = newNode(t)
	n.cfg.AdminAddr, n.cfg.StatsAddr = taken.Addr().String(), taken.Addr().String()
	err = n.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "admin server") || !strings.Contains(err.Error(), "metrics server") {
		t.Errorf("both taken addresses are to be named: %v", err)
	}
}

//ambit:feature identity-prefetch
func TestPrefetch(t *testing.T) {
	certs := &noCertificates{}
	n := newNode(t)
	n.cfg.Certificates = certs
	w := func(name, node string, p mesh.Protocol) *mesh.Workload {
		return &mesh.Workload{UID: name, Name: name, Namespace: "ns", ServiceAccount: "sa-" + strings.TrimRight(name, "0123456789"), Node: node, Protocol: p}
	}
	l, mark := newLocal("n1"), mesh.NewStore().Load().Mark()
	step := func(d mesh.Delta, wanted, unwanted string) {
		t.Helper()
		certs.wanted, certs.unwanted = nil, nil
		b := mesh.NewBuilder(n.cfg.Store.Load())
		b.Apply(d)
		n.cfg.Store.Swap(b.Build())
		s := n.cfg.Store.Load()
		n.follow(l, mark, s)
		mark = s.Mark()
		names := func(ids []identity.ID) string {
			var out []string
			for _, id := range ids {
				out = append(out, id.ServiceAccount)
			}
			return strings.Join(out, ",")
		}
		if names(certs.wanted) != wanted || names(certs.unwanted) != unwanted {
			t.Errorf("wanted %q, unwanted %q", names(certs.wanted), names(certs.unwanted))
		}
	}
	step(mesh.Delta{Workloads: []*mesh.Workload{w("a1", "n1", mesh.ProtocolHBONE), w("far1", "n2", mesh.ProtocolHBONE), w("plain1", "n1", mesh.ProtocolTCP)}}, "sa-a", "")
	step(mesh.Delta{Workloads: []*mesh.Workload{w("a2", "n1", mesh.ProtocolHBONE), w("plain1", "n1", mesh.ProtocolHBONE)}}, "sa-plain", "")
	step(mesh.Delta{RemovedWorkloads: []string{"a1"}}, "", "")
	step(mesh.Delta{RemovedWorkloads: []string{"a2"}}, "", "sa-a")
	step(mesh.Delta{Workloads: []*mesh.Workload{w("plain1", "n1", mesh.ProtocolTCP)}}, "", "sa-plain")
}

var _ http.Handler = (*readiness)(nil)
