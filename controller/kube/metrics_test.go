package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// samples are the series of a registry whose names begin with prefix, sorted.
func samples(t *testing.T, r prometheus.Gatherer, prefix string) string {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), prefix) {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			v := m.GetCounter().GetValue()
			if h := m.GetHistogram(); h != nil {
				v = float64(h.GetSampleCount())
			}
			out = append(out, fmt.Sprintf("%s{%s} %v", strings.TrimPrefix(f.GetName(), prefix), strings.Join(labels, ","), v))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestPilotMetrics: what the API server says and what is made of it is counted in
// the series of Istio's control plane, which its dashboards show.
//
//ambit:feature controller-pilot-metrics
func TestPilotMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	m := newMetrics(r, func() int { return 0 })
	d := newDirtySet()
	r.MustRegister(eventCounts{d})
	d.events[kindPod][added].Add(3)
	d.events[kindPod][updated].Add(2)
	d.events[kindNode][unchanged].Add(7)
	d.events[kindService][deleted].Add(1)
	d.events[kindPolicy][updated].Add(4)
	d.events[kindWorkloadEntry][added].Add(1)
	m.triggered(map[key]struct{}{{kindPod, "ns", "a"}: {}, {kindSlice, "ns", "b"}: {}, {kindPolicy, "ns", "c"}: {}})
	m.triggered(map[key]struct{}{{kindService, "ns", "a"}: {}})
	m.observe(1, 0, 0)
	const want = `debounce_time{} 0
inbound_updates{type=config} 4
inbound_updates{type=eds} 6
inbound_updates{type=svc} 1
k8s_cfg_events{event=add,type=WorkloadEntry} 1
k8s_cfg_events{event=update,type=AuthorizationPolicy} 4
k8s_reg_events{event=add,type=Pod} 3
k8s_reg_events{event=delete,type=Service} 1
k8s_reg_events{event=update,type=Pod} 2
k8s_reg_events{event=updatesame,type=Node} 7
push_triggers{type=config} 1
push_triggers{type=endpoint} 1
push_triggers{type=service} 1
pushcontext_init_seconds{} 1
services{} 0`
	if got := samples(t, r, "pilot_"); got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
}

func TestDirtySetWaits(t *testing.T) {
	d := newDirtySet()
	if d.waiting() != 0 {
		t.Error("waits with nothing in it")
	}
	d.add(key{kindPod, "ns", "a"})
	first := d.since
	d.add(key{kindPod, "ns", "b"})
	if d.since != first || d.waiting() <= 0 {
		t.Error("it is the first that counts")
	}
	if len(d.drain()) != 2 || d.waiting() != 0 {
		t.Error("waits after all was taken")
	}
}
