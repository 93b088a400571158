package main

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
)

// apiServer has pods, and forwards to what listens for them here.
type apiServer struct {
	t          *testing.T
	pods       []corev1.Pod
	ports      map[string]string // by "pod:port": an address; "" is one where nothing answers
	forbidden  bool
	kubeconfig string
	running    sync.WaitGroup
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{t: t, ports: map[string]string{}}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /api/v1/namespaces/{ns}/pods", func(w http.ResponseWriter, r *http.Request) {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		for _, p := range s.pods {
			if p.Namespace == r.PathValue("ns") && r.URL.Query().Get("labelSelector") == "app="+p.Labels["app"] {
				list.Items = append(list.Items, p)
			}
		}
		answer(w, 200, list)
	})
	mux.HandleFunc("GET /api/v1/namespaces/{ns}/pods/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, p := range s.pods {
			if p.Namespace == r.PathValue("ns") && p.Name == r.PathValue("name") {
				p.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
				answer(w, 200, p)
				return
			}
		}
		answer(w, 404, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404})
	})
	mux.HandleFunc("POST /api/v1/namespaces/ambit-system/pods/{name}/portforward", func(w http.ResponseWriter, r *http.Request) {
		if s.forbidden {
			answer(w, 403, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
				Message: `pods "z" is forbidden: User "eve" cannot create resource "pods/portforward"`, Reason: metav1.StatusReasonForbidden, Code: 403})
			return
		}
		s.forward(w, r, r.PathValue("name"))
	})
	server := httptest.NewTLSServer(mux)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		s.running.Wait()
	})
	s.kubeconfig = filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority-data":%q}}],
"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{"token":"secret"}}]}`, server.URL,
		base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	if err := os.WriteFile(s.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// forward is the kubelet's half of portforward.k8s.io.
func (s *apiServer) forward(w http.ResponseWriter, r *http.Request, pod string) {
	if r.Header.Get("Authorization") != "Bearer secret" {
		s.t.Errorf("authorization %q", r.Header.Get("Authorization"))
	}
	if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
		s.t.Error(err)
		return
	}
	streams := make(chan httpstream.Stream, 4)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(st httpstream.Stream, _ <-chan struct{}) error {
		streams <- st
		return nil
	})
	if conn == nil {
		s.t.Error("not upgraded")
		return
	}
	s.running.Go(func() {
		defer conn.Close()
		var data, errs httpstream.Stream
		for data == nil || errs == nil {
			select {
			case st := <-streams:
				if st.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
					errs = st
				} else {
					data = st
				}
			case <-conn.CloseChan():
				return
			}
		}
		port := data.Headers().Get(corev1.PortHeader)
		to, err := net.Dial("tcp", s.ports[pod+":"+port])
		if err != nil {
			fmt.Fprintf(errs, "failed to connect to localhost:%s inside namespace: connection refused", port)
			errs.Close()
			data.Close()
			<-conn.CloseChan()
			return
		}
		// Whichever side ends first ends the other.
		s.running.Go(func() { io.Copy(to, data); to.Close() })
		io.Copy(data, to)
		data.Close()
		errs.Close()
		<-conn.CloseChan()
		to.Close()
	})
}

func (s *apiServer) pod(namespace, name, app, node string) {
	s.pods = append(s.pods, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}})
}

// serve answers for a port of a pod.
func (s *apiServer) serve(pod, port string, h http.HandlerFunc) {
	server := httptest.NewServer(h)
	s.t.Cleanup(server.Close)
	s.ports[pod+":"+port] = server.Listener.Addr().String()
}

func (s *apiServer) ambit(args ...string) (int, string, string) {
	s.t.Helper()
	return runAmbit(s.t, append([]string{"--kubeconfig", s.kubeconfig}, args...)...)
}

func dumpServer(t *testing.T, levels *sync.Map) http.HandlerFunc {
	saved, err := os.ReadFile(savedDump)
	if err != nil {
		t.Fatal(err)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/config_dump" && r.Method == http.MethodGet:
			_, _ = w.Write(saved)
		case r.URL.Path == "/logging" && r.Method == http.MethodPost && r.URL.Query().Get("level") == "off":
			http.Error(w, "not today", http.StatusBadRequest)
		case r.URL.Path == "/logging" && r.Method == http.MethodPost:
			levels.Store(r.Host+" "+r.URL.RawQuery, true)
			fmt.Fprintln(w, "current log level is debug")
		default:
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
	}
}

