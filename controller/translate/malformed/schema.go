package malformed

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"sigs.k8s.io/yaml"
)

// schema is the part of OpenAPI v3 that structural schemas are made of.
type schema struct {
	Type        string                  `json:"type"`
	Properties  map[string]*schema      `json:"properties"`
	Items       *schema                 `json:"items"`
	Additional  *additional             `json:"additionalProperties"`
	Enum        []any                   `json:"enum"`
	Pattern     string                  `json:"pattern"`
	Format      string                  `json:"format"`
	MinLength   *int                    `json:"minLength"`
	MaxLength   *int                    `json:"maxLength"`
	Minimum     *float64                `json:"minimum"`
	Maximum     *float64                `json:"maximum"`
	MinItems    int                     `json:"minItems"`
	MaxItems    *int                    `json:"maxItems"`
	MaxProps    *int                    `json:"maxProperties"`
	Required    []string                `json:"required"`
	IntOrString bool                    `json:"x-kubernetes-int-or-string"`
	ListType    string                  `json:"x-kubernetes-list-type"`
	Rules       []struct{ Rule string } `json:"x-kubernetes-validations"`
}

// intKeys: the one rule in CEL that is looked at, that a map's keys are
// numbers, as CEL reads numbers. No client could decode another key.
func (s *schema) intKeys() bool {
	return slices.ContainsFunc(s.Rules, func(r struct{ Rule string }) bool { return strings.Contains(r.Rule, "int(key) <= 65535") })
}

func portKey(k string) bool {
	n, err := strconv.ParseInt(k, 10, 64)
	return err == nil && n > 0 && n <= 65535
}

// additional is the schema of a map's values; a boolean says nothing of them.
type additional struct{ *schema }

// UnmarshalJSON takes either form.
func (a *additional) UnmarshalJSON(b []byte) error {
	if s := string(b); s == "true" || s == "false" {
		return nil
	}
	return json.Unmarshal(b, &a.schema)
}

// Kind is one type of object with what an API server checks of it.
type Kind struct {
	Group, Version, Kind string
	schema               *schema
}

// Definitions are the kinds of CustomResourceDefinitions, each in the version
// that is stored.
func Definitions(files ...string) ([]Kind, error) {
	var out []Kind
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		var crd struct {
			Kind string
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name    string
					Storage bool
					Schema  struct{ OpenAPIV3Schema *schema }
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		if crd.Kind != "CustomResourceDefinition" {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if v.Storage {
				out = append(out, Kind{crd.Spec.Group, v.Name, crd.Spec.Names.Kind, withMeta(v.Schema.OpenAPIV3Schema)})
			}
		}
	}
	return out, nil
}

//go:embed core.yaml
var coreSchemas []byte

// Core are the kinds of the API server itself.
func Core() ([]Kind, error) {
	var all []struct {
		Group, Version, Kind string
		Schema               *schema
	}
	if err := yaml.Unmarshal(coreSchemas, &all); err != nil {
		return nil, fmt.Errorf("core.yaml: %w", err)
	}
	var out []Kind
	for _, k := range all {
		out = append(out, Kind{k.Group, k.Version, k.Kind, withMeta(k.Schema)})
	}
	return out, nil
}

// withMeta adds labels and annotations, and takes out of a definition what
// only its controllers write.
func withMeta(s *schema) *schema {
	properties := map[string]*schema{"metadata": metadata()}
	for name, p := range s.Properties {
		switch name {
		case "apiVersion", "kind", "metadata":
		case "status":
			if _, read := p.Properties["conditions"]; !read || len(p.Properties) < 2 {
				continue
			}
			properties[name] = p
		default:
			properties[name] = p
		}
	}
	return &schema{Type: "object", Properties: properties, Required: []string{"metadata"}}
}

