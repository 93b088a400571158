package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

const (
	annotationFindings = "ambitmesh.io/node-findings"
	annotationLimits   = "ambitmesh.io/capture-limits"
)

// finding is what an agent says of its whole node.
type finding struct {
	Code string `json:"finding"`
	Text string `json:"text"`
}

// findings reads what an agent wrote on its pod. What cannot be read is shown
// as it is: an agent of another version wrote it.
func findings(text string) []finding {
	if text == "" {
		return nil
	}
	var list []finding
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return []finding{{"unknown", text}}
	}
	return list
}

// nodeNotes makes one note of each finding, with the nodes that have it.
func nodeNotes(cs []component) []string {
	nodes, text := map[string][]string{}, map[string]string{}
	var codes []string
	for _, c := range cs {
		for _, f := range c.Findings {
			if _, ok := nodes[f.Code]; !ok {
				codes = append(codes, f.Code)
			}
			if !slices.Contains(nodes[f.Code], c.Node) {
				nodes[f.Code] = append(nodes[f.Code], c.Node)
			}
			text[f.Code] = cmp.Or(text[f.Code], f.Text)
		}
	}
	slices.Sort(codes)
	var out []string
	for _, code := range codes {
		slices.Sort(nodes[code])
		out = append(out, fmt.Sprintf("%s on %s: %s", code, some(nodes[code]), text[code]))
	}
	return out
}

// podNotes makes one note of each limit that captured pods have.
func podNotes(pods []podReport) []string {
	who := map[string][]string{}
	var limits []string
	for _, p := range pods {
		if p.Limits == "" || p.State != stateCaptured {
			continue
		}
		if _, ok := who[p.Limits]; !ok {
			limits = append(limits, p.Limits)
		}
		who[p.Limits] = append(who[p.Limits], p.Namespace+"/"+p.Pod)
	}
	slices.Sort(limits)
	var out []string
	for _, l := range limits {
		out = append(out, fmt.Sprintf("limits of %s: %s", some(who[l]), l))
	}
	return out
}

// some names the first few.
func some(names []string) string {
	const most = 3
	s := strings.Join(names[:min(most, len(names))], ", ")
	if more := len(names) - most; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}
