package kube

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

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
