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

	"sigs.k8s.io/yaml"
)

type tree = map[string]any

// execute renders the chart as Helm does. Helm itself brings several hundred
// packages; the templates keep to a few functions instead, and one that is not
// here does not parse.
func execute(t *testing.T, namespace string, values tree) []tree {
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
	files, err := filepath.Glob("templates/*")
	if err != nil {
		t.Fatal(err)
	}
	var out []tree
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		tpl, err := template.New(filepath.Base(f)).Option("missingkey=error").Funcs(functions).Parse(string(b))
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := tpl.Execute(&text, tree{"Values": values, "Release": tree{"Namespace": namespace}}); err != nil {
			t.Fatal(err)
		}
		out = append(out, parse(t, f, text.String())...)
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

// kustomized are the objects of deploy/ambit, with the image as the
// kustomization sets it.
func kustomized(t *testing.T) map[string]tree {
	t.Helper()
	var k struct {
		Resources []string
		Images    []struct{ Name, NewName, NewTag string }
	}
	b, err := os.ReadFile(source + "/kustomization.yaml")
	if err == nil {
		err = yaml.Unmarshal(b, &k)
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []tree
	for _, r := range k.Resources {
		b, err := os.ReadFile(filepath.Join(source, r))
		if err != nil {
			t.Fatal(err)
		}
		i := k.Images[0]
		all = append(all, parse(t, r, strings.ReplaceAll(string(b), " image: "+i.Name+"\n", " image: "+i.NewName+":"+i.NewTag+"\n"))...)
	}
	return index(all)
}

func TestSameObjectsAsTheKustomization(t *testing.T) {
	want, got := kustomized(t), index(execute(t, "ambit-system", defaults(t)))
	delete(want, "v1 Namespace <nil>/ambit-system") // Helm's
	for n, o := range want {
		if !reflect.DeepEqual(o, got[n]) {
			a, _ := json.MarshalIndent(o, "", " ")
			b, _ := json.MarshalIndent(got[n], "", " ")
			t.Errorf("%s differs; the kustomization has\n%s\nthe chart\n%s", n, a, b)
		}
	}
	for n := range got {
		if want[n] == nil {
			t.Errorf("%s is in the chart only", n)
		}
	}
}

// TestTemplatesAreRendered: a manifest that was changed without `make generate`
// would be installed by one way only.
func TestTemplatesAreRendered(t *testing.T) {
	want, err := render()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("templates/*")
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
		switch was.(type) {
		case []any:
			to = []any{"probe-value"}
			if path == "imagePullSecrets" || path == "ztunnel.env" {
				to = []any{tree{"name": "probe-value"}}
			}
		case tree:
			to = tree{"requests": tree{"memory": "probe-value"}}
		case float64:
			to = 4711
		default:
			to = "probe-value"
		}
		v := defaults(t)
		set(v, path, to)
		after := execute(t, "ambit-system", v)
		if reflect.DeepEqual(before, after) {
			t.Errorf("%s changes nothing", path)
		}
		if text, _ := json.Marshal(after); !bytes.Contains(text, []byte("probe-value")) && !bytes.Contains(text, []byte("4711")) {
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