// metadata is what an API server lets through in labels and annotations, under
// the keys that mean something to a mesh.
func metadata() *schema {
	long := 63
	label := &schema{Type: "string", MaxLength: &long, Pattern: `^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$`}
	text := &schema{Type: "string"}
	keys := func(s *schema, names ...string) *schema {
		m := &schema{Type: "object", Properties: map[string]*schema{}}
		for _, n := range names {
			m.Properties[n] = s
		}
		return m
	}
	return &schema{Type: "object", Required: []string{"name"}, Properties: map[string]*schema{
		"labels": keys(label, "app", "app.kubernetes.io/name", "app.kubernetes.io/version", "istio.io/dataplane-mode", "istio.io/ingress-use-waypoint",
			"istio.io/rev", "istio.io/use-waypoint", "istio.io/use-waypoint-namespace", "istio.io/waypoint-for", "kubernetes.io/service-name",
			"networking.istio.io/gatewayPort", "networking.istio.io/tunnel", "networking.istio.io/traffic-distribution", "pod-template-hash",
			"security.istio.io/tlsMode", "service.istio.io/canonical-name", "service.istio.io/canonical-revision", "service.istio.io/workload-name",
			"topology.istio.io/network", "topology.istio.io/subzone", "topology.kubernetes.io/region", "topology.kubernetes.io/zone", "version"),
		"annotations": keys(text, "ambient.istio.io/redirection", "ambitmesh.io/require-waypoint", "ambient.istio.io/bypass-inbound-capture", "istio.io/dry-run",
			"networking.istio.io/address-type", "networking.istio.io/exportTo", "networking.istio.io/traffic-distribution",
			"openshift.io/deployment-config.name", "service.kubernetes.io/topology-mode", "sidecar.istio.io/status"),
	}}
}

// admits reports whether an API server takes v for a value of s, as far as s
// alone says.
func (s *schema) admits(v any) bool {
	if s.IntOrString {
		_, text := v.(string)
		n, number := v.(int64)
		return text || number && n == int64(int32(n))
	}
	if len(s.Enum) > 0 && !slices.Contains(s.Enum, v) {
		return false
	}
	switch v := v.(type) {
	case string:
		n := utf8.RuneCountInString(v)
		if s.Type != "string" || s.MinLength != nil && n < *s.MinLength || s.MaxLength != nil && n > *s.MaxLength {
			return false
		}
		if s.Format == "date-time" {
			if _, err := time.Parse(time.RFC3339, v); err != nil {
				return false
			}
		}
		return s.Pattern == "" || matches(s.Pattern, v)
	case int64:
		switch {
		case s.Type != "integer" && s.Type != "number",
			s.Minimum != nil && float64(v) < *s.Minimum,
			s.Maximum != nil && float64(v) > *s.Maximum,
			s.Format == "int32" && v != int64(int32(v)):
			return false
		}
		return true
	case bool:
		return s.Type == "boolean"
	}
	return true
}

func matches(pattern, v string) bool {
	re, err := regexp.Compile(pattern)
	return err != nil || re.MatchString(v)
}

// sample is a plain value of s with what it must have.
func (s *schema) sample() any {
	if s.IntOrString {
		return int64(80)
	}
	if len(s.Enum) > 0 {
		return s.Enum[0]
	}
	switch s.Type {
	case "object":
		m := map[string]any{}
		for _, name := range s.Required {
			if p := s.Properties[name]; p != nil {
				m[name] = p.sample()
			}
		}
		return m
	case "array":
		if s.MinItems > 0 && s.Items != nil {
			return []any{s.Items.sample()}
		}
		return []any{}
	case "integer", "number":
		return first(s, int64(80), int64(1), int64(0))
	case "boolean":
		return true
	case "string":
		return first(s, "web", "80", "10.0.0.1", "a.example.com", "*", "1s", "2024-01-01T00:00:00Z", "")
	}
	return map[string]any{}
}

func first(s *schema, values ...any) any {
	for _, v := range values {
		if s.admits(v) {
			return v
		}
	}
	return values[0]
}
