package kube

import (
	"maps"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// target remembers whether a policy has targetRefs.
func (t *translator) target(name string, ap *securityv1.AuthorizationPolicy) {
	if translate.TargetsWaypoints(ap) {
		t.targeted[name] = struct{}{}
	} else {
		delete(t.targeted, name)
	}
}

// withTargeting adds to what changed the policies whose status depends on it:
// those with targets, in the namespace of a service, or anywhere when a Gateway,
// a class or what a namespace admits has changed.
func (t *translator) withTargeting(changed map[key]struct{}) map[key]struct{} {
	if len(t.targeted) == 0 {
		return changed
	}
	namespaces, everywhere := map[string]bool{}, false
	for k := range changed {
		switch k.kind {
		case kindService, kindServiceEntry:
			namespaces[k.namespace] = true
		case kindGateway, kindGatewayClass, kindNamespace, kindMeshConfig:
			everywhere = true
		}
	}
	if !everywhere && len(namespaces) == 0 {
		return changed
	}
	all := maps.Clone(changed)
	for name := range t.targeted {
		if namespace, short, _ := strings.Cut(name, "/"); everywhere || namespaces[namespace] {
			all[key{kindPolicy, namespace, short}] = struct{}{}
		}
	}
	return all
}
