package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// documents returns every YAML document of the kustomization by kind.
func documents(t *testing.T) map[string][][]byte {
	t.Helper()
	var k struct {
		Resources []string `json:"resources"`
		Images    []struct{ Name, NewName, NewTag string }
	}
	b, err := os.ReadFile("ambit/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &k); err != nil {
		t.Fatal(err)
	}
	if len(k.Images) != 1 || k.Images[0].Name != "ambit" || k.Images[0].NewTag == "" {
		t.Errorf("the image should be set in one place: %+v", k.Images)
	}
	files, err := filepath.Glob("ambit/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string][][]byte{}
	for _, f := range files {
		name := filepath.Base(f)
		if name == "kustomization.yaml" {
			continue
		}
		if !slices.Contains(k.Resources, name) {
			t.Errorf("%s is not in the kustomization", f)
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(b), "\n---\n") {
			var m metav1.PartialObjectMetadata
			if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			// By this, and for cluster-wide objects by the name too, ambit
			// uninstall knows what is Ambit's.
			if m.Labels["app.kubernetes.io/part-of"] != "ambit" || m.Namespace == "" && !strings.HasPrefix(m.Name, "ambit-") {
				t.Errorf("%s: ambit uninstall would leave %s %s behind", f, m.Kind, m.Name)
			}
			docs[m.Kind] = append(docs[m.Kind], []byte(doc))
		}
	}
	return docs
}

// templates returns the pod templates by the name of what makes them.
func templates(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	docs, out := documents(t), map[string]corev1.PodTemplateSpec{}
	for _, doc := range docs["Deployment"] {
		var d appsv1.Deployment
		if err := yaml.UnmarshalStrict(doc, &d); err != nil {
			t.Fatal(err)
		}
		out[d.Name] = d.Spec.Template
	}
	for _, doc := range docs["DaemonSet"] {
		var d appsv1.DaemonSet
		if err := yaml.UnmarshalStrict(doc, &d); err != nil {
			t.Fatal(err)
		}
		out[d.Name] = d.Spec.Template
	}
	return out
}

func TestOurPodsStayOutOfTheMesh(t *testing.T) {
	ts := templates(t)
	for name, tpl := range ts {
		if tpl.Labels["istio.io/dataplane-mode"] != "none" {
			t.Errorf("%s: its pods would be captured by themselves", name)
		}
		for _, c := range tpl.Spec.Containers {
			if c.Image != "ambit" {
				t.Errorf("%s: image %q, want the one the kustomization sets", name, c.Image)
			}
			if c.SecurityContext == nil || c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem {
				t.Errorf("%s: the root file system should be read-only", name)
			}
			for _, p := range c.Ports {
				if p.HostPort != 0 {
					t.Errorf("%s: port %d is taken from the node", name, p.HostPort)
				}
			}
		}
	}
	if len(ts) != 3 {
		t.Errorf("%d workloads, want controller, agent and ztunnel", len(ts))
	}
}

// TestZtunnelCanSurge: two of them on one node must not collide, and none may
// go before its successor is there.
func TestZtunnelCanSurge(t *testing.T) {
	for _, doc := range documents(t)["DaemonSet"] {
		var d appsv1.DaemonSet
		if err := yaml.Unmarshal(doc, &d); err != nil {
			t.Fatal(err)
		}
		if d.Name != "ztunnel" {
			continue
		}
		u := d.Spec.UpdateStrategy.RollingUpdate
		if u.MaxSurge.IntValue() != 1 || u.MaxUnavailable.IntValue() != 0 {
			t.Errorf("surge %s, unavailable %s", u.MaxSurge, u.MaxUnavailable)
		}
		spec := d.Spec.Template.Spec
		if spec.HostNetwork || len(spec.Containers[0].Ports) != 0 {
			t.Error("ztunnel must be on the pod network and declare no ports")
		}
		if *spec.AutomountServiceAccountToken {
			t.Error("ztunnel has no business with the API server")
		}
		if c := spec.Containers[0].SecurityContext; *c.Privileged || len(c.Capabilities.Add) != 3 || c.Capabilities.Drop[0] != "ALL" {
			t.Errorf("security context %+v", c)
		}
		return
	}
	t.Error("no DaemonSet ztunnel")
}

func TestControllerIsUnprivileged(t *testing.T) {
	spec := templates(t)["ambit-controller"].Spec
	if spec.SecurityContext == nil || !*spec.SecurityContext.RunAsNonRoot || len(spec.Volumes) != 0 {
		t.Error("the controller runs as nobody in particular and mounts nothing")
	}
}

// TestEveryRuleHasAReason reads the text: a rule of a role is preceded by a
// comment, and no rule is a wildcard.
//
//ambit:feature security-rights
func TestEveryRuleHasAReason(t *testing.T) {
	files, err := filepath.Glob("ambit/*-rbac.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		before := ""
		for i, line := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(line, "  - apiGroups:") && !strings.HasPrefix(before, "  # ") {
				t.Errorf("%s:%d: a rule without a reason", f, i+1)
			}
			before = line
		}
	}
	docs := documents(t)
	for _, doc := range append(docs["ClusterRole"], docs["Role"]...) {
		var r rbacv1.ClusterRole
		if err := yaml.Unmarshal(doc, &r); err != nil {
			t.Fatal(err)
		}
		for _, rule := range r.Rules {
			if all := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs); slices.Contains(all, "*") {
				t.Errorf("%s: wildcard in %v", r.Name, rule)
			}
			if slices.Contains(rule.Resources, "secrets") && len(rule.ResourceNames) == 0 && !slices.Equal(rule.Verbs, []string{"create"}) {
				t.Errorf("%s: may %v any secret", r.Name, rule.Verbs)
			}
		}
	}
	for _, doc := range docs["ClusterRole"] {
		if strings.Contains(string(doc), "secrets") {
			t.Error("nothing of ours reads secrets cluster-wide")
		}
	}
}
