package main

import (
	"slices"
	"testing"
)

// What limits the mesh on a node or for a pod is a note, once for all who have
// it; nothing is unhealthy for it.
//
//ambit:feature cni-findings cni-limits
func TestJudgeFindings(t *testing.T) {
	f := sound(pod("shop", "one", "node1", redirected), pod("shop", "two", "node1", redirected))
	for i := range f.Pods {
		f.Pods[i].Annotations[annotationLimits] = "inbound capture was inspected, not tried"
	}
	for i := range f.Components {
		if f.Components[i].Part == partAgent {
			f.Components[i].Findings = findings(`[{"finding":"socket-lb","text":"services are balanced in sockets"}]`)
		}
	}
	r := judge(f)
	if !r.Healthy {
		t.Errorf("not healthy: %q", r.Problems)
	}
	for _, want := range []string{
		"socket-lb on node1, node2: services are balanced in sockets",
		"limits of shop/one, shop/two: inbound capture was inspected, not tried",
	} {
		if !slices.Contains(r.Notes, want) {
			t.Errorf("notes %q lack %q", r.Notes, want)
		}
	}
	if got := findings("[{]"); len(got) != 1 || got[0].Text != "[{]" {
		t.Errorf("what another version wrote: %+v", got)
	}
	if got := some([]string{"a", "b", "c", "d", "e"}); got != "a, b, c and 2 more" {
		t.Errorf("%q", got)
	}
}
