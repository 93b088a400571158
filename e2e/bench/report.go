package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
)

// report is what a run has found; it is written as JSON as it stands.
type report struct {
	Machine machine  `json:"machine"`
	Scale   scale    `json:"scale"`
	Noise   noise    `json:"noise"`
	Rows    []*row   `json:"rows"`
	Skipped []skip   `json:"skipped"`
	Took    float64  `json:"tookSeconds"`
	Notes   []string `json:"notes,omitempty"`
}

type machine struct {
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	Kernel   string `json:"kernel"`
	Go       string `json:"go"`
	Revision string `json:"revision"`
	Time     string `json:"time"`
}

// skip is a row of the budget that this bench cannot measure.
type skip struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// row is one piece of work; its metrics were measured together.
type row struct {
	What    string    `json:"what"`
	Metrics []*metric `json:"metrics"`
}

// metric is one figure of a row, for each variant, and how it is judged.
type metric struct {
	Name    string            `json:"name"`
	Unit    string            `json:"unit"`
	Values  map[string]spread `json:"values"`
	Ratio   *spread           `json:"ratio,omitempty"`        // per round, Over / Under
	Other   *spread           `json:"ratioToOther,omitempty"` // per round, Ambit / the other ztunnel
	Over    string            `json:"over,omitempty"`         // variant; alone: its value is judged
	Under   string            `json:"under,omitempty"`        // variant
	Beneath string            `json:"beneath,omitempty"`      // what Under is called, when it is more than the variant
	Limit   float64           `json:"limit,omitempty"`
	Least   bool              `json:"least,omitempty"` // Limit is a lower one
	Verdict string            `json:"verdict,omitempty"`
	// PerProcess is the CPU of each process in the metric's unit, by variant.
	PerProcess map[string]map[string]spread `json:"perProcess,omitempty"`

	offset  float64 // added to Under
	samples map[string][]float64
	process map[string]map[string][]float64
}

func (rep *report) row(what string) *row {
	r := &row{What: what}
	rep.Rows = append(rep.Rows, r)
	return r
}

func (rep *report) skip(what, why string) { rep.Skipped = append(rep.Skipped, skip{what, why}) }

func (r *row) metric(name, unit string) *metric {
	m := &metric{Name: name, Unit: unit, samples: map[string][]float64{}, process: map[string]map[string][]float64{}}
	r.Metrics = append(r.Metrics, m)
	return m
}

func (r *row) find(name string) *metric {
	i := slices.IndexFunc(r.Metrics, func(m *metric) bool { return m.Name == name })
	return r.Metrics[i]
}

func (r *row) add(name, variant string, v float64) {
	m := r.find(name)
	m.samples[variant] = append(m.samples[variant], v)
}

func (r *row) process(name, variant, process string, v float64) {
	m := r.find(name)
	if m.process[variant] == nil {
		m.process[variant] = map[string][]float64{}
	}
	m.process[variant][process] = append(m.process[variant][process], v)
}

func (r *row) median(name, variant string) float64 {
	return spreadOf(r.find(name).samples[variant]).Median
}

// ratio judges over by under plus offset, both of the same round.
func (m *metric) ratio(over, under string, offset float64) *metric {
	m.Over, m.Under, m.offset = over, under, offset
	return m
}

// value judges what a variant has by itself.
func (m *metric) value(of string) *metric { m.Over = of; return m }

func (m *metric) as(name string) *metric        { m.Beneath = name; return m }
func (m *metric) atMost(limit float64) *metric  { m.Limit = limit; return m }
func (m *metric) atLeast(limit float64) *metric { m.Limit, m.Least = limit, true; return m }

// finish turns samples into spreads and verdicts.
func (rep *report) finish() {
	for _, r := range rep.Rows {
		for _, m := range r.Metrics {
			m.Values = map[string]spread{}
			for v, s := range m.samples {
				m.Values[v] = spreadOf(s)
			}
			for v, procs := range m.process {
				if m.PerProcess == nil {
					m.PerProcess = map[string]map[string]spread{}
				}
				m.PerProcess[v] = map[string]spread{}
				for name, s := range procs {
					m.PerProcess[v][name] = spreadOf(s)
				}
			}
			if o := spreadOf(ratios(m.samples[ambit], m.samples[otherOne], 0)); len(o.Samples) > 0 {
				m.Other = &o
			}
			m.judge()
		}
	}
}

