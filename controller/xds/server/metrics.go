package server

import (
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/ambitmesh/ambit/controller/wire"
)

// metrics carry the names of Istio's control plane where one applies, so that
// its dashboards work.
type metrics struct {
	connected *prometheus.GaugeVec
	pushes    *prometheus.CounterVec
	pushTime  *prometheus.HistogramVec
	size      *prometheus.HistogramVec
	converged prometheus.Histogram
	queued    prometheus.Histogram
	rejects   *prometheus.CounterVec
	internal  prometheus.Counter
	refused   prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		connected: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pilot_xds", Help: "Connected xDS clients.",
		}, []string{"type", "version"}),
		pushes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pilot_xds_pushes", Help: "Responses sent to xDS clients by resource type.",
		}, []string{"type"}),
		pushTime: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pilot_xds_push_time", Help: "Seconds to hand one response to the transport.",
			Buckets: []float64{.001, .01, .1, 1, 3, 5, 10, 20, 30},
		}, []string{"type"}),
		size: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pilot_xds_config_size_bytes", Help: "Bytes of resources in one response.",
			Buckets: []float64{1, 10000, 1e6, 4e6, 1e7, 4e7},
		}, []string{"type"}),
		converged: f.NewHistogram(prometheus.HistogramOpts{
			Name: "pilot_proxy_convergence_time", Help: "Seconds from a change of the mesh to a client's acknowledgement of it.",
			Buckets: []float64{.1, .5, 1, 3, 5, 10, 20, 30},
		}),
		queued: f.NewHistogram(prometheus.HistogramOpts{
			Name: "pilot_proxy_queue_time", Help: "Seconds that a change waited before it was sent to a client.",
			Buckets: []float64{.001, .01, .1, .5, 1, 3, 5, 10, 20, 30},
		}),
		rejects: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pilot_total_xds_rejects", Help: "Responses a client answered with a NACK.",
		}, []string{"type"}),
		internal: f.NewCounter(prometheus.CounterOpts{
			Name: "pilot_total_xds_internal_errors", Help: "Resources that could not be encoded.",
		}),
		refused: f.NewCounter(prometheus.CounterOpts{
			Name: "ambit_xds_clients_refused_total", Help: "xDS streams refused for want of a valid token.",
		}),
	}
}

// kindOf is the type and version a client gives itself: the first part of its
// node id, and ISTIO_VERSION of its metadata. They are only counted, and what
// does not look like one of the few there are is "unknown".
func kindOf(n *core.Node) (kind, version string) {
	kind, version = "unknown", "unknown"
	switch k, _, _ := strings.Cut(n.GetId(), "~"); k {
	case "ztunnel", "waypoint", "sidecar", "router", "agentgateway":
		kind = k
	}
	const of = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-+_"
	if v := n.GetMetadata().GetFields()["ISTIO_VERSION"].GetStringValue(); v != "" && len(v) <= 64 && strings.Trim(v, of) == "" {
		version = v
	}
	return kind, version
}

func (m *metrics) sent(u update, took time.Duration) {
	t := metricType(u.typeURL)
	size := 0
	for _, r := range u.resources {
		size += len(r.GetResource().GetValue())
	}
	m.pushes.WithLabelValues(t).Inc()
	m.pushTime.WithLabelValues(t).Observe(took.Seconds())
	m.size.WithLabelValues(t).Observe(float64(size))
}

// metricType is Istio's short name of a type.
func metricType(url string) string {
	switch url {
	case wire.TypeAuthorization:
		return "wads"
	case wire.TypeSettings:
		return "settings"
	case wire.TypeTrust:
		return "roots"
	}
	return "wds"
}
