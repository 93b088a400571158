package deploy

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestTaint: the installation with a startup taint is the plain one, a switch,
// a toleration and a right.
//
//ambit:feature cni-taint
func TestTaint(t *testing.T) {
	base, with := rendered(t, "ambit"), rendered(t, "taint")
	var added []string
	for path, v := range with {
		if was, ok := base[path]; !ok || was != v {
			if !strings.Contains(path, "/ambit-controller-untaint.") {
				added = append(added, path+"="+v)
			}
		}
	}
	slices.Sort(added)
	const pod = "Deployment/ambit-system/ambit-controller.spec.template.spec"
	want := []string{
		pod + ".containers[controller].env[PILOT_ENABLE_NODE_UNTAINT_CONTROLLERS].value=true",
		pod + ".tolerations[0].key=cni.istio.io/not-ready",
		pod + ".tolerations[0].operator=Exists",
	}
	if !slices.Equal(added, want) {
		t.Errorf("added %q, want %q", added, want)
	}
	for path := range maps.Keys(base) {
		if _, ok := with[path]; !ok {
			t.Errorf("%s is missing", path)
		}
	}
	const role = "ClusterRole//ambit-controller-untaint.rules[0]"
	if with[role+".resources[0]"] != "nodes" || with[role+".verbs[0]"] != "get" || with[role+".verbs[1]"] != "patch" || with[role+".verbs[2]"] != "" {
		t.Errorf("the right is %s of %s", with[role+".verbs[1]"], with[role+".resources[0]"])
	}
}
