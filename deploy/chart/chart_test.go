package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"text/template"

	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

type tree = map[string]any

// text renders one template as Helm does. Helm itself brings several hundred
// packages; the templates keep to a few functions instead, and one that is not
// here does not parse.
func text(t *testing.T, file, namespace string, values tree) string {
	t.Helper()
	functions := template.FuncMap{
		"toYaml": func(v any) (string, error) {
			b, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(b), "\n"), err
		},
		"nindent": func(n int, s string) string {
			pad := "\n" + strings.Repeat(" ", n)
			return pad + strings.ReplaceAll(s, "\n", pad)
		},
		"quote": func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tpl, err := template.New(filepath.Base(file)).Option("missingkey=error").Funcs(functions).Parse(string(b))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tpl.Execute(&out, tree{"Values": values, "Release": tree{"Namespace": namespace}}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// execute renders the objects of the chart.
func execute(t *testing.T, namespace string, values tree) []tree {
	t.Helper()
	files, err := filepath.Glob("templates/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out []tree
	for _, f := range files {
		out = append(out, parse(t, f, text(t, f, namespace, values))...)
	}
	return out
}

func parse(t *testing.T, file, text string) []tree {
	t.Helper()
	var out []tree
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var o tree
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatalf("%s: %v\n%s", file, err, text)
		}
		if len(o) > 0 {
			out = append(out, o)
		}
	}
	return out
}

func defaults(t *testing.T) tree {
	t.Helper()
	var v tree
	b, err := os.ReadFile("values.yaml")
	if err == nil {
		err = yaml.UnmarshalStrict(b, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func name(o tree) string {
	m := o["metadata"].(tree)
	return fmt.Sprint(o["apiVersion"], " ", o["kind"], " ", m["namespace"], "/", m["name"])
}

func index(objects []tree) map[string]tree {
	m := map[string]tree{}
	for _, o := range objects {
		m[name(o)] = o
	}
	return m
}

// kustomized are the objects of a kustomization, as kubectl renders them.
func kustomized(t *testing.T, dir string) map[string]tree {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return index(parse(t, dir, string(text)))
}

// plain is an object as the API server would keep it, as far as the order of
// variables goes: a kustomize patch puts them first, the chart last, and it
// means the same.
func plain(o tree) tree {
	pod, ok := o["spec"].(tree)
	if !ok || pod["template"] == nil {
		return o
	}
	for _, c := range pod["template"].(tree)["spec"].(tree)["containers"].([]any) {
		if env, ok := c.(tree)["env"].([]any); ok {
			slices.SortFunc(env, func(a, b any) int {
				return strings.Compare(fmt.Sprint(a.(tree)["name"]), fmt.Sprint(b.(tree)["name"]))
			})
		}
	}
	return o
}

// same compares what the two ways to install would make.
func same(t *testing.T, kustomization string, v tree) {
	t.Helper()
	want, got := kustomized(t, kustomization), index(execute(t, "ambit-system", v))
	if len(want) < 15 {
		t.Errorf("%s: %d objects only", kustomization, len(want))
	}
	delete(want, "v1 Namespace <nil>/ambit-system") // Helm's
	for n, o := range want {
		if got[n] == nil {
			t.Errorf("%s is in %s only", n, kustomization)
		} else if !reflect.DeepEqual(plain(o), plain(got[n])) {
			a, _ := json.MarshalIndent(o, "", " ")
			b, _ := json.MarshalIndent(got[n], "", " ")
			t.Errorf("%s differs; %s has\n%s\nthe chart\n%s", n, kustomization, a, b)
		}
	}
	for n := range got {
		if want[n] == nil {
			t.Errorf("%s is in the chart only", n)
		}
	}
}

// TestSameObjectsAsTheKustomization: it does not matter by which way Ambit came.
//
//ambit:feature chart-same
func TestSameObjectsAsTheKustomization(t *testing.T) {
	same(t, source, defaults(t))
}

// names are the platforms there are overlays for.
func names(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob(overlays + "/*/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range dirs {
		if b, err := os.ReadFile(d); err != nil {
			t.Fatal(err)
		} else if bytes.Contains(b, []byte("\nkind: Kustomization\n")) { // not a component
			out = append(out, filepath.Base(filepath.Dir(d)))
		}
	}
	return out
}

// TestSameObjectsAsTheOverlays: and neither on platforms that differ.
//
//ambit:feature chart-platform
func TestSameObjectsAsTheOverlays(t *testing.T) {
	for _, platform := range names(t) {
		t.Run(platform, func(t *testing.T) {
			v := defaults(t)
			set(v, "platform", platform)
			if err := valid(t, v); err != nil {
				t.Error(err)
			}
			same(t, filepath.Join(overlays, platform), v)
		})
	}
	t.Run("k3s value by value", func(t *testing.T) {
		v := defaults(t)
		set(v, "cni.binDir", "/var/lib/rancher/k3s/data/cni")
		set(v, "cni.confDir", "/var/lib/rancher/k3s/agent/etc/cni/net.d")
		same(t, filepath.Join(overlays, "k3s"), v)
	})
	t.Run("kind value by value", func(t *testing.T) {
		v := defaults(t)
		set(v, "cni.mountBPFFS", true)
		same(t, filepath.Join(overlays, "kind"), v)
	})
	t.Run("a value wins over the platform", func(t *testing.T) {
		v := defaults(t)
		set(v, "platform", "k3s")
		set(v, "cni.binDir", "/bin") // k3d, before spring 2025
		text, _ := json.Marshal(execute(t, "ambit-system", v))
		if !bytes.Contains(text, []byte(`{"name":"CNI_BIN_DIR","value":"/bin"}`)) || bytes.Contains(text, []byte("k3s/data/cni")) {
			t.Errorf("cni.binDir: %s", text)
		}
	})
}

// valid checks values as Helm does before it renders.
func valid(t *testing.T, v tree) error {
	t.Helper()
	var raw, values any
	b, err := os.ReadFile("values.schema.json")
	if err == nil {
		err = json.Unmarshal(b, &raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The validator of the API server knows no references.
	definitions := raw.(tree)["definitions"].(tree)
	var inline func(any) any
	inline = func(x any) any {
		switch x := x.(type) {
		case tree:
			if ref, ok := x["$ref"].(string); ok {
				return inline(definitions[strings.TrimPrefix(ref, "#/definitions/")])
			}
			out := tree{}
			for k, y := range x {
				if k != "definitions" && k != "$schema" {
					out[k] = inline(y)
				}
			}
			return out
		case []any:
			out := make([]any, len(x))
			for i, y := range x {
				out[i] = inline(y)
			}
			return out
		}
		return x
	}
	var schema spec.Schema
	if b, err = json.Marshal(inline(raw)); err == nil {
		err = json.Unmarshal(b, &schema)
	}
	if err == nil {
		b, err = json.Marshal(v)
	}
	if err == nil {
		err = json.Unmarshal(b, &values)
	}
	if err != nil {
		t.Fatal(err)
	}
	return validate.AgainstSchema(&schema, values, strfmt.Default)
}

// TestBadValuesAreRefused: with the name of the value, before anything is
// rendered.
//
//ambit:feature chart-values
func TestBadValuesAreRefused(t *testing.T) {
	if err := valid(t, defaults(t)); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for _, c := range []struct {
		path string
		to   any
		says string // "": good
	}{
		{"imag", "x", "imag"},
		{"image", "", "image"},
		{"image", "registry.example.com/ambit", "image"}, // would be :latest
		{"image", "registry.example.com:5000/mesh/ambit:v1", ""},
		{"image", "registry.example.com/ambit@sha256:" + strings.Repeat("a", 64), ""},
		{"imagePullPolicy", "Sometimes", "imagePullPolicy"},
		{"imagePullSecrets", []any{"mine"}, "imagePullSecrets[0]"},
		{"imagePullSecrets", []any{tree{"name": "mine"}}, ""},
		{"platform", "openshit", "platform"},
		{"platform", "gke", ""},
		{"clusterID", "", "clusterID"},
		{"trustDomain", "https://example.org", "trustDomain"},
		{"trustDomain", "example.org", ""},
		{"excludeNamespaces", "kube-system; other", "excludeNamespaces"},
		{"excludeNamespaces", "kube-system, other", ""},
		{"controller.replicas", 0.0, "controller.replicas"},
		{"controller.replicas", "2", "controller.replicas"},
		{"controller.replica", 3.0, "replica"},
		{"controller.args", []any{"log-level"}, "controller.args[0]"},
		{"controller.args", []any{"--log-level=debug"}, ""},
		{"controller.resources", tree{"request": tree{}}, "request"},
		{"controller.resources", tree{"requests": tree{"cpu": 1.0, "memory": "1Gi"}}, ""},
		{"cni.binDir", "opt/cni/bin", "cni.binDir"},
		{"cni.criSocket", "unix:///run/x.sock", "cni.criSocket"},
		{"cni.mountBPFFS", "yes", "cni.mountBPFFS"},
		{"cni.bindir", "/opt", "bindir"},
		{"ztunnel.env", []any{tree{"value": "x"}}, "name"},
		{"ztunnel.env", []any{tree{"name": "A B"}}, "ztunnel.env[0].name"},
		{"ztunnel.env", []any{tree{"name": "LOG_FORMAT", "value": 1.0}}, "ztunnel.env[0].value"},
		{"ztunnel.env", []any{tree{"name": "LOG_FORMAT", "value": "json"}}, ""},
	} {
		v := defaults(t)
		set(v, c.path, c.to)
		err := valid(t, v)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v: want %q in the error, got %v", c.path, c.to, c.says, err)
		}
	}
}

// TestNotes: what Helm prints after the installation.
func TestNotes(t *testing.T) {
	v := defaults(t)
	got := text(t, "templates/NOTES.txt", "mesh", v)
	if !strings.Contains(got, "namespace mesh.") || !strings.Contains(got, "deploy/crds") || !strings.Contains(got, "uninstall --nodes-only") {
		t.Error(got)
	}
}

// TestTemplatesAreRendered: a manifest that was changed without `make generate`
// would be installed by one way only.
func TestTemplatesAreRendered(t *testing.T) {
	want, err := render()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("templates/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if want[filepath.Base(f)] != string(b) {
			t.Errorf("%s is not what the manifests render to: make generate", f)
		}
		delete(want, filepath.Base(f))
	}
	for n := range want {
		t.Errorf("templates/%s is missing: make generate", n)
	}
}

// TestDefinitionsAreNotTheCharts: neither Helm's crds folder nor an object.
//
//ambit:feature chart-definitions
func TestDefinitionsAreNotTheCharts(t *testing.T) {
	if _, err := os.Stat("crds"); err == nil {
		t.Error("Helm installs what is in crds/ and never upgrades it")
	}
	for n, o := range index(execute(t, "ambit-system", defaults(t))) {
		if o["kind"] == "CustomResourceDefinition" || o["kind"] == "Namespace" {
			t.Errorf("%s would be deleted with the release", n)
		}
	}
}

// leaves names every value by its path; a list and resources are one value.
func leaves(prefix string, v tree, into map[string]any) map[string]any {
	for k, x := range v {
		if sub, ok := x.(tree); ok && k != "resources" {
			leaves(prefix+k+".", sub, into)
		} else {
			into[prefix+k] = x
		}
	}
	return into
}

func set(v tree, path string, to any) {
	keys := strings.Split(path, ".")
	for _, k := range keys[:len(keys)-1] {
		v = v[k].(tree)
	}
	v[keys[len(keys)-1]] = to
}

// TestEveryValueIsHonoured changes one value at a time: it must be in the
// README's table and the schema, and show in what is rendered.
//
//ambit:feature chart-values
func TestEveryValueIsHonoured(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties map[string]struct{ Properties map[string]any }
	}
	b, err := os.ReadFile("values.schema.json")
	if err == nil {
		err = json.Unmarshal(b, &schema)
	}
	if err != nil {
		t.Fatal(err)
	}
	before := execute(t, "ambit-system", defaults(t))
	honoured := leaves("", defaults(t), map[string]any{})
	for path, was := range honoured {
		var to any
		switch was := was.(type) {
		case []any:
			to = []any{"probe-value"}
			if path == "imagePullSecrets" || path == "ztunnel.env" {
				to = []any{tree{"name": "probe-value"}}
			}
		case tree:
			to = tree{"requests": tree{"memory": "probe-value"}}
		case float64:
			to = 4711
		case bool:
			to = !was
		default:
			to = "probe-value"
		}
		if path == "platform" { // shows by what it brings
			to = "k3s"
		}
		v := defaults(t)
		set(v, path, to)
		after := execute(t, "ambit-system", v)
		if reflect.DeepEqual(before, after) {
			t.Errorf("%s changes nothing", path)
		}
		_, flag := to.(bool)
		if text, _ := json.Marshal(after); !flag && path != "platform" && !bytes.Contains(text, []byte("probe-value")) && !bytes.Contains(text, []byte("4711")) {
			t.Errorf("%s does not show", path)
		}
		if !strings.Contains(string(readme), "\n| `"+path+"` |") {
			t.Errorf("%s is not in the README's table", path)
		}
		first, second, nested := strings.Cut(path, ".")
		p, ok := schema.Properties[first]
		if nested && ok {
			_, ok = p.Properties[second]
		}
		if !ok {
			t.Errorf("%s is not in the schema", path)
		}
	}
	if rows := strings.Count(string(readme), "\n| `"); rows != len(honoured) {
		t.Errorf("the README's table has %d values, the chart %d: %v", rows, len(honoured), slices.Sorted(maps.Keys(honoured)))
	}
}

// TestAnotherNamespace: nothing stays behind in the default one.
func TestAnotherNamespace(t *testing.T) {
	for n, o := range index(execute(t, "mesh", defaults(t))) {
		if text, _ := json.Marshal(o); bytes.Contains(text, []byte("ambit-system")) {
			t.Errorf("%s names ambit-system: %s", n, text)
		}
	}
}
