package translate

import (
	"slices"

	"istio.io/api/type/v1beta1"
)

// subject is what selectors look at: the labels of a pod or of something that
// stands for one, and the namespace it is in.
type subject struct {
	namespace string
	labels    map[string]string
}

// policiesOf are the keys of the selector policies that apply to s, sorted.
// Namespace and mesh-wide policies apply by scope and are not listed.
func (c Config) policiesOf(s subject, objs Objects) []string {
	var keys []string
	namespaces := []string{s.namespace}
	if s.namespace != c.RootNamespace {
		namespaces = append(namespaces, c.RootNamespace)
	}
	for _, ns := range namespaces {
		for _, ap := range objs.AuthorizationPolicies(ns) {
			if c.Listed(ap) && Picks(ap.Spec.GetSelector(), s.labels) {
				keys = append(keys, ap.Namespace+"/"+ap.Name)
			}
		}
	}
	if key := c.peerPolicy(s, objs); key != "" {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// Picks reports whether a policy's selector, which must not be nil, picks what
// has these labels.
func Picks(s *v1beta1.WorkloadSelector, labels map[string]string) bool {
	return matchLabels(s.GetMatchLabels(), labels)
}

// matchLabels reports whether labels has all of want.
func matchLabels(want, labels map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
