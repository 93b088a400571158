package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	meshv1 "istio.io/api/mesh/v1alpha1"
)

// MeshConfigKey is the key of MeshConfigMap that holds the settings, in YAML.
const MeshConfigKey = "mesh"

// MeshConfig is what Ambit reads of the mesh's settings. The zero value is what
// holds without any.
type MeshConfig struct {
	TrustDomain        string // "": not said
	TrustDomainAliases []string
	RootNamespace      string // "": not said
	RegistryOnly       bool   // connections to addresses the mesh does not know are refused
	// DefaultServiceExportTo is who sees a ServiceEntry or Service that does
	// not say; empty: everybody.
	DefaultServiceExportTo []string
	Visibility             EntryVisibility
	// DiscoverySelectors pick the namespaces that are looked at; none: all.
	DiscoverySelectors []labels.Selector
}

// Visibility of a ServiceEntry.
type Visibility uint8

const (
	VisiblePublic    Visibility = iota // to every namespace
	VisibleNamespace                   // to its own
	VisibleNone                        // to nobody
)

// EntryVisibility decides how far ServiceEntries are seen.
type EntryVisibility struct {
	Default  Visibility
	Policies []VisibilityPolicy
}

// VisibilityPolicy holds for namespaces that all its selectors match.
type VisibilityPolicy struct {
	Visibility Visibility
	Namespaces []labels.Selector
}

// Of is the visibility of ServiceEntries of a namespace with these labels: the
// first policy's that matches, else the default.
func (v EntryVisibility) Of(namespace map[string]string) Visibility {
	for _, p := range v.Policies {
		if !slices.ContainsFunc(p.Namespaces, func(s labels.Selector) bool { return !s.Matches(labels.Set(namespace)) }) {
			return p.Visibility
		}
	}
	return v.Default
}

// Discovers reports whether a namespace with these labels is looked at.
func (m *MeshConfig) Discovers(namespace map[string]string) bool {
	return len(m.DiscoverySelectors) == 0 ||
		slices.ContainsFunc(m.DiscoverySelectors, func(s labels.Selector) bool { return s.Matches(labels.Set(namespace)) })
}

// MeshConfigReport is what was found beside the settings themselves.
type MeshConfigReport struct {
	Unknown []string // fields that Istio does not have either
	Ignored []string // fields of Istio's that have no effect here
}

// ParseMeshConfig reads the ConfigMap, nil for none. With an error nothing of
// it is to be used: half of a setting is another setting.
func ParseMeshConfig(cm *corev1.ConfigMap) (MeshConfig, MeshConfigReport, error) {
	var m MeshConfig
	var r MeshConfigReport
	if cm == nil || strings.TrimSpace(cm.Data[MeshConfigKey]) == "" {
		return m, r, nil
	}
	o := object{kind: "ConfigMap", namespace: cm.Namespace, name: cm.Name}
	// Strict: of a key that is there twice nobody knows which one counts.
	text, err := yaml.YAMLToJSONStrict([]byte(cm.Data[MeshConfigKey]))
	var top map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal(text, &top)
	}
	if err != nil {
		o.bad("data."+MeshConfigKey, "", "not YAML of fields and values: "+err.Error())
		return MeshConfig{}, r, o.err()
	}
	known := jsonNames(reflect.TypeFor[meshv1.MeshConfig]())
	for _, name := range slices.Sorted(maps.Keys(top)) {
		value := top[name]
		field, ok := known[name]
		if !ok {
			r.Unknown = append(r.Unknown, name)
			continue
		}
		if bytes.Equal(value, []byte("null")) {
			continue
		}
		read, ok := meshFields[field]
		if !ok {
			r.Ignored = append(r.Ignored, field)
			continue
		}
		f := meshField{object: &o, report: &r, path: field, value: value}
		read(&m, &f)
	}
	slices.Sort(r.Unknown)
	slices.Sort(r.Ignored)
	if err := o.err(); err != nil {
		return MeshConfig{}, r, err
	}
	return m, r, nil
}

