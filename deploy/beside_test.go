package deploy

import (
	"slices"
	"testing"
)

// TestBesideIstio: what keeps the two control planes apart is the same for the
// agent and the controller, and is all that the overlay changes.
//
//ambit:feature beside-installed
func TestBesideIstio(t *testing.T) {
	const (
		controller = "Deployment/ambit-system/ambit-controller.spec.template.spec.containers[controller].env"
		both       = `- podSelector: {matchLabels: {istio.io/dataplane-mode: ambient, istio.io/rev: ambit}}
- podSelector: {matchExpressions: [{key: istio.io/dataplane-mode, operator: NotIn, values: [none]}]}
  namespaceSelector: {matchLabels: {istio.io/dataplane-mode: ambient, istio.io/rev: ambit}}`
	)
	want := map[string]string{
		controller + "[AMBIT_BESIDE_ISTIO].value":          "true",
		controller + "[REVISION].value":                    "ambit",
		controller + "[AMBIENT_ENABLEMENT_SELECTOR].value": both,
		variables + "[AMBIENT_ENABLEMENT_SELECTOR].value":  both,
	}
	base, over := rendered(t, "ambit"), rendered(t, "beside-istio")
	var more []string
	for path, v := range over {
		if base[path] != v && want[path] != v {
			more = append(more, path+"="+v)
		}
	}
	slices.Sort(more)
	for _, m := range more {
		t.Errorf("nobody asked for: %s", m)
	}
	for path, v := range want {
		if over[path] != v {
			t.Errorf("%s is %q, want %q", path, over[path], v)
		}
	}
	for path := range base {
		if _, ok := over[path]; !ok {
			t.Errorf("%s is gone", path)
		}
	}
}
