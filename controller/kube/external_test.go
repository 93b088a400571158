package kube

import (
	"math/rand/v2"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// randomServiceEntry has hosts that others have too, and one of a Service.
func randomServiceEntry(rnd *rand.Rand, m metav1.ObjectMeta) *networkingv1.ServiceEntry {
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	se := &networkingv1.ServiceEntry{ObjectMeta: m}
	se.Spec.Hosts = []string{pick("h1.test", "h2.test", "s1.a.svc.cluster.local")}
	if rnd.IntN(2) == 0 {
		se.Spec.Hosts = append(se.Spec.Hosts, pick("H1.test", "*.h2.test", "s2.b.svc.cluster.local"))
	}
	se.Spec.Ports = []*networking.ServicePort{{Number: uint32(80 + rnd.IntN(2)), Name: pick("http", "main"), TargetPort: uint32(rnd.IntN(2) * 8080)}}
	se.Spec.Resolution = networking.ServiceEntry_Resolution(rnd.IntN(5))
	if rnd.IntN(4) == 0 {
		se.Spec.ExportTo = []string{pick(".", "~", "*")}
	}
	if rnd.IntN(3) == 0 {
		se.Spec.Addresses = []string{pick("192.0.2.1", "192.0.2.0/24")}
	} else if rnd.IntN(2) == 0 {
		se.Status.Addresses = []*networking.ServiceEntryAddress{{Value: pick("240.240.0.1", "240.240.0.2"), Host: "h1.test"}}
	}
	switch {
	case se.Spec.Resolution == networking.ServiceEntry_NONE:
	case rnd.IntN(2) == 0:
		se.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: map[string]string{"app": pick("x", "y")}}
	case rnd.IntN(2) == 0:
		for range 1 + rnd.IntN(3) {
			se.Spec.Endpoints = append(se.Spec.Endpoints, &networking.WorkloadEntry{Address: pick("172.16.1.1", "172.16.1.2"), Labels: map[string]string{"app": "x"}})
		}
	}
	return se
}

func randomWorkloadEntry(rnd *rand.Rand, m metav1.ObjectMeta) *networkingv1.WorkloadEntry {
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	we := &networkingv1.WorkloadEntry{ObjectMeta: m}
	we.Spec.Address = pick("172.16.2.1", "172.16.2.2", "vm.test")
	we.Spec.ServiceAccount = pick("", "vm")
	if rnd.IntN(2) == 0 {
		we.Spec.Labels = map[string]string{"app": pick("x", "y"), "more": "z"}
	}
	if rnd.IntN(2) == 0 {
		we.Spec.Ports = map[string]uint32{pick("http", "main"): 9090}
	}
	return we
}
