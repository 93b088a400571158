package translate

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	meshv1 "istio.io/api/mesh/v1alpha1"
)

func settings(text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: MeshConfigMap}, Data: map[string]string{MeshConfigKey: text}}
}

// TestMeshConfig: what is honoured, reported and refused.
//
//ambit:feature mesh-config-fields mesh-config-unknown mesh-config-bad
func TestMeshConfig(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       func(*MeshConfig)
		unknown    string
		ignored    string
		bad        string // in the error; "": none
	}{
		{name: "nothing", text: ""},
		{name: "comments", text: "# nothing yet\n"},
		{name: "a whole one", text: `
trustDomain: example.org
trustDomainAliases: [old.example, older.example, old.example]
rootNamespace: istio-system
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
defaultServiceExportTo: ["."]
accessLogFile: /dev/stdout
defaultConfig: {proxyMetadata: {ISTIO_META_ENABLE_HBONE: "true"}}
enablePrometheusMerge: true
`, want: func(m *MeshConfig) {
			m.TrustDomain, m.TrustDomainAliases = "example.org", []string{"old.example", "older.example"}
			m.RootNamespace, m.RegistryOnly, m.DefaultServiceExportTo = "istio-system", true, []string{"."}
		}, ignored: "accessLogFile defaultConfig enablePrometheusMerge"},
		{name: "snake case, as protobuf allows", text: "outbound_traffic_policy: {mode: REGISTRY_ONLY}", want: func(m *MeshConfig) { m.RegistryOnly = true }},
		{name: "the number of the mode", text: "outboundTrafficPolicy: {mode: 0}", want: func(m *MeshConfig) { m.RegistryOnly = true }},
		{name: "null is nothing", text: "outboundTrafficPolicy: null\ntrustDomain: null"},
		{name: "an unknown field", text: "outboundTrafficPolicie: {mode: REGISTRY_ONLY}", unknown: "outboundTrafficPolicie"},
		{name: "unknown inside", text: "outboundTrafficPolicy: {mod: REGISTRY_ONLY}\ndiscoverySelectors: [{matchLabel: {a: b}}]",
			want: func(m *MeshConfig) { m.DiscoverySelectors = nil }, unknown: "discoverySelectors[0].matchLabel outboundTrafficPolicy.mod"},
		{name: "part of a field", text: "outboundTrafficPolicy: {mode: ALLOW_ANY, tls: {mode: SIMPLE}}", ignored: "outboundTrafficPolicy.tls"},
		{name: "no YAML", text: "trustDomain: [", bad: "not YAML"},
		{name: "no map", text: "- a", bad: "not YAML"},
		{name: "a key twice", text: "trustDomain: a\ntrustDomain: b", bad: `key "trustDomain" already set`},
		{name: "an unknown mode", text: "outboundTrafficPolicy: {mode: registry_only}", bad: "neither ALLOW_ANY nor REGISTRY_ONLY"},
		{name: "a mode of another type", text: "outboundTrafficPolicy: REGISTRY_ONLY", bad: "a string where there should be"},
		{name: "a selector that is none", text: "discoverySelectors: [{matchExpressions: [{key: a, operator: Near, values: [b]}]}]", bad: "not a valid label selector operator"},
		{name: "a trust domain that is none", text: "trustDomain: a/b", bad: "not a trust domain"},
		{name: "an alias that is none", text: "trustDomainAliases: [a, '']", bad: "trustDomainAliases[1]"},
		{name: "visibility", text: "serviceEntryVisibility: {defaultVisibility: SOME}", bad: "none of PUBLIC"},
		{name: "a rule without a selector", text: "serviceEntryVisibility: {policies: [{visibility: NONE, matchingRules: [{}]}]}", bad: "a rule without"},
		{name: "one bad field spoils the rest", text: "trustDomain: example.org\noutboundTrafficPolicy: 7", bad: "outboundTrafficPolicy"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, r, err := ParseMeshConfig(settings(test.text))
			if test.bad != "" {
				if err == nil || !strings.Contains(err.Error(), test.bad) || !strings.Contains(err.Error(), "ConfigMap istio-system/istio: data.mesh") {
					t.Fatalf("error %v, want %q", err, test.bad)
				}
				if !reflect.DeepEqual(m, MeshConfig{}) {
					t.Errorf("half of it was read: %+v", m)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var want MeshConfig
			if test.want != nil {
				test.want(&want)
			}
			if test.name == "unknown inside" { // an empty selector picks all
				m.DiscoverySelectors = nil
			}
			if !reflect.DeepEqual(m, want) {
				t.Errorf("read %+v, want %+v", m, want)
			}
			if got := strings.Join(r.Unknown, " "); got != test.unknown {
				t.Errorf("unknown %q, want %q", got, test.unknown)
			}
			if got := strings.Join(r.Ignored, " "); got != test.ignored {
				t.Errorf("ignored %q, want %q", got, test.ignored)
			}
		})
	}
	if m, _, err := ParseMeshConfig(nil); err != nil || !reflect.DeepEqual(m, MeshConfig{}) {
		t.Errorf("no ConfigMap: %+v, %v", m, err)
	}
}

