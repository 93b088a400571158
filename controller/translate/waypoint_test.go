package translate

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// statuses adds what waypoints bring to the status of objects to a golden file.
func statuses(b *strings.Builder, c Config, s *Set) {
	c, s, _ = c.seen(s)
	say := func(kind string, o metav1.Object, all []Condition) {
		for _, cond := range all {
			fmt.Fprintf(b, "condition %s %s/%s %s=%t %s: %s\n", kind, o.GetNamespace(), o.GetName(), cond.Type, cond.True, cond.Reason, cond.Message)
		}
	}
	for _, svc := range s.ServiceList {
		say("Service", svc, c.ServiceStatus(svc, s))
	}
	for _, se := range s.ServiceEntryList {
		_, all := c.ServiceEntryStatus(se, s)
		say("ServiceEntry", se, all)
	}
	for _, we := range s.WorkloadEntryList {
		_, all := c.WorkloadEntryStatus(we, s)
		say("WorkloadEntry", we, all)
	}
}

// TestBinding walks through the table of who is bound to which waypoint.
//
//ambit:feature binding-precedence binding-allowed-routes binding-traffic binding-not-ready
func TestBinding(t *testing.T) {
	hostname := gatewayv1.HostnameAddressType
	gateway := func(ns, name, traffic, from string) *gatewayv1.Gateway {
		gw := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
		if traffic != "" {
			gw.Labels = map[string]string{WaypointForLabel: traffic}
		}
		l := gatewayv1.Listener{Port: 15008, Protocol: "HBONE"}
		if from != "" {
			f := gatewayv1.FromNamespaces(from)
			l.AllowedRoutes = &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &f,
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}}}
		}
		gw.Spec.Listeners = []gatewayv1.Listener{l}
		gw.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Type: &hostname, Value: name + "." + ns + ".svc.cluster.local"}}
		return gw
	}
	use := func(v ...string) map[string]string {
		m := map[string]string{UseWaypointLabel: v[0]}
		if len(v) > 1 {
			m[UseWaypointNamespaceLabel] = v[1]
		}
		return m
	}
	for _, test := range []struct {
		name           string
		namespace, own map[string]string
		workload       bool
		gateway        *gatewayv1.Gateway
		bound          bool
		reason         string // "": no condition
	}{
		{name: "nobody asks", gateway: gateway("a", "w", "", "")},
		{name: "own label", own: use("w"), gateway: gateway("a", "w", "", ""), bound: true, reason: ReasonWaypointAccepted},
		{name: "namespace label", namespace: use("w"), gateway: gateway("a", "w", "", ""), bound: true, reason: ReasonWaypointAccepted},
		{name: "own label before the namespace's", namespace: use("other"), own: use("w"), gateway: gateway("a", "w", "", ""), bound: true, reason: ReasonWaypointAccepted},
		{name: "none opts out", namespace: use("w"), own: use("none"), gateway: gateway("a", "w", "", "")},
		{name: "the namespace says none", namespace: use("none"), gateway: gateway("a", "none", "", "")},
		{name: "own that is not there does not fall back", namespace: use("w"), own: use("other"), gateway: gateway("a", "w", "", ""), reason: ReasonWaypointNotReady},
		{name: "without an address", own: use("w"), gateway: func() *gatewayv1.Gateway {
			g := gateway("a", "w", "", "")
			g.Status.Addresses = nil
			return g
		}(), reason: ReasonWaypointNotReady},
		{name: "an address that is none", own: use("w"), gateway: func() *gatewayv1.Gateway {
			g := gateway("a", "w", "", "")
			g.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Value: "nowhere"}}
			return g
		}(), reason: ReasonWaypointNotReady},
		{name: "another namespace, not admitted", own: use("w", "b"), gateway: gateway("b", "w", "", ""), reason: ReasonAttachmentDenied},
		{name: "another namespace, only its own", own: use("w", "b"), gateway: gateway("b", "w", "", "Same"), reason: ReasonAttachmentDenied},
		{name: "another namespace, all", own: use("w", "b"), gateway: gateway("b", "w", "", "All"), bound: true, reason: ReasonWaypointAccepted},
		{name: "another namespace, nobody", own: use("w", "b"), gateway: gateway("b", "w", "", "None"), reason: ReasonAttachmentDenied},
		{name: "another namespace, picked", namespace: map[string]string{"team": "a"}, own: use("w", "b"), gateway: gateway("b", "w", "", "Selector"), bound: true, reason: ReasonWaypointAccepted},
		{name: "another namespace, not picked", namespace: map[string]string{"team": "b"}, own: use("w", "b"), gateway: gateway("b", "w", "", "Selector"), reason: ReasonAttachmentDenied},
		{name: "the namespace's, in another namespace", namespace: use("w", "b"), gateway: gateway("b", "w", "", "All"), bound: true, reason: ReasonWaypointAccepted},
		{name: "for workloads", own: use("w"), gateway: gateway("a", "w", "workload", ""), reason: ReasonUnsupportedTraffic},
		{name: "for all", own: use("w"), gateway: gateway("a", "w", "all", ""), bound: true, reason: ReasonWaypointAccepted},
		{name: "for nothing", own: use("w"), gateway: gateway("a", "w", "none", ""), reason: ReasonUnsupportedTraffic},
		{name: "workload, for services", workload: true, own: use("w"), gateway: gateway("a", "w", "", ""), reason: ReasonUnsupportedTraffic},
		{name: "workload, the namespace's for services", workload: true, namespace: use("w"), gateway: gateway("a", "w", "", "")},
		{name: "workload, for workloads", workload: true, own: use("w"), gateway: gateway("a", "w", "workload", ""), bound: true, reason: ReasonWaypointAccepted},
		{name: "workload, the namespace's for all", workload: true, namespace: use("w"), gateway: gateway("a", "w", "all", ""), bound: true, reason: ReasonWaypointAccepted},
		{name: "workload, none", workload: true, namespace: use("w"), own: use("none"), gateway: gateway("a", "w", "all", "")},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &Set{
				NamespaceList: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: test.namespace}}, {ObjectMeta: metav1.ObjectMeta{Name: "b"}}},
				GatewayList:   []*gatewayv1.Gateway{test.gateway},
			}
			o := &metav1.ObjectMeta{Namespace: "a", Name: "o", Labels: test.own}
			b := testConfig().BindService(o, false, s)
			if test.workload {
				b = testConfig().BindWorkload(o, s)
			}
			if (b.Waypoint != nil) != test.bound {
				t.Errorf("bound to %+v", b.Waypoint)
			}
			if test.bound {
				want := mesh.GatewayAddress{Namespace: test.gateway.Namespace, Hostname: "w." + test.gateway.Namespace + ".svc.cluster.local", HBONEPort: 15008}
				if *b.Waypoint != want {
					t.Errorf("bound to %+v, want %+v", *b.Waypoint, want)
				}
			}
			switch {
			case b.Status == nil:
				if test.reason != "" {
					t.Errorf("no condition, want %s", test.reason)
				}
			case b.Status.Reason != test.reason || b.Status.True != test.bound || b.Status.Type != ConditionWaypointBound:
				t.Errorf("condition %+v, want %s", *b.Status, test.reason)
			}
		})
	}
}

