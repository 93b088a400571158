package main

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestPlan: what is done, in which order, and what stops it.
//
//ambit:feature unenrol-uninstall unenrol-node-without-agent
func TestPlan(t *testing.T) {
	ours := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ambit-system", Labels: map[string]string{labelPartOf: partOfAmbit}}}
	healthy := func(change ...func(*installation)) installation {
		in := installation{
			system: "ambit-system", namespace: ours, agentInstalled: true,
			nodes: map[string]bool{"a": true, "b": true}, captured: []string{"shop/web"}, labelled: []string{"shop"},
			objects: []object{{kind: kinds[0], namespace: "ambit-system", name: "ambit-cni-node"}},
		}
		for _, c := range change {
			c(&in)
		}
		return in
	}
	away := func(in *installation) { in.nodes["b"] = false }
	for _, c := range []struct {
		name    string
		in      installation
		opts    uninstallOptions
		refused string // "" goes on
		nodes   string
		skipped string
		says    string
	}{
		{name: "as it should be", in: healthy(), nodes: "a b", says: "pods to let go: shop/web"},
		{name: "the key goes with the namespace", in: healthy(), nodes: "a b", says: "namespace ambit-system, with the CA's key"},
		{name: "nothing there", in: installation{system: "ambit-system"}, refused: "nothing of Ambit"},
		{name: "a namespace of that name that is another's", in: healthy(func(in *installation) { in.namespace = &corev1.Namespace{} }),
			refused: "is it Ambit's?", nodes: "a b"},
		{name: "a node without agent", in: healthy(away), refused: "no node agent is ready on b", nodes: "a"},
		{name: "forced", in: healthy(away), opts: uninstallOptions{force: true}, nodes: "a", skipped: "b", says: "without a ready agent: b"},
		{name: "agents deleted, pods captured", in: healthy(func(in *installation) { in.agentInstalled, in.nodes = false, nil }),
			refused: "1 pod is captured and no node agent"},
		{name: "force does not help them", in: healthy(func(in *installation) { in.agentInstalled, in.nodes = false, nil }),
			opts: uninstallOptions{force: true}, refused: "1 pod is captured and no node agent"},
		{name: "agents deleted, nothing captured", in: healthy(func(in *installation) { in.agentInstalled, in.nodes, in.captured = false, nil, nil })},
		{name: "by Helm", in: healthy(func(in *installation) { in.managedBy = "Helm" }), refused: "helm uninstall", nodes: "a b"},
		{name: "by Helm, nodes only", in: healthy(func(in *installation) { in.managedBy = "Helm" }), opts: uninstallOptions{nodesOnly: true}, nodes: "a b"},
		{name: "somebody's CA key", in: healthy(func(in *installation) { in.foreign = []string{"secrets/cacerts"} }), nodes: "a b",
			says: "namespace ambit-system stays, not all in it is Ambit's: secrets/cacerts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := plan(c.in, c.opts)
			if got := strings.Join(s.refusals, "; "); c.refused == "" && got != "" || !strings.Contains(got, c.refused) {
				t.Errorf("refusals %q, want %q", got, c.refused)
			}
			if got := strings.Join(s.nodes, " "); got != c.nodes {
				t.Errorf("nodes %q, want %q", got, c.nodes)
			}
			if got := strings.Join(s.skipped, " "); got != c.skipped {
				t.Errorf("skipped %q, want %q", got, c.skipped)
			}
			if !strings.Contains(strings.Join(s.lines, "\n"), c.says) {
				t.Errorf("%q is not in\n%s", c.says, strings.Join(s.lines, "\n"))
			}
		})
	}
}

func TestReleased(t *testing.T) {
	leaving := pod("ambit-system", "z", "c", note(annotationReleased, "now"))
	leaving.DeletionTimestamp = &metav1.Time{}
	got := released([]corev1.Pod{
		pod("ambit-system", "x", "b", note(annotationReleased, "now")),
		pod("ambit-system", "w", "a", note(annotationReleased, "now")),
		pod("ambit-system", "y", "d", note(annotationReleased, "an earlier call")),
		pod("ambit-system", "v", "e"),
		leaving,
	}, "now")
	if !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("released %v", got)
	}
}
