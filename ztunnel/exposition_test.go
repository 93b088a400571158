package ztunnel

import (
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

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

func FuzzCoding(f *testing.F) {
	f.Add("gzip;q=0.5, *;q=0")
	f.Fuzz(func(t *testing.T, s string) { coding(s) })
}
