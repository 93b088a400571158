package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// soakReport is what a soak has found; it is written as JSON as it stands.
type soakReport struct {
	Machine  machine            `json:"machine"`
	Total    time.Duration      `json:"totalNanoseconds"`
	Counts   map[string]counted `json:"counts"`
	Series   []*series          `json:"series"`
	Left     []string           `json:"left"`     // after the last pod had left
	Profiles []string           `json:"profiles"` // of what leaks
}

// wrong lists what makes the soak fail.
func (r *soakReport) wrong() []string {
	var out []string
	for _, name := range sortedKeys(r.Counts) {
		if c := r.Counts[name]; c.Failed > 0 {
			out = append(out, fmt.Sprintf("%s: %d of %d failed, first: %s", name, c.Failed, c.OK+c.Failed, c.First))
		} else if c.OK == 0 {
			out = append(out, name+": none was made")
		}
	}
	for _, s := range r.Series {
		if s.Verdict.Leaks {
			out = append(out, fmt.Sprintf("%s of %s grow: %s", s.What, s.Owner, slopes(s)))
		}
	}
	for _, l := range r.Left {
		out = append(out, "left after the last pod: "+l)
	}
	return out
}

// unjudged lists what a soak was too short to say anything about.
func (r *soakReport) unjudged() []string {
	var out []string
	for _, s := range r.Series {
		if s.Gain > 0 && !s.Verdict.Judged {
			out = append(out, fmt.Sprintf("%s of %s: too few samples to judge", s.What, s.Owner))
		}
	}
	return out
}

func slopes(s *series) string {
	return fmt.Sprintf("last quarter %+.1f/h, surely above %+.1f/h, allowed %.1f/h", s.Verdict.Quarter.Slope, s.Verdict.Quarter.Low, s.Verdict.Limit)
}

// table is the report for people, in Markdown.
func (r *soakReport) table() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "Soak of %s: %s; %d CPUs; Linux %s; %s; Ambit %s; %s.\n\n", r.Total.Round(time.Second), m.CPU, m.CPUs, m.Kernel, m.Go, m.Revision, m.Time)
	b.WriteString("| work | done | failed |\n|---|---|---|\n")
	for _, name := range sortedKeys(r.Counts) {
		fmt.Fprintf(&b, "| %s | %d | %d |\n", name, r.Counts[name].OK, r.Counts[name].Failed)
	}
	b.WriteString("\n| of | what | first | last | slope of the last quarter, per hour | of all after the first | allowed | |\n|---|---|---|---|---|---|---|---|\n")
	for _, s := range r.Series {
		v := s.Verdict
		verdict, allowed := "holds", number(v.Limit)
		switch {
		case s.Gain == 0:
			verdict, allowed = "", "–"
		case !v.Judged:
			verdict = "too short"
		case v.Leaks:
			verdict = "GROWS"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", s.Owner, s.What, number(v.First), number(v.Last), line(v.Quarter.Slope, v.Quarter.Low, v.Quarter.High), line(v.Rest.Slope, v.Rest.Low, v.Rest.High), allowed, verdict)
	}
	return b.String()
}

// line is a slope with what it surely lies between.
func line(slope, low, high float64) string {
	if slope == 0 && low == 0 && high == 0 {
		return "0"
	}
	return fmt.Sprintf("%+.1f [%+.1f – %+.1f]", slope, low, high)
}

func (r *soakReport) write(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