// TestRequirePolicy: a required waypoint is the only one let in, whichever
// accounts its pods have; while it has no pods, the account that it would have;
// without any nobody.
//
//ambit:feature binding-required
func TestRequirePolicy(t *testing.T) {
	gw := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "w"}}
	pod := func(name, account string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, Labels: map[string]string{GatewayNameLabel: "w"}},
			Spec: corev1.PodSpec{ServiceAccountName: account}, Status: corev1.PodStatus{Phase: phase}}
	}
	allowed := func(s *Set, key string) string {
		p := testConfig().RequirePolicy(key, s)
		if p.Action != mesh.Deny || p.Scope != mesh.ScopeWorkloadSelector || len(p.Rules) != 1 || p.Key() != key {
			t.Fatalf("policy %+v", p)
		}
		if len(p.Rules[0].Clauses) == 0 {
			return "nobody"
		}
		var out []string
		for _, m := range p.Rules[0].Clauses[0].Matches[0].NotPrincipals {
			if m.Kind != mesh.Exact {
				t.Errorf("%+v is no whole identity", m)
			}
			out = append(out, m.Value)
		}
		return strings.Join(out, " ")
	}
	const one = "a/" + RequirePrefix + "w"
	for _, test := range []struct {
		name, key string
		set       *Set
		want      string
	}{
		{"none", "a/" + RequirePrefix + "none", &Set{GatewayList: []*gatewayv1.Gateway{gw}}, "nobody"},
		{"gone", one, &Set{}, "nobody"},
		{"no pods", one, &Set{GatewayList: []*gatewayv1.Gateway{gw}}, "cluster.local/ns/a/sa/w"},
		{"pods", one, &Set{GatewayList: []*gatewayv1.Gateway{gw}, PodList: []*corev1.Pod{pod("1", "x", "Running"), pod("2", "x", "Pending"), pod("3", "", "Running")}},
			"cluster.local/ns/a/sa/default cluster.local/ns/a/sa/x"},
		{"a pod that has ended", one, &Set{GatewayList: []*gatewayv1.Gateway{gw}, PodList: []*corev1.Pod{pod("1", "x", "Failed")}}, "cluster.local/ns/a/sa/w"},
		{"seen from another namespace, and a second", "b/" + RequirePrefix + "v_w@a", &Set{GatewayList: []*gatewayv1.Gateway{gw, {ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: "v",
			Annotations: map[string]string{gatewayAccountAnnotation: "runner"}}}}}, "cluster.local/ns/a/sa/w cluster.local/ns/b/sa/runner"},
	} {
		if got := allowed(test.set, test.key); got != test.want {
			t.Errorf("%s: lets in %s, want %s", test.name, got, test.want)
		}
	}
	aliased := testConfig()
	aliased.Mesh.TrustDomainAliases = []string{"old.example"}
	if m := aliased.RequirePolicy(one, &Set{GatewayList: []*gatewayv1.Gateway{gw}}).Rules[0].Clauses[0].Matches[0]; len(m.NotPrincipals) != 2 || m.NotPrincipals[1].Value != "old.example/ns/a/sa/w" {
		t.Errorf("with an alias: %+v", m.NotPrincipals)
	}
}