// MeshTrustDomain is the trust domain that the ConfigMap says, "" for none.
// Nothing else of it has to be right.
func MeshTrustDomain(cm *corev1.ConfigMap) (string, error) {
	var m struct {
		TrustDomain string `json:"trustDomain"`
	}
	if err := yaml.Unmarshal([]byte(cm.Data[MeshConfigKey]), &m); err != nil {
		return "", fmt.Errorf("ConfigMap %s/%s: data.%s: %w", cm.Namespace, cm.Name, MeshConfigKey, err)
	}
	if m.TrustDomain != "" && !trustDomain(m.TrustDomain) {
		return "", fmt.Errorf("ConfigMap %s/%s: data.%s.trustDomain: %q: not a trust domain", cm.Namespace, cm.Name, MeshConfigKey, m.TrustDomain)
	}
	return m.TrustDomain, nil
}

func trustDomain(v string) bool { return v != "" && !strings.ContainsAny(v, "/ \t\n") }

// jsonNames are the names that the fields of a message go by, camel case and
// as in its definition, and the first of the two for each.
func jsonNames(t reflect.Type) map[string]string {
	names := make(map[string]string)
	for i := range t.NumField() {
		var camel, plain string
		for part := range strings.SplitSeq(t.Field(i).Tag.Get("protobuf"), ",") {
			if v, ok := strings.CutPrefix(part, "json="); ok {
				camel = v
			}
			if v, ok := strings.CutPrefix(part, "name="); ok {
				plain = v
			}
		}
		if plain == "" {
			continue
		}
		if camel == "" {
			camel = plain
		}
		names[camel], names[plain] = camel, camel
	}
	return names
}

// meshField is one field being read.
type meshField struct {
	object *object
	report *MeshConfigReport
	path   string
	value  json.RawMessage
}

func (f *meshField) bad(problem string) {
	f.object.bad("data."+MeshConfigKey+"."+f.path, string(f.value), problem)
}

// into reads the value as a T.
func into[T any](f *meshField) (T, bool) {
	var v T
	if err := json.Unmarshal(f.value, &v); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			f.bad("a " + wrong.Value + " where there should be a " + wrong.Type.Kind().String())
		} else {
			f.bad(err.Error())
		}
		return v, false
	}
	return v, true
}

// parts are the fields of a message by their camel case names; known is a
// pointer to a value of the message.
func (f *meshField) parts(known any) map[string]*meshField {
	raw, ok := into[map[string]json.RawMessage](f)
	if !ok {
		return nil
	}
	names := jsonNames(reflect.TypeOf(known).Elem())
	if _, ok := known.(*meshv1.ServiceEntryVisibility_MatchRule); ok {
		names = jsonNames(reflect.TypeFor[meshv1.ServiceEntryVisibility_MatchRule_NamespaceSelector]()) // its only choice
	}
	out := make(map[string]*meshField)
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		field, ok := names[name]
		switch {
		case !ok:
			f.report.Unknown = append(f.report.Unknown, f.path+"."+name)
		case !bytes.Equal(raw[name], []byte("null")):
			out[field] = &meshField{object: f.object, report: f.report, path: f.path + "." + field, value: raw[name]}
		}
	}
	return out
}

// items are the elements of a list.
func (f *meshField) items() []*meshField {
	raw, _ := into[[]json.RawMessage](f)
	out := make([]*meshField, len(raw))
	for i := range raw {
		out[i] = &meshField{object: f.object, report: f.report, path: index(f.path, i), value: raw[i]}
	}
	return out
}

