package dns

import (
	"slices"
	"testing"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// TestRareTypes: a pod that asks for every type there is makes a bounded number
// of series, and loses no count.
//
//ambit:feature dns-metrics
func TestRareTypes(t *testing.T) {
	r := prometheus.NewRegistry()
	m := NewMetrics(r)
	const all = 1 << 16
	for kind := range all {
		q := &question{}
		q.msg.SetQuestion("x.", uint16(kind))
		m.of(q, "udp", self()).requests.Inc()
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "istio_dns_requests_total" })
	if i < 0 {
		t.Fatal("nothing is counted")
	}
	got := map[string]float64{}
	sum := 0.0
	for _, s := range families[i].Metric {
		for _, l := range s.Label {
			if l.GetName() == "request_query_type" {
				got[l.GetValue()] = s.Counter.GetValue()
			}
		}
		sum += s.Counter.GetValue()
	}
	if len(families[i].Metric) != len(got) || len(got) > 20 || sum != all {
		t.Errorf("%d series of %d types count %v of %d questions: %v", len(families[i].Metric), len(got), sum, all, got)
	}
	for _, kind := range []uint16{wire.TypeA, wire.TypeAAAA, wire.TypePTR, wire.TypeSRV, wire.TypeTXT, wire.TypeMX, wire.TypeCNAME, wire.TypeNS, wire.TypeSOA,
		wire.TypeHTTPS, wire.TypeSVCB, wire.TypeANY, wire.TypeAXFR, wire.TypeIXFR} {
		q := &question{}
		q.msg.SetQuestion("x.", kind)
		if got[q.kind()] != 1 {
			t.Errorf("%s is counted %v times", q.kind(), got[q.kind()])
		}
	}
}
