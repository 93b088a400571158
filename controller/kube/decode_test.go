package kube

import (
	"encoding/json"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/translate"
	"github.com/ambitmesh/ambit/controller/translate/malformed"
)

// Whatever the schemas of Istio's types admit is decoded: what one of their own
// clients cannot read costs that part of that object, not the list it is in.
//
//ambit:feature bad-input-decode
func TestDecodeWhatTheSchemaAdmits(t *testing.T) {
	files, err := filepath.Glob("../../deploy/crds/istio/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := malformed.Definitions(files...)
	if err != nil || len(kinds) == 0 {
		t.Fatalf("%d kinds: %v", len(kinds), err)
	}
	text, err := os.ReadFile("../translate/testdata/malformed/seeds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoded := map[string]func(map[string]any) (any, error){
		"AuthorizationPolicy": into[securityv1.AuthorizationPolicy], "PeerAuthentication": into[securityv1.PeerAuthentication],
		"ServiceEntry": into[networkingv1.ServiceEntry], "WorkloadEntry": into[networkingv1.WorkloadEntry],
	}
	unreadable, tried := 0, 0
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var seed map[string]any
		if err := yaml.Unmarshal([]byte(doc), &seed); err != nil {
			t.Fatal(err)
		}
		for i := range kinds {
			if kinds[i].Kind != seed["kind"] || decoded[kinds[i].Kind] == nil {
				continue
			}
			for j, c := range kinds[i].Cases(seed) {
				if j%3 != 0 && !strings.Contains(c.Path, "portLevelMtls") {
					continue // the same texts come again in other fields
				}
				if !strings.HasPrefix(c.Path, "status") && !strings.HasPrefix(c.Path, "spec") {
					continue
				}
				tried++
				var fresh map[string]any
				if err := json.Unmarshal(c.JSON(), &fresh); err != nil {
					t.Fatal(err)
				}
				o, err := decoded[kinds[i].Kind](fresh)
				if err != nil {
					unreadable++
				}
				// With an error there is still a spec: nobody has written one
				// of which nothing can be read.
				v := reflect.ValueOf(o)
				if !v.IsValid() || v.IsNil() || err != nil && fresh["spec"] == nil {
					t.Fatalf("%s %s %s: %v", kinds[i].Kind, c.Path, c.What, err)
				}
			}
		}
	}
	if unreadable == 0 {
		t.Error("Istio's own types read everything: there is no need for this package's decoder")
	}
	t.Logf("%d of %d objects are not read whole", unreadable, tried)
}

func into[T any](object map[string]any) (any, error) { return decode[T](object) }

func TestPlainPorts(t *testing.T) {
	for in, want := range map[string]string{
		`{"007":{"mode":"STRICT"}}`:                         `{"7":{"mode":"STRICT"}}`,
		`{"+80":{"mode":"STRICT"},"80":{"mode":"DISABLE"}}`: `{"80":{"mode":"DISABLE"}}`,
		`{"x":{"mode":"STRICT"},"80":{"mode":"DISABLE"}}`:   `{"80":{"mode":"DISABLE"}}`,
	} {
		var ports map[string]any
		if err := json.Unmarshal([]byte(in), &ports); err != nil {
			t.Fatal(err)
		}
		plainPorts(map[string]any{"spec": map[string]any{"portLevelMtls": ports}})
		if got, _ := json.Marshal(ports); string(got) != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// Of several ways to write one port every replica takes the same.
func TestPlainPortsAreTheSameEverywhere(t *testing.T) {
	for range 50 {
		ports := map[string]any{"080": "PERMISSIVE", "+80": "STRICT", "0080": "DISABLE"}
		plainPorts(map[string]any{"spec": map[string]any{"portLevelMtls": ports}})
		if !reflect.DeepEqual(ports, map[string]any{"80": "STRICT"}) {
			t.Fatal(ports)
		}
	}
}

// An object of which not even the metadata can be read is there by its name, as
// the policy that allows nobody: it neither ends the program nor keeps others
// from being read.
func TestMetadataThatCannotBeRead(t *testing.T) {
	for _, bad := range []map[string]any{
		{"annotations": "none"}, {"labels": map[string]any{"a": int64(1), translate.RevisionLabel: "ambit"}},
		{"generation": "first"}, {"ownerReferences": map[string]any{}}, {"creationTimestamp": "yesterday"}, {"deletionTimestamp": true},
	} {
		labels := bad["labels"] != nil
		bad["name"], bad["namespace"], bad["uid"], bad["resourceVersion"] = "p", "ns", "u", "7"
		said := 0
		log := slog.New(slog.NewTextHandler(lines(func([]byte) { said++ }), nil))
		out, err := decoding[securityv1.AuthorizationPolicy](log)(&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": bad,
			"spec": map[string]any{"action": "ALLOW", "rules": []any{map[string]any{}}},
		}})
		ap, _ := out.(*securityv1.AuthorizationPolicy)
		if err != nil || ap == nil || said != 1 {
			t.Errorf("%v: %v, %v, said %d times", bad, out, err, said)
			continue
		}
		if ap.Namespace != "ns" || ap.Name != "p" || ap.UID != "u" || ap.ResourceVersion != "7" || len(ap.Spec.GetRules()) > 0 {
			t.Errorf("%v: %v", bad, ap)
		}
		if labels && (len(ap.Labels) != 1 || ap.Labels[translate.RevisionLabel] != "ambit") {
			t.Errorf("labels are %v", ap.Labels)
		}
	}
}

// What cannot be told apart from nothing is refused, not taken for an object.
func TestNothingDecoded(t *testing.T) {
	out, err := decoding[securityv1.AuthorizationPolicy](slog.New(slog.DiscardHandler))(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": "p"}, "spec": math.NaN(), "status": math.NaN(), "other": math.NaN(),
	}})
	if out != nil || err == nil {
		t.Errorf("%v, %v", out, err)
	}
}
