package ztunnel

import (
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
)

func TestCoding(t *testing.T) {
	for accept, want := range map[string]string{
		"": "", "identity": "", "gzip": "gzip", "GZIP": "gzip", "br": "br", "zstd": "zstd", "deflate": "deflate", "compress": "",
		"gzip, zstd, br": "zstd", "gzip;q=0.9, br;q=1.0": "br", "gzip; q=0.5 , deflate;q=0.6": "deflate", "zstd;q=0, gzip": "gzip",
		"*": "zstd", "*;q=0": "", "*;q=0.1, gzip;q=0.2": "gzip", "zstd;q=0, *": "gzip", "identity, gzip;q=0.5": "", "identity;q=0.5, gzip": "gzip",
		"identity;q=0, gzip;q=0.1": "gzip", "gzip;q=0": "", "gzip;q=2": "", "gzip;q=x, br": "br", "gzip;q=NaN": "", "gzip;level=9;q=0.5": "gzip", ";;,,=": "",
	} {
		if got := coding(accept).name; got != want {
			t.Errorf("%q: %q, want %q", accept, got, want)
		}
	}
}

// TestMetricsCodings: whatever it is packed in, the body is the same.
//
//ambit:feature telemetry-metrics-encodings
func TestMetricsCodings(t *testing.T) {
	reg := prometheus.NewRegistry()
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "a_total", Help: "as"}, []string{"x"})
	reg.MustRegister(vec)
	for i := range 2000 {
		vec.WithLabelValues(strconv.Itoa(i)).Inc()
	}
	flushed := 0
	h := metricsHandler(func() { flushed++ }, reg)
	get := func(accept string) (string, []byte) {
		r := httptest.NewRequest("GET", "/stats/prometheus", nil)
		r.Header.Set("Accept-Encoding", accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 200 {
			t.Fatalf("%s: %d", accept, w.Code)
		}
		return w.Header().Get("Content-Encoding"), w.Body.Bytes()
	}
	_, plain := get("")
	if !strings.HasSuffix(string(plain), "# EOF\n") {
		t.Fatalf("not whole: %d bytes", len(plain))
	}
	for name, reader := range map[string]func(io.Reader) (io.Reader, error){
		"gzip":    func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"deflate": func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) },
		"br":      func(r io.Reader) (io.Reader, error) { return brotli.NewReader(r), nil },
		"zstd": func(r io.Reader) (io.Reader, error) {
			d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
			return d.IOReadCloser(), err
		},
	} {
		got, packed := get(name)
		r, err := reader(strings.NewReader(string(packed)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		body, err := io.ReadAll(r)
		if err != nil || got != name || string(body) != string(plain) || len(packed) > len(plain)/2 {
			t.Errorf("%s: coding %q, %d bytes that give %d of %d: %v", name, got, len(packed), len(body), len(plain), err)
		}
		if c, ok := r.(io.Closer); ok {
			c.Close()
		}
	}
	if flushed != 5 {
		t.Errorf("flushed %d times", flushed)
	}
}

// TestStableMetrics: a few metrics are stable, and the help of every other says
// that it is not; the traffic's have all their labels.
//
//ambit:feature telemetry-metrics
func TestStableMetrics(t *testing.T) {
	n := newNode(t)
	pod := &live.Pod{UID: "u", Name: "p", Namespace: "ns"}
	at := netip.MustParseAddrPort
	for _, r := range []live.Reporter{live.Source, live.Destination} {
		c := n.table.Accept(pod, r)
		c.Open(live.Facts{Src: at("10.0.0.1:1"), Dst: at("10.0.0.2:2")})
		c.End(live.Errorf(live.ConnectRefused, "refused"))
		n.table.Metrics().SocketOpened(r)()
	}
	n.table.Flush()
	w := httptest.NewRecorder()
	metricsHandler(n.table.Flush, n.cfg.Registry).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	body := w.Body.String()
	var steady []string
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, "# HELP ")
		if !ok {
			continue
		}
		name, help, _ := strings.Cut(rest, " ")
		if strings.Contains(help, "unstable") && strings.HasPrefix(name, "process_") {
			t.Errorf("%s: %s", name, help)
		}
		if !strings.Contains(help, "unstable") && !strings.HasPrefix(name, "process_") {
			steady = append(steady, name)
		}
	}
	if got, want := strings.Join(steady, " "), "istio_build istio_tcp_connections_closed istio_tcp_connections_opened istio_tcp_received_bytes istio_tcp_sent_bytes"; got != want {
		t.Errorf("stable are %s\nwant %s", got, want)
	}
	for _, s := range []string{
		"istio_tcp_sockets_open{reporter=\"source\"} 0", "# TYPE istio_tcp_connections_opened counter", "workload_manager_proxies_started_total 0",
		"process_open_fds ", "process_max_fds ", "workload_manager_pending_proxy_count 0",
	} {
		if !strings.Contains(body, s) {
			t.Errorf("no %s", s)
		}
	}
}

// BenchmarkMetrics is a scrape of what a thousand pairs of workloads have left.
func BenchmarkMetrics(b *testing.B) {
	n := newNode(b)
	pod := &live.Pod{UID: "u", Name: "p", Namespace: "ns"}
	at := netip.MustParseAddrPort
	for i := range 1000 {
		c := n.table.Accept(pod, live.Source)
		name := "workload-" + strconv.Itoa(i)
		c.Open(live.Facts{Src: at("10.0.0.1:1"), Dst: at("10.0.0.2:2"), HBONE: true,
			Destination: &mesh.Workload{Name: name, WorkloadName: name, CanonicalName: name, Namespace: "ns", ServiceAccount: name}})
		c.End(nil)
	}
	for _, accept := range []string{"identity", "gzip", "zstd", "br"} {
		b.Run(accept, func(b *testing.B) {
			h := metricsHandler(n.table.Flush, n.cfg.Registry)
			size := 0
			for b.Loop() {
				r := httptest.NewRequest("GET", "/metrics", nil)
				r.Header.Set("Accept-Encoding", accept)
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				size = w.Body.Len()
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}

func FuzzCoding(f *testing.F) {
	f.Add("gzip;q=0.5, *;q=0")
	f.Fuzz(func(t *testing.T, s string) { coding(s) })
}