func (m *metric) judge() {
	if m.Over == "" {
		return
	}
	judged := m.Values[m.Over].Median
	if m.Under != "" {
		s := spreadOf(ratios(m.samples[m.Over], m.samples[m.Under], m.offset))
		if len(s.Samples) == 0 {
			return
		}
		m.Ratio, judged = &s, s.Median
	}
	switch {
	case m.Limit == 0:
	case m.Least && judged >= m.Limit, !m.Least && judged <= m.Limit:
		m.Verdict = "holds"
	default:
		m.Verdict = "misses"
	}
}

// doubt takes back what a noisy machine cannot show. What others do makes
// rates lower and waiting longer, so an absolute bound that holds does hold;
// CPU and memory are the process's own.
func (rep *report) doubt() {
	for _, r := range rep.Rows {
		for _, m := range r.Metrics {
			timed := slices.Contains([]string{"Gbit/s", "1/s", "µs", "ms", "s"}, m.Unit)
			if timed && m.Verdict != "" && (m.Under != "" || m.Verdict != "holds") {
				m.Verdict = "too noisy"
			}
		}
	}
}

// baseline is the widest spread of the rates without any mesh.
func (rep *report) baseline() float64 {
	widest := 0.0
	for _, r := range rep.Rows {
		for _, m := range r.Metrics {
			if s, ok := m.Values[noMesh]; ok && m.Name != "p99" && s.Median > 0 {
				widest = max(widest, (s.Q3-s.Q1)/s.Median)
			}
		}
	}
	return widest
}

// table is the report for people, in Markdown.
func (rep *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; %d CPUs; Linux %s; %s; Ambit %s; %s.\n", rep.Machine.CPU, rep.Machine.CPUs, rep.Machine.Kernel, rep.Machine.Go, rep.Machine.Revision, rep.Machine.Time)
	fmt.Fprintf(&b, "%d rounds, medians [quartiles]; %.0f s in all; load %s before, %s after.\n", rep.Scale.Rounds, rep.Took, rep.Noise.LoadBefore, rep.Noise.LoadAfter)
	fmt.Fprintf(&b, "Noise: %s\n\n", rep.Noise.Conclusion)
	b.WriteString("| work | figure | reference | Ambit | ratio | floor | |\n|---|---|---|---|---|---|---|\n")
	for _, r := range rep.Rows {
		for _, m := range r.Metrics {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", r.What, m.title(), m.others(), m.ours(), m.ratioText(), m.limitText(), m.Verdict)
		}
	}
	for _, n := range rep.Notes {
		fmt.Fprintf(&b, "\n%s.\n", n)
	}
	if len(rep.Skipped) > 0 {
		b.WriteString("\nNot measured:\n\n")
		for _, s := range rep.Skipped {
			fmt.Fprintf(&b, "* %s: %s\n", s.What, s.Why)
		}
	}
	return b.String()
}

func (m *metric) title() string {
	if m.Name == m.Unit {
		return m.Name
	}
	return m.Name + ", " + m.Unit
}

func (m *metric) others() string {
	var out []string
	for _, v := range []string{noMesh, loopback, spliced, copied, iptables, peace, otherOne} {
		if s, ok := m.Values[v]; ok {
			out = append(out, v+" "+number(s.Median))
		}
	}
	return strings.Join(out, ", ")
}

func (m *metric) ours() string {
	for _, v := range []string{ambit, "here"} {
		if s, ok := m.Values[v]; ok {
			if len(s.Samples) == 1 {
				return number(s.Median)
			}
			return fmt.Sprintf("%s [%s–%s]", number(s.Median), number(s.Q1), number(s.Q3))
		}
	}
	return ""
}

func (m *metric) ratioText() string {
	under := m.Under
	if m.Beneath != "" {
		under = m.Beneath
	}
	var out []string
	for _, r := range []struct {
		of   *spread
		what string
	}{{m.Ratio, under}, {m.Other, otherOne}} {
		if r.of != nil {
			out = append(out, fmt.Sprintf("%s [%s–%s] × %s", number(r.of.Median), number(r.of.Q1), number(r.of.Q3), r.what))
		}
	}
	return strings.Join(out, ", ")
}

func (m *metric) limitText() string {
	switch {
	case m.Limit == 0:
		return "measure"
	case m.Least:
		return "≥ " + number(m.Limit)
	}
	return "≤ " + number(m.Limit)
}

// number has about three digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.4f", v)
}

func (rep *report) write(path string) error {
	b, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
