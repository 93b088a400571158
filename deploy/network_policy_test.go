package deploy

import (
	"os"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// TestMetricsPolicy: the policies are for the pods that have metrics, close their
// port to all but those who say they read it, and nothing else that is needed.
//
//ambit:feature security-metrics
func TestMetricsPolicy(t *testing.T) {
	b, err := os.ReadFile("network-policy/network-policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// What everybody may reach, by the pods' app label; the pods say themselves
	// where their metrics are.
	open := map[string][]int{"ambit-controller": {15012}, "ztunnel": nil}
	pods := templates(t)
	for doc := range strings.SplitSeq(string(b), "\n---\n") {
		var p networkingv1.NetworkPolicy
		if err := yaml.UnmarshalStrict([]byte(doc), &p); err != nil {
			t.Fatal(err)
		}
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			t.Fatal(err)
		}
		app := p.Spec.PodSelector.MatchLabels["app"]
		want, known := open[app]
		delete(open, app)
		selected := 0
		for _, pod := range pods {
			if selector.Matches(labels.Set(pod.Labels)) {
				selected++
				metrics := 0
				for _, rule := range p.Spec.Ingress {
					for _, port := range rule.Ports {
						n := port.Port.IntValue()
						readers := len(rule.From) == 1 && rule.From[0].NamespaceSelector.MatchLabels["ambitmesh.io/reads-metrics"] == "true"
						switch {
						case len(rule.From) == 0 && len(want) > 0 && n == want[0]:
							want = want[1:]
						case port.Port.String() == pod.Annotations["prometheus.io/port"] && readers:
							metrics++
						case app == "ztunnel" && n == 15008 && readers: // the metrics through the mesh
						default:
							t.Errorf("%s: port %d from %+v", p.Name, n, rule.From)
						}
					}
				}
				if metrics != 1 {
					t.Errorf("%s: the metrics of %s are for nobody", p.Name, app)
				}
			}
		}
		if !known || selected != 1 || len(want) > 0 || len(p.Spec.PolicyTypes) != 1 || p.Spec.PolicyTypes[0] != networkingv1.PolicyTypeIngress {
			t.Errorf("%s: selects %d pods, closes %v: %+v", p.Name, selected, want, p.Spec)
		}
	}
	if len(open) > 0 {
		t.Errorf("no policy for %v", open)
	}
	if rendered(t, "network-policy")["NetworkPolicy/ambit-system/ambit-ztunnel.spec.podSelector.matchLabels.app"] != "ztunnel" {
		t.Error("the kustomization does not give the policies")
	}
}
