// Package enablement owns the selectors that say which pods ask for the mesh.
// The node agent goes by them, and so does the CA: an identity is only given
// out for a pod that is in the mesh.
package enablement

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// The label that the selectors look at unless told otherwise, and its values.
const (
	Label   = "istio.io/dataplane-mode"
	Ambient = "ambient"
	None    = "none"
)

// Selector matches a pod when both of its parts do.
type Selector struct {
	Pod, Namespace labels.Selector
}

// Selectors match a pod when one of them does.
type Selectors []Selector

// Default is the pod's own label, and without an opt-out its namespace's.
func Default() Selectors {
	mode := labels.SelectorFromSet(labels.Set{Label: Ambient})
	out, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: Label, Operator: metav1.LabelSelectorOpNotIn, Values: []string{None}}}})
	if err != nil {
		out = labels.Nothing() // cannot be: its parts are constants
	}
	return Selectors{{Pod: mode, Namespace: labels.Everything()}, {Pod: out, Namespace: mode}}
}

// Parse reads the documented form: a YAML list whose items have a podSelector
// and a namespaceSelector, either of which may be left out and then matches
// everything. Nothing at all is the default.
func Parse(text string) (Selectors, error) {
	var items []struct {
		PodSelector       *metav1.LabelSelector `json:"podSelector"`
		NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector"`
	}
	if err := yaml.UnmarshalStrict([]byte(text), &items); err != nil {
		return nil, fmt.Errorf("enablement selectors: want a list of podSelector and namespaceSelector: %w", err)
	}
	if len(items) == 0 {
		return Default(), nil
	}
	var out Selectors
	for i, item := range items {
		pod, err := selector(item.PodSelector)
		if err != nil {
			return nil, fmt.Errorf("enablement selectors: item %d: podSelector: %w", i, err)
		}
		namespace, err := selector(item.NamespaceSelector)
		if err != nil {
			return nil, fmt.Errorf("enablement selectors: item %d: namespaceSelector: %w", i, err)
		}
		out = append(out, Selector{Pod: pod, Namespace: namespace})
	}
	return out, nil
}

func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// Match reports whether a pod asks for the mesh.
func (s Selectors) Match(pod, namespace map[string]string) bool {
	for _, one := range s {
		if one.Namespace.Matches(labels.Set(namespace)) && one.Pod.Matches(labels.Set(pod)) {
			return true
		}
	}
	return false
}
