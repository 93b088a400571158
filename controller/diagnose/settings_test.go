package diagnose

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSettingsOfTheMesh: precheck says of the mesh's settings what the
// controller would, from the namespace where it would read them.
//
//ambit:feature precheck-mesh-config
func TestSettingsOfTheMesh(t *testing.T) {
	config := func(ns, text string) map[string]*corev1.ConfigMap {
		return map[string]*corev1.ConfigMap{ns: {ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "istio"}, Data: map[string]string{"mesh": text}}}
	}
	for _, test := range []struct {
		name   string
		maps   map[string]*corev1.ConfigMap
		beside bool
		level  Level
		says   string // "": nothing at all
	}{
		{name: "none"},
		{name: "good", maps: config("istio-system", "trustDomain: example.org")},
		{name: "bad", maps: config("istio-system", "outboundTrafficPolicy: {mode: SOME}"), level: Error, says: "neither ALLOW_ANY nor REGISTRY_ONLY"},
		{name: "unknown", maps: config("istio-system", "trustDomian: example.org"), level: Warning, says: "trustDomian"},
		{name: "ignored", maps: config("istio-system", "enableAutoMtls: true"), level: Info, says: "enableAutoMtls"},
		{name: "another root", maps: config("istio-system", "rootNamespace: mesh"), level: Warning, says: "rootNamespace is mesh"},
		{name: "Istio's, beside it", maps: config("istio-system", "trustDomian: example.org"), beside: true},
		{name: "ours, beside Istio", maps: config("ambit-system", "trustDomian: example.org"), beside: true, level: Warning, says: "trustDomian"},
		{name: "an enrolled namespace out of view", maps: config("istio-system", "discoverySelectors: [{matchLabels: {team: a}}]"), level: Error, says: "leave it out"},
	} {
		c := sound()
		c.Settings = test.maps
		c.Namespaces = append(c.Namespaces, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: set{"istio.io/dataplane-mode": "ambient"}}},
			corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "seen", Labels: set{"istio.io/dataplane-mode": "ambient", "team": "a"}}})
		var f findings
		meshSettings(c, Options{System: "ambit-system", BesideIstio: test.beside}, &f)
		if test.says == "" {
			if len(f.all) > 0 {
				t.Errorf("%s: %v", test.name, f.all)
			}
			continue
		}
		if !slices.ContainsFunc(f.all, func(x Finding) bool { return x.Level == test.level && strings.Contains(x.What, test.says) }) {
			t.Errorf("%s: %v", test.name, f.all)
		}
		if slices.ContainsFunc(f.all, func(x Finding) bool { return x.Object == "namespace seen" }) {
			t.Errorf("%s: a namespace that is in view is named", test.name)
		}
	}
}