// Services and entries bear a status of ours by one rule: beside another control
// plane only those that say our revision themselves.
//
//ambit:feature beside-writes
func TestWhoBearsStatus(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ours", Labels: map[string]string{RevisionLabel: "ambit", UseWaypointLabel: "wp"}}}
	s := &Set{NamespaceList: []*corev1.Namespace{ns}}
	for _, c := range []struct {
		beside bool
		rev    string
		want   bool
	}{
		{false, "", true}, {false, "ambit", true}, {false, "other", false},
		{true, "", false}, {true, "ambit", true}, {true, "other", false},
	} {
		cfg := testConfig()
		cfg.Beside, cfg.Revision = c.beside, "ambit"
		meta := metav1.ObjectMeta{Namespace: "ours", Name: "web", Labels: map[string]string{UseWaypointLabel: "wp"}}
		if c.rev != "" {
			meta.Labels[RevisionLabel] = c.rev
		}
		service := cfg.ServiceStatus(&corev1.Service{ObjectMeta: meta}, s)
		_, serviceEntry := cfg.ServiceEntryStatus(&networkingv1.ServiceEntry{ObjectMeta: meta}, s)
		_, workloadEntry := cfg.WorkloadEntryStatus(&networkingv1.WorkloadEntry{ObjectMeta: meta}, s)
		for kind, got := range map[string][]Condition{"Service": service, "ServiceEntry": serviceEntry, "WorkloadEntry": workloadEntry} {
			if len(got) > 0 != c.want {
				t.Errorf("beside %t, %s of revision %q: conditions %+v", c.beside, kind, c.rev, got)
			}
		}
	}
}