// meshFields reads the fields that have an effect.
var meshFields = map[string]func(*MeshConfig, *meshField){
	"trustDomain": func(m *MeshConfig, f *meshField) {
		if v, ok := into[string](f); ok && f.validDomain(v) {
			m.TrustDomain = v
		}
	},
	"trustDomainAliases": func(m *MeshConfig, f *meshField) {
		for _, item := range f.items() {
			if v, ok := into[string](item); ok && item.validDomain(v) && !slices.Contains(m.TrustDomainAliases, v) {
				m.TrustDomainAliases = append(m.TrustDomainAliases, v)
			}
		}
	},
	"rootNamespace": func(m *MeshConfig, f *meshField) { m.RootNamespace, _ = into[string](f) },
	"outboundTrafficPolicy": func(m *MeshConfig, f *meshField) {
		for name, part := range f.parts(&meshv1.MeshConfig_OutboundTrafficPolicy{}) {
			switch name {
			case "mode":
				switch v, ok := into[any](part); {
				case !ok:
				case v == "REGISTRY_ONLY" || v == float64(meshv1.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY):
					m.RegistryOnly = true
				case v == "ALLOW_ANY" || v == float64(meshv1.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY):
				default:
					part.bad("neither ALLOW_ANY nor REGISTRY_ONLY")
				}
			default:
				f.report.Ignored = append(f.report.Ignored, part.path)
			}
		}
	},
	"defaultServiceExportTo": func(m *MeshConfig, f *meshField) {
		for _, item := range f.items() {
			if v, ok := into[string](item); ok {
				m.DefaultServiceExportTo = append(m.DefaultServiceExportTo, v)
			}
		}
	},
	"discoverySelectors": func(m *MeshConfig, f *meshField) {
		for _, item := range f.items() {
			if s := item.selector(); s != nil {
				m.DiscoverySelectors = append(m.DiscoverySelectors, s)
			}
		}
	},
	"serviceEntryVisibility": func(m *MeshConfig, f *meshField) {
		parts := f.parts(&meshv1.ServiceEntryVisibility{})
		if p := parts["defaultVisibility"]; p != nil {
			m.Visibility.Default = p.visibility()
		}
		if p := parts["policies"]; p != nil {
			for _, item := range p.items() {
				m.Visibility.Policies = append(m.Visibility.Policies, item.visibilityPolicy())
			}
		}
		if p := parts["applyToSidecars"]; p != nil {
			f.report.Ignored = append(f.report.Ignored, p.path)
		}
	},
}

func (f *meshField) validDomain(v string) bool {
	if !trustDomain(v) {
		f.bad("not a trust domain")
		return false
	}
	return true
}

// selector reads a label selector; nil when it cannot be read.
func (f *meshField) selector() labels.Selector {
	f.parts(&meshv1.LabelSelector{}) // reports fields that it does not have
	v, ok := into[metav1.LabelSelector](f)
	if !ok {
		return nil
	}
	s, err := metav1.LabelSelectorAsSelector(&v)
	if err != nil {
		f.bad(err.Error())
		return nil
	}
	return s
}

func (f *meshField) visibility() Visibility {
	v, ok := into[any](f)
	if !ok {
		return VisiblePublic
	}
	switch v {
	case "PUBLIC", "VISIBILITY_UNSPECIFIED", float64(0), float64(meshv1.ServiceEntryVisibility_PUBLIC):
		return VisiblePublic
	case "NAMESPACE", float64(meshv1.ServiceEntryVisibility_NAMESPACE):
		return VisibleNamespace
	case "NONE", float64(meshv1.ServiceEntryVisibility_NONE):
		return VisibleNone
	}
	f.bad(fmt.Sprintf("%v is none of PUBLIC, NAMESPACE and NONE", v))
	return VisiblePublic
}

func (f *meshField) visibilityPolicy() VisibilityPolicy {
	var p VisibilityPolicy
	parts := f.parts(&meshv1.ServiceEntryVisibility_Policy{})
	if v := parts["visibility"]; v != nil {
		p.Visibility = v.visibility()
	}
	if rules := parts["matchingRules"]; rules != nil {
		for _, rule := range rules.items() {
			s := rule.parts(&meshv1.ServiceEntryVisibility_MatchRule{})["namespaceSelector"]
			if s == nil {
				rule.bad("a rule without a namespaceSelector")
				continue
			}
			if selector := s.selector(); selector != nil {
				p.Namespaces = append(p.Namespaces, selector)
			}
		}
	}
	return p
}
