package deploy

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/ambitmesh/ambit/controller/diagnose"
)

// kind of object in a kustomization, as the API server groups them.
type kind struct{ group, kind, name, bundle string }

func kinds(t *testing.T, dir string) (out []kind) {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range m.Resources() {
		out = append(out, kind{r.GetGvk().Group, r.GetKind(), r.GetName(), r.GetAnnotations()["gateway.networking.k8s.io/bundle-version"]})
	}
	return out
}

// TestPrecheckKnowsTheManifests: what ambit precheck asks for is what the
// manifests have: definitions and their version, rights to install them, and
// what differs between platforms.
func TestPrecheckKnowsTheManifests(t *testing.T) {
	var definitions []string
	rights := map[string]bool{}
	for _, dir := range []string{"crds", "ambit"} {
		for _, k := range kinds(t, dir) {
			plural := strings.ToLower(k.kind) + "s"
			if p, ok := strings.CutSuffix(plural, "ys"); ok { // policies
				plural = p + "ies"
			}
			rights[k.group+" "+plural] = true
			if k.kind != "CustomResourceDefinition" {
				continue
			}
			definitions = append(definitions, k.name)
			if strings.HasSuffix(k.name, ".gateway.networking.k8s.io") && k.bundle != diagnose.GatewayBundle {
				t.Errorf("%s is of %s, precheck thinks %s", k.name, k.bundle, diagnose.GatewayBundle)
			}
		}
	}
	slices.Sort(definitions)
	if want := slices.Sorted(slices.Values(diagnose.Wanted())); !slices.Equal(definitions, want) {
		t.Errorf("definitions %v, precheck wants %v", definitions, want)
	}
	asked := map[string]bool{}
	for _, r := range diagnose.InstallRights("ambit-system") {
		asked[r.Group+" "+r.Resource] = true
	}
	if !maps.Equal(asked, rights) {
		t.Errorf("the manifests have %v, precheck asks for %v", slices.Sorted(maps.Keys(rights)), slices.Sorted(maps.Keys(asked)))
	}

	overlays := map[string]bool{}
	for _, p := range diagnose.Platforms() {
		if p.Overlay == "" {
			continue
		}
		overlays[p.Overlay] = true
		got := diagnose.Platform{Agent: map[string]string{}}
		for _, c := range changes[p.Overlay] {
			if v, ok := strings.CutPrefix(c, variables+"["); ok {
				name, value, _ := strings.Cut(v, "].value=")
				got.Agent[name] = value
			}
			got.BPFFS = got.BPFFS || strings.Contains(c, "--mount-bpffs")
			got.Quota = got.Quota || strings.Contains(c, "ResourceQuota/")
		}
		if !maps.Equal(got.Agent, p.Agent) || got.BPFFS != p.BPFFS || got.Quota != p.Quota {
			t.Errorf("%s: the overlay has %+v, precheck thinks %+v", filepath.Join("overlays", p.Overlay), got, p)
		}
	}
	for o := range changes {
		if !overlays[o] {
			t.Errorf("precheck recognizes no platform for overlays/%s", o)
		}
	}
}