func TestZtunnelConfigOverPortForward(t *testing.T) {
	s := newAPIServer(t)
	s.pod("ambit-system", "ztunnel-a", "ztunnel", "n1")
	s.pod("ambit-system", "ztunnel-b", "ztunnel", "n2")
	s.pod("shop", "front-1", "front", "n1")
	s.pod("shop", "pending", "front", "")
	s.pod("shop", "elsewhere", "front", "n9")
	s.pod("shop", "new", "front", "n1")
	var levels sync.Map
	s.serve("ztunnel-a", "15000", dumpServer(t, &levels))
	for _, args := range [][]string{{"front-1.shop"}, {"shop/front-1"}, {"front-1", "-n", "shop"}} {
		code, out, errs := s.ambit(append([]string{"ztunnel-config", "connections"}, args...)...)
		if code != 0 || !strings.Contains(out, "front-1.shop") {
			t.Errorf("%q: %d %q %q", args, code, out, errs)
		}
	}
	// A ztunnel by its name, by its node, and any: everything it has.
	for _, args := range [][]string{{"ztunnel-a"}, {"--node", "n1"}, {}} {
		code, out, errs := s.ambit(append([]string{"ztunnel-config", "workload"}, args...)...)
		if code != 0 || strings.Count(out, "\n") != 5 {
			t.Errorf("%q: %d %q %q", args, code, out, errs)
		}
	}
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"cert", "--node", "n3"}, []string{"no ztunnel on node n3", "kubectl get pods -n ambit-system -l app=ztunnel"}},
		{[]string{"cert", "shop/elsewhere"}, []string{"no ztunnel on node n9"}},
		{[]string{"cert", "shop/pending"}, []string{"pod shop/pending has no node yet"}},
		{[]string{"cert", "shop/new"}, []string{"ztunnel ambit-system/ztunnel-a does not know pod shop/new"}},
		{[]string{"cert", "nobody"}, []string{"no pod nobody in namespace ambit-system or default"}},
		// Nothing listens there.
		{[]string{"cert", "--node", "n2"}, []string{"pod ambit-system/ztunnel-b port 15000: failed to connect to localhost:15000", "connection refused"}},
		{[]string{"cert", "--node", "n1", "--proxy-admin-port", "15021"}, []string{"pod ambit-system/ztunnel-a port 15021"}},
		{[]string{"log", "--node", "n1", "--level", "off"}, []string{"pod ambit-system/ztunnel-a port 15000", "400", "not today"}},
	} {
		code, out, errs := s.ambit(append([]string{"ztunnel-config"}, tt.args...)...)
		for _, want := range tt.want {
			if code != exitUnknown || out != "" || !strings.Contains(errs, want) {
				t.Errorf("%q: %d %q %q, want %q", tt.args, code, out, errs, want)
			}
		}
	}
	if code, out, errs := s.ambit("ztunnel-config", "log", "ztunnel-a", "--level", "debug"); code != 0 || out != "ztunnel-a: current log level is debug\n" {
		t.Errorf("log: %d %q %q", code, out, errs)
	}
	if _, ok := levels.Load("localhost level=debug"); !ok {
		t.Error("the level did not arrive")
	}
	// All of them: one answers, and the other is not hidden.
	if code, out, errs := s.ambit("ztunnel-config", "log"); code != exitUnknown || out != "ztunnel-a: current log level is debug\n" || !strings.Contains(errs, "ztunnel-b") {
		t.Errorf("log of all: %d %q %q", code, out, errs)
	}
	s.forbidden = true
	for _, args := range [][]string{{"workload"}, {"log"}} {
		if code, _, errs := s.ambit(append([]string{"ztunnel-config"}, args...)...); code != exitUnknown ||
			!strings.Contains(errs, "needs create on pods/portforward in namespace ambit-system") || !strings.Contains(errs, `User "eve"`) {
			t.Errorf("%q forbidden: %d %q", args, code, errs)
		}
	}
}

// TestForwardEnds: who does not answer is let go at the deadline, and nothing
// is left of the connection.
func TestForwardEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("silence", func(t *testing.T) {
		s := newAPIServer(t)
		s.pod("ambit-system", "ztunnel-a", "ztunnel", "n1")
		release := make(chan struct{})
		s.serve("ztunnel-a", "15000", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		})
		defer close(release)
		code, _, errs := s.ambit("ztunnel-config", "workload", "--timeout", "200ms")
		if code != exitUnknown || !strings.Contains(errs, "no answer to GET /config_dump") && !strings.Contains(errs, "deadline") {
			t.Errorf("%d %q", code, errs)
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		runtime.Gosched()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	if n := runtime.NumGoroutine(); n > before {
		buf := make([]byte, 64<<10)
		t.Errorf("%d goroutines, %d before:\n%s", n, before, buf[:runtime.Stack(buf, true)])
	}
}
