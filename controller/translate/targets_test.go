package translate

import (
	"fmt"
	"testing"

	"sigs.k8s.io/yaml"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// Where a policy with targetRefs is enforced is in its status, for one target
// with its own reason and for several together.
//
//ambit:feature policy-targets
func TestPolicyTargets(t *testing.T) {
	s := &Set{}
	for _, doc := range documents(t, "testdata/targets/cluster.yaml") {
		if err := s.put(doc); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
	}
	gateway := func(name string) string {
		return "{group: gateway.networking.k8s.io, kind: Gateway, name: " + name + "}"
	}
	service := func(name string) string { return "{kind: Service, name: " + name + "}" }
	for _, c := range []struct {
		namespace, spec, want string
	}{
		{"shop", "{}", ""},
		{"shop", "{selector: {matchLabels: {app: a}}}", ""},
		{"shop", "{targetRefs: [" + gateway("wp") + "]}", "True Accepted: bound to shop/wp"},
		{"shop", "{targetRef: " + gateway("wp") + "}", "True Accepted: bound to shop/wp"},
		{"shop", "{targetRefs: [" + gateway("none") + "]}", "False TargetNotFound: Gateway.gateway.networking.k8s.io:shop/none was not found"},
		{"shop", "{targetRefs: [" + gateway("theirs") + "]}", ""},
		{"shop", "{targetRefs: [" + service("bound") + "]}", "True Accepted: bound to shop/wp"},
		{"shop", "{targetRefs: [" + service("orphan") + "]}", "True Accepted: bound to shop/wp"}, // a label of a Gateway that is gone
		{"shop", "{targetRefs: [{group: core, kind: Service, name: bound}]}", "True Accepted: bound to shop/wp"},
		{"shop", "{targetRefs: [" + service("free") + "]}", "False AncestorNotBound: Service.core:shop/free is not bound to a waypoint"},
		{"shop", "{targetRefs: [" + service("none") + "]}", "False TargetNotFound: Service.core:shop/none was not found"},
		{"shop", "{targetRefs: [" + service("foreign") + "]}", ""},
		{"shop", "{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: outside}]}", "True Accepted: bound to shop/wp"},
		{"shop", "{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: elsewhere}]}", "True Accepted: bound to infra/wp"},
		{"shop", "{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: own}]}", "False AncestorNotBound: ServiceEntry.networking.istio.io:shop/own is not bound to a waypoint"},
		{"shop", "{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: hidden}]}", "False AncestorNotBound: ServiceEntry.networking.istio.io:shop/hidden is not bound to a waypoint"},
		{"shop", "{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: none}]}", "False TargetNotFound: ServiceEntry.networking.istio.io:shop/none was not found"},
		{"istio-system", "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: ambit-waypoint}]}", "True Accepted: bound to ambit-waypoint"},
		{"shop", "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: ambit-waypoint}]}", "False Invalid: GatewayClass.gateway.networking.k8s.io:shop/ambit-waypoint can be the target of policies in the root namespace istio-system alone"},
		{"istio-system", "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: none}]}", "False TargetNotFound: GatewayClass.gateway.networking.k8s.io:istio-system/none was not found"},
		{"istio-system", "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: ingress}]}", "False Invalid: GatewayClass.gateway.networking.k8s.io:istio-system/ingress is not a class of waypoints: its controller is example.com/ingress"},
		{"shop", "{targetRefs: [{kind: Pod, name: p}]}", "False Invalid: Pod.core:shop/p is not of a kind that a policy can be attached to"},
		{"shop", "{targetRefs: [{kind: Service, name: bound, namespace: other}]}", "False Invalid: Service.core:shop/bound is of another namespace than the policy"},
		{"shop", "{targetRefs: [" + gateway("wp") + ", " + service("bound") + "]}", "True Accepted: bound to shop/wp, shop/wp"},
		{"shop", "{targetRefs: [" + gateway("wp") + ", " + service("free") + "]}", "True PartiallyInvalid: Invalid targetRefs: Service.core:shop/free"},
		{"shop", "{targetRefs: [" + gateway("none") + ", " + service("free") + "]}", "False Invalid: Invalid targetRefs: Gateway.gateway.networking.k8s.io:shop/none, Service.core:shop/free"},
		{"shop", "{selector: {matchLabels: {app: a}}, targetRefs: [" + gateway("wp") + "]}", "False Invalid: both a selector and targetRefs are set"},
	} {
		ap := &securityv1.AuthorizationPolicy{}
		if err := yaml.Unmarshal([]byte("{metadata: {name: p, namespace: "+c.namespace+"}, spec: "+c.spec+"}"), ap); err != nil {
			t.Fatalf("%s: %v", c.spec, err)
		}
		got := ""
		if cond := testConfig().PolicyTargets(ap, s); cond != nil {
			status := "False"
			if cond.True {
				status = "True"
			}
			got = fmt.Sprintf("%s %s: %s", status, cond.Reason, cond.Message)
			if cond.Type != "WaypointAccepted" {
				t.Errorf("%s: type %s", c.spec, cond.Type)
			}
		}
		if got != c.want {
			t.Errorf("%s in %s:\n got  %s\n want %s", c.spec, c.namespace, got, c.want)
		}
	}
}

// A policy with a selector and targetRefs is nobody's business or two's: its
// ALLOW admits nobody who is selected, its DENY refuses as if there were no
// targets, and the status says what is wrong.
//
//ambit:feature policy-targets
func TestSelectorAndTarget(t *testing.T) {
	for _, action := range []string{"ALLOW", "DENY"} {
		ap := &securityv1.AuthorizationPolicy{}
		spec := "{action: " + action + ", selector: {matchLabels: {app: a}}, targetRefs: [{kind: Service, name: s}], rules: [{from: [{source: {namespaces: [x]}}]}]}"
		if err := yaml.Unmarshal([]byte("{metadata: {name: p, namespace: ns}, spec: "+spec+"}"), ap); err != nil {
			t.Fatal(err)
		}
		a := testConfig().AuthorizationPolicy(ap)
		if a.Policy == nil || a.Err == nil || a.Condition == nil || a.Condition.True || a.Condition.Reason != ReasonInvalid {
			t.Fatalf("%s: %+v", action, a)
		}
		if want := map[string]int{"ALLOW": 0, "DENY": 1}[action]; len(a.Policy.Rules) != want {
			t.Errorf("%s: %d rules, want %d", action, len(a.Policy.Rules), want)
		}
		if !testConfig().Listed(ap) {
			t.Errorf("%s: no workload names it", action)
		}
	}
}
