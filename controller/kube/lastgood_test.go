package kube

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// TestLastGood walks one policy through versions that can and cannot be
// honoured.
func TestLastGood(t *testing.T) {
	tr := newBench(t)
	var verdict policyVerdict
	tr.verdict = func(v policyVerdict) { verdict = v }
	policy := func(uid, app string, blocks ...string) *securityv1.AuthorizationPolicy {
		return &securityv1.AuthorizationPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "p", UID: types.UID(uid)},
			Spec: v1beta1.AuthorizationPolicy{
				Selector: &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": app}},
				Rules:    []*v1beta1.Rule{{From: []*v1beta1.Rule_From{{Source: &v1beta1.Source{IpBlocks: blocks}}}}},
			},
		}
	}
	tr.put(kindPod, pod("prod", "x", map[string]string{"app": "x"}, 1))
	tr.put(kindPod, pod("prod", "y", map[string]string{"app": "y"}, 2))
	gone := policy("2", "x")
	for _, step := range []struct {
		what    string
		policy  *securityv1.AuthorizationPolicy // nil: deleted
		rules   int                             // -1: no policy
		on      string                          // the pod that names it
		message string
	}{
		{"bad from the start allows nothing", policy("1", "x", "bad"), 0, "x", `spec.rules[0].from[0].source.ipBlocks[0]: "bad": not an IP or CIDR; until this is mended, a rule with such a field allows nothing`},
		{"mended", policy("1", "x", "10.0.0.1"), 1, "x", "attached to ztunnel"},
		{"broken again, and moved", policy("1", "y", "bad"), 1, "x", "the last version without errors stays in force"},
		{"broken otherwise", policy("1", "y", "worse"), 1, "x", `"worse": not an IP or CIDR; the last version`},
		{"mended elsewhere", policy("1", "y", "10.0.0.2"), 1, "y", "attached to ztunnel"},
		{"another object of that name inherits nothing", policy("2", "x", "bad"), 0, "x", "not an IP or CIDR"},
		{"deleted", nil, -1, "", ""},
	} {
		if step.policy != nil {
			tr.put(kindPolicy, step.policy)
		} else {
			tr.del(kindPolicy, gone)
		}
		tr.batch(tr.dirty.drain())
		s := tr.store.Load()
		rules := -1
		if p := s.Policy("prod/p"); p != nil {
			rules = len(p.Rules)
		}
		if rules != step.rules {
			t.Errorf("%s: %d rules, want %d", step.what, rules, step.rules)
		}
		for _, name := range []string{"x", "y"} {
			if names := namesPolicy(s, name); names != (name == step.on) {
				t.Errorf("%s: pod %s names the policy: %t", step.what, name, names)
			}
		}
		message := ""
		if verdict.condition != nil {
			message = verdict.condition.Message
		}
		if !strings.Contains(message, step.message) || strings.Contains(message, "stays in force") != strings.Contains(step.message, "the last version") {
			t.Errorf("%s: status %q, want %q", step.what, message, step.message)
		}
	}
	if len(tr.problems) != 0 || len(tr.good.policies) != 0 || len(tr.naming) != 0 {
		t.Errorf("left behind: %v, %v, %v", tr.problems, tr.good.policies, tr.naming)
	}
}

func namesPolicy(s *mesh.Snapshot, pod string) bool {
	w := s.Workload("Kubernetes//Pod/prod/" + pod)
	return w != nil && len(w.Policies) == 1 && w.Policies[0] == "prod/p"
}
