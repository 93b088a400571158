package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// The status of a policy with targetRefs follows what becomes of its target,
// though the policy itself does not change; policies without targets are not
// looked at for that.
//
//ambit:feature policy-targets
func TestTargetsAreFollowed(t *testing.T) {
	tr := newBench(t)
	said := map[string]policyVerdict{}
	judged := map[string]int{}
	tr.verdict = func(v policyVerdict) { said[v.name] = v; judged[v.name]++ }
	want := func(step, reason string) {
		t.Helper()
		tr.batch(tr.dirty.drain())
		v := said["p"]
		switch {
		case v.condition != nil:
			t.Errorf("%s: ztunnels say %+v of a policy that is not theirs", step, v.condition)
		case v.waypoint == nil && reason != "", v.waypoint != nil && v.waypoint.Reason != reason:
			t.Errorf("%s: %+v, want %s", step, v.waypoint, reason)
		}
	}
	policy := func(name string, refs ...*typev1beta1.PolicyTargetReference) {
		tr.put(kindPolicy, &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Generation: 1},
			Spec: v1beta1.AuthorizationPolicy{TargetRefs: refs}})
	}
	tr.put(kindNamespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	policy("p", &typev1beta1.PolicyTargetReference{Kind: "Service", Name: "s"})
	policy("q")
	want("nothing is there", "TargetNotFound")
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.1.0.1", Ports: []corev1.ServicePort{{Port: 80}}}}
	tr.put(kindService, service)
	want("a service without a waypoint", "AncestorNotBound")
	bound := service.DeepCopy()
	bound.Labels = map[string]string{"istio.io/use-waypoint": "wp"}
	tr.put(kindService, bound)
	want("a waypoint that is not there", "AncestorNotBound")
	hostname := gatewayv1.HostnameAddressType
	tr.put(kindGatewayClass, &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "ambit-waypoint"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: "ambitmesh.io/waypoint"}})
	gateway := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "wp"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "ambit-waypoint",
		Listeners: []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}}},
		Status: gatewayv1.GatewayStatus{Addresses: []gatewayv1.GatewayStatusAddress{{Type: &hostname, Value: "wp.shop.svc.cluster.local"}}}}
	tr.put(kindGateway, gateway)
	want("a waypoint", "Accepted")
	theirs := gateway.DeepCopy()
	theirs.Spec.GatewayClassName = "another"
	tr.put(kindGateway, theirs)
	want("another controller's waypoint", "")
	if !said["p"].foreign {
		t.Error("another controller's word would be overwritten")
	}
	tr.del(kindGateway, gateway)
	tr.del(kindService, service)
	want("all gone", "TargetNotFound")
	if judged["q"] != 1 {
		t.Errorf("a policy without targets was judged %d times", judged["q"])
	}
	tr.del(kindPolicy, &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}})
	tr.batch(tr.dirty.drain())
	if len(tr.targeted) != 0 {
		t.Error("a deleted policy is remembered")
	}
}