// TestVisibilityPolicies: the first policy whose rules all match decides.
func TestVisibilityPolicies(t *testing.T) {
	m, _, err := ParseMeshConfig(settings(`
serviceEntryVisibility:
  defaultVisibility: NAMESPACE
  policies:
  - visibility: PUBLIC
    matchingRules:
    - namespaceSelector: {matchLabels: {team: a}}
    - namespaceSelector: {matchExpressions: [{key: env, operator: In, values: [prod]}]}
  - visibility: NONE
    matchingRules: [{namespaceSelector: {matchLabels: {team: a}}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		labels map[string]string
		want   Visibility
	}{
		{nil, VisibleNamespace},
		{map[string]string{"team": "a", "env": "prod"}, VisiblePublic},
		{map[string]string{"team": "a"}, VisibleNone},
		{map[string]string{"env": "prod"}, VisibleNamespace},
	} {
		if got := m.Visibility.Of(test.labels); got != test.want {
			t.Errorf("%v: %v, want %v", test.labels, got, test.want)
		}
	}
}

// TestMeshTrustDomain: the one thing that is needed before all else is read
// though other fields cannot be.
//
//ambit:feature mesh-config-trust-domain
func TestMeshTrustDomain(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "trustDomain: example.org": "example.org", "trustDomain: example.org\noutboundTrafficPolicy: 7": "example.org",
		"trustDomain: a/b": "error", "trustDomain: [": "error", "trustDomain: [a]": "error",
	} {
		got, err := MeshTrustDomain(settings(text))
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %q (%v), want %q", text, got, err, want)
		}
	}
}

const meshConfigPage = "../../docs/mesh-config.md"

var updateDocs = flag.Bool("update-docs", false, "write the table of docs/mesh-config.md anew")

// TestMeshConfigPage: every field of Istio's settings has its row, those with
// an effect are those that are read, and the page says what the code does.
//
//ambit:feature mesh-config-table
func TestMeshConfigPage(t *testing.T) {
	all := jsonNames(reflect.TypeFor[meshv1.MeshConfig]())
	seen := map[string]bool{}
	var effect, none strings.Builder
	effect.WriteString("| Field | Effect |\n|---|---|\n")
	none.WriteString("| Field | Why it has none |\n|---|---|\n")
	for _, f := range MeshFields() {
		if all[f.Name] != f.Name || seen[f.Name] {
			t.Errorf("%s is no field of MeshConfig, or there twice", f.Name)
		}
		seen[f.Name] = true
		if _, read := meshFields[f.Name]; read != (f.Effect != "") || (f.Why == "") == (f.Effect == "") {
			t.Errorf("%s: read %t, effect %q, why %q", f.Name, read, f.Effect, f.Why)
		}
		if f.Effect != "" {
			fmt.Fprintf(&effect, "| `%s` | %s |\n", f.Name, f.Effect)
		} else {
			fmt.Fprintf(&none, "| `%s` | %s |\n", f.Name, f.Why)
		}
	}
	for _, name := range all {
		if !seen[name] {
			t.Errorf("field %s of MeshConfig has no row", name)
		}
	}
	text, err := os.ReadFile(meshConfigPage)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, table := range []string{effect.String(), none.String()} {
		head, _, _ := strings.Cut(table, "|---")
		i := strings.Index(page, head)
		if i < 0 {
			t.Fatalf("%s has no table %q", meshConfigPage, head)
		}
		end := i + strings.Index(page[i:]+"\n\n", "\n\n") + 1
		if page[i:min(end, len(page))] == table {
			continue
		}
		if !*updateDocs {
			t.Errorf("%s is not what the code says; run the test with -update-docs. At %q", meshConfigPage, firstDifference(page[i:end], table))
			continue
		}
		page = page[:i] + table + page[end:]
	}
	if *updateDocs {
		if err := os.WriteFile(meshConfigPage, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzParseMeshConfig(f *testing.F) {
	for _, text := range []string{"", "trustDomain: a", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "discoverySelectors: [{matchLabels: {a: b}}]",
		"serviceEntryVisibility: {policies: [{visibility: NONE, matchingRules: [{namespaceSelector: {matchLabels: {a: b}}}]}]}", "a: [", "x: &x {y: *x}"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, r, err := ParseMeshConfig(settings(text))
		if err != nil && !reflect.DeepEqual(m, MeshConfig{}) {
			t.Errorf("with error %v: %+v", err, m)
		}
		if !slices.IsSorted(r.Unknown) || !slices.IsSorted(r.Ignored) {
			t.Errorf("report %+v is in no order", r)
		}
		again, _, _ := ParseMeshConfig(settings(text))
		if !reflect.DeepEqual(m, again) {
			t.Errorf("read %+v, then %+v", m, again)
		}
	})
}
