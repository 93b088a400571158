package ztunnel

import (
	"cmp"
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// metricsHandler always answers with OpenMetrics text, as the reference does,
// whatever the content type says. before is called first.
func metricsHandler(before func(), g prometheus.Gatherer) http.Handler {
	h := func(w http.ResponseWriter, r *http.Request) {
		before()
		families, err := g.Gather()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		contentType := "text/plain; charset=utf-8"
		for part := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
			kind, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(kind, "application/openmetrics-text") {
				contentType = "application/openmetrics-text;charset=utf-8;version=1.0.0"
			}
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Vary", "Accept-Encoding")
		c := coding(strings.Join(r.Header.Values("Accept-Encoding"), ","))
		out := io.Writer(w)
		if c.name != "" {
			w.Header().Set("Content-Encoding", c.name)
			z := c.writer(w)
			out = z
			// A body that is cut short must not look whole.
			defer func() {
				if err == nil {
					_ = z.Close()
				}
			}()
		}
		err = expose(out, families) // or the client has gone
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", h)
	mux.HandleFunc("/stats/prometheus", h)
	return mux
}

// expose writes family by family, because there may be many series.
func expose(w io.Writer, families []*dto.MetricFamily) error {
	enc := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeOpenMetrics))
	for _, f := range families {
		if help := f.GetHelp(); !stable(f.GetName()) && !strings.Contains(help, "unstable") {
			help += " (unstable)" // of the Go runtime's collector
			f.Help = &help
		}
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	if c, ok := enc.(expfmt.Closer); ok {
		return c.Close()
	}
	return nil
}

// stable are the metrics that stay as they are; the help of every other one says
// that it is unstable.
func stable(name string) bool {
	switch name {
	case "istio_build", "istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total",
		"istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total":
		return true
	}
	return strings.HasPrefix(name, "process_")
}

// contentCoding is one that the metrics can be had in; the zero one is none.
type contentCoding struct {
	name   string
	writer func(io.Writer) io.WriteCloser
}

// codings in the order in which they are taken of those a client likes equally:
// what is cheap for us first.
func codings() []contentCoding {
	return []contentCoding{
		{"zstd", func(w io.Writer) io.WriteCloser {
			// One scrape a while wants neither a worker for each core nor the
			// megabytes of a large window: labels repeat from line to line.
			z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(128<<10))
			if err != nil {
				return broken{err}
			}
			return z
		}},
		{"gzip", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }},
		{"br", func(w io.Writer) io.WriteCloser {
			return brotli.NewWriterOptions(w, brotli.WriterOptions{Quality: 4, LGWin: 17})
		}},
		{"deflate", func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) }}, // RFC 9110 8.4.1.2: in the zlib format
	}
}

// broken is a writer that cannot be had.
type broken struct{ err error }

func (b broken) Write([]byte) (int, error) { return 0, b.err }
func (b broken) Close() error              { return b.err }

// coding chooses by Accept-Encoding (RFC 9110 12.5.3): the one with the greatest
// weight, none if that is what the client likes most or if it knows none of ours.
func coding(accept string) contentCoding {
	weights := map[string]float64{}
	for part := range strings.SplitSeq(accept, ",") {
		name, params, _ := strings.Cut(part, ";")
		weights[strings.ToLower(strings.TrimSpace(name))] = weight(params)
	}
	of := func(name string) float64 {
		if q, ok := weights[name]; ok {
			return q
		}
		return weights["*"]
	}
	var best contentCoding
	at := 0.0
	for _, c := range codings() {
		if q := of(c.name); q > at {
			best, at = c, q
		}
	}
	if q, ok := weights["identity"]; ok && q > at {
		return contentCoding{}
	}
	return best
}

// weight reads the parameter q; what cannot be read weighs nothing.
func weight(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		name, v, _ := strings.Cut(p, "=")
		if strings.EqualFold(strings.TrimSpace(name), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err != nil || cmp.Compare(q, 0) < 0 || q > 1 {
				return 0
			}
			return q
		}
	}
	return 1
}
