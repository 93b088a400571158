package main

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

func (l *lab) gateways(t *testing.T) gatewayclient.Interface {
	t.Helper()
	rc := must(clientcmd.BuildConfigFromFlags("", l.kubeconfig))(t)
	rc.QPS = -1
	return must(gatewayclient.NewForConfig(rc))(t)
}

func waypointGateway(name string, labels map[string]string) *gatewayv1.Gateway {
	return &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: gatewayv1.GatewaySpec{GatewayClassName: "ambit-waypoint",
			Listeners: []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}}},
	}
}

// addressed gives a Gateway the status addresses, as who runs it does.
func addressed(t *testing.T, c gatewayclient.Interface, namespace, name string, values ...string) {
	t.Helper()
	gateways := c.GatewayV1().Gateways(namespace)
	eventually(t, func() error {
		gw, err := gateways.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		gw.Status.Addresses = nil
		for _, v := range values {
			kind := gatewayv1.IPAddressType
			if strings.HasSuffix(v, ".local") {
				kind = gatewayv1.HostnameAddressType
			}
			gw.Status.Addresses = append(gw.Status.Addresses, gatewayv1.GatewayStatusAddress{Type: &kind, Value: v})
		}
		_, err = gateways.UpdateStatus(t.Context(), gw, metav1.UpdateOptions{})
		return err
	})
}

// says waits for a condition of a Service; with status "" for its absence.
func (l *lab) says(t *testing.T, namespace, name, kind, status, reason, message string) {
	t.Helper()
	eventually(t, func() error {
		svc, err := l.client.CoreV1().Services(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range svc.Status.Conditions {
			if c.Type != kind {
				continue
			}
			if string(c.Status) == status && c.Reason == reason && strings.Contains(c.Message, message) {
				return nil
			}
			return fmt.Errorf("condition %+v", c)
		}
		if status == "" {
			return nil
		}
		return fmt.Errorf("no condition %s on Service %s/%s: %+v", kind, namespace, name, svc.Status.Conditions)
	})
}

func (l *lab) label(t *testing.T, name, labels string) {
	t.Helper()
	must(l.client.CoreV1().Services("prod").Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"labels":`+labels+`}}`), metav1.PatchOptions{}))(t)
}

const (
	webKey   = "prod/web.prod.svc.cluster.local"
	bound    = "istio.io/WaypointBound"
	required = "ambitmesh.io/WaypointRequired"
)

// testWaypoints: the Gateway API appears, a Service asks for a waypoint, which
// becomes ready, loses its address for a while, is required, and goes.
func (r *running) testWaypoints(t *testing.T) {
	r.installTypes(t, "../../deploy/crds/gateway-api/*_gateway*.yaml")
	gateways := r.gateways(t)
	r.label(t, "web", `{"istio.io/use-waypoint":"wp"}`)
	r.says(t, "prod", "web", bound, "False", "WaypointIsNotReady", `waypoint "prod/wp" is not ready`)

	// Somebody else's condition, which stays.
	other := `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"status":{"conditions":[{"type":"example.com/Other","status":"True","reason":"R","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	must(r.client.CoreV1().Services("prod").Patch(t.Context(), "web", types.ApplyPatchType, []byte(other), metav1.PatchOptions{FieldManager: "somebody"}, "status"))(t)

	eventually(t, func() error { // the API server serves a new type after a moment
		_, err := gateways.GatewayV1().Gateways("prod").Create(t.Context(), waypointGateway("wp", nil), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	addressed(t, gateways, "prod", "wp", "10.96.7.7", "wp.prod.svc.cluster.local")
	want := mesh.GatewayAddress{Namespace: "prod", Hostname: "wp.prod.svc.cluster.local", HBONEPort: 15008}
	r.await(t, "web behind its waypoint", func(s *mesh.Snapshot) bool {
		w := s.Service(webKey).Waypoint
		return w != nil && *w == want
	})
	r.says(t, "prod", "web", bound, "True", "WaypointAccepted", "Successfully attached to waypoint prod/wp")

	// Without an address for a while it stays where it was.
	addressed(t, gateways, "prod", "wp")
	r.label(t, "web", `{"istio.io/ingress-use-waypoint":"true"}`)
	r.await(t, "the label for ingress", func(s *mesh.Snapshot) bool { return s.Service(webKey).IngressWaypoint })
	if w := r.store.Load().Service(webKey).Waypoint; w == nil || *w != want {
		t.Errorf("a waypoint that has lost its address became %+v", w)
	}
	r.says(t, "prod", "web", bound, "True", "WaypointAccepted", "Ingress traffic will traverse the waypoint")

	// Required: nobody else gets in, and without it nobody at all.
	policy := func(of string) func(*mesh.Snapshot) bool {
		return func(s *mesh.Snapshot) bool {
			w := s.Workload(podUID + "prod/web-1")
			for _, k := range w.Policies {
				if strings.HasPrefix(k, "prod/ambitmesh_require_waypoint_") {
					return k == "prod/ambitmesh_require_waypoint_"+of && s.Policy(k) != nil
				}
			}
			return of == ""
		}
	}
	r.label(t, "web", `{"ambitmesh.io/require-waypoint":"true"}`)
	r.await(t, "web-1 open to its waypoint alone", policy("wp"))
	rules := r.store.Load().Policy("prod/ambitmesh_require_waypoint_wp").Rules
	if len(rules) != 1 || len(rules[0].Clauses) != 1 || rules[0].Clauses[0].Matches[0].NotPrincipals[0].Value != "cluster.local/ns/prod/sa/wp" {
		t.Errorf("rules %+v", rules)
	}
	r.says(t, "prod", "web", required, "True", "Enforced", "waypoint prod/wp")
	must(0, gateways.GatewayV1().Gateways("prod").Delete(t.Context(), "wp", metav1.DeleteOptions{}))(t)
	r.await(t, "web-1 open to nobody", policy("none"))
	r.says(t, "prod", "web", required, "False", "WaypointMissing", `waypoint "prod/wp" is not ready`)
	r.says(t, "prod", "web", bound, "False", "WaypointIsNotReady", "")
	r.await(t, "web without a waypoint", func(s *mesh.Snapshot) bool { return s.Service(webKey).Waypoint == nil })

	// What another control plane has left goes, and does not stand beside ours.
	r.label(t, "web", `{"istio.io/use-waypoint":null}`)
	r.says(t, "prod", "web", required, "False", "WaypointMissing", "names one")
	r.says(t, "prod", "web", bound, "", "", "")
	left := `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"status":{"conditions":[{"type":"` + bound + `","status":"True","reason":"Left","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	must(r.client.CoreV1().Services("prod").Patch(t.Context(), "web", types.ApplyPatchType, []byte(left), metav1.PatchOptions{FieldManager: "pilot-discovery"}, "status"))(t)
	r.says(t, "prod", "web", bound, "", "", "")
	r.says(t, "prod", "web", required, "False", "WaypointMissing", "")

	r.label(t, "web", `{"ambitmesh.io/require-waypoint":null,"istio.io/ingress-use-waypoint":null}`)
	r.await(t, "web-1 open again", policy(""))
	r.says(t, "prod", "web", bound, "", "", "")
	r.says(t, "prod", "web", required, "", "", "")
	r.says(t, "prod", "web", "example.com/Other", "True", "R", "")
	r.testEntryConditions(t, gateways)
}

// testEntryConditions: the same on types whose conditions do not merge.
func (r *running) testEntryConditions(t *testing.T, gateways gatewayclient.Interface) {
	must(gateways.GatewayV1().Gateways("prod").Create(t.Context(), waypointGateway("all", map[string]string{"istio.io/waypoint-for": "all"}), metav1.CreateOptions{}))(t)
	addressed(t, gateways, "prod", "all", "10.96.7.8")
	labels := map[string]string{"istio.io/use-waypoint": "all"}
	entries := r.istio.NetworkingV1().ServiceEntries("prod")
	must(entries.Create(t.Context(), &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Name: "api", Labels: labels}, Spec: networking.ServiceEntry{
		Hosts: []string{"api.example.com"}, Resolution: networking.ServiceEntry_STATIC, Addresses: []string{"192.0.2.80"},
		Ports: []*networking.ServicePort{{Number: 443, Name: "tls", Protocol: "TLS"}}}}, metav1.CreateOptions{}))(t)
	vms := r.istio.NetworkingV1().WorkloadEntries("prod")
	must(vms.Create(t.Context(), &networkingv1.WorkloadEntry{ObjectMeta: metav1.ObjectMeta{Name: "vm", Labels: labels},
		Spec: networking.WorkloadEntry{Address: "172.16.9.9"}}, metav1.CreateOptions{}))(t)
	r.await(t, "entries behind their waypoint", func(s *mesh.Snapshot) bool {
		svc, w := s.Service("prod/api.example.com"), s.Workload("Kubernetes/networking.istio.io/WorkloadEntry/prod/vm")
		return svc != nil && svc.Waypoint != nil && w != nil && w.Waypoint != nil
	})
	eventually(t, func() error {
		se, err := entries.Get(t.Context(), "api", metav1.GetOptions{})
		if err != nil {
			return err
		}
		we, err := vms.Get(t.Context(), "vm", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range [][]string{{"ServiceEntry", fmt.Sprint(se.Status.GetConditions())}, {"WorkloadEntry", fmt.Sprint(we.Status.GetConditions())}} {
			if !strings.Contains(c[1], bound) || !strings.Contains(c[1], "Successfully attached to waypoint prod/all") {
				return fmt.Errorf("%s: %s", c[0], c[1])
			}
		}
		return nil
	})
	must(0, entries.Delete(t.Context(), "api", metav1.DeleteOptions{}))(t)
	must(0, vms.Delete(t.Context(), "vm", metav1.DeleteOptions{}))(t)
	must(0, gateways.GatewayV1().Gateways("prod").Delete(t.Context(), "all", metav1.DeleteOptions{}))(t)
	r.await(t, "no entries", func(s *mesh.Snapshot) bool { return s.Service("prod/api.example.com") == nil })
}

// testMeshConfig: settings appear, change, cannot be read, and go.
func (r *running) testMeshConfig(t *testing.T) {
	maps := r.client.CoreV1().ConfigMaps("istio-system")
	write := func(text string) {
		t.Helper()
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"}, Data: map[string]string{"mesh": text, "meshNetworks": "networks: {}"}}
		_, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = maps.Create(t.Context(), cm, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	metric := func(line string) {
		t.Helper()
		eventually(t, func() error {
			if got := r.get("/metrics"); !strings.Contains(got, "\n"+line+"\n") {
				return fmt.Errorf("no %q in the metrics", line)
			}
			return nil
		})
	}
	if s, known := r.store.Load().Settings(); !known || s.RegistryOnly {
		t.Errorf("without a ConfigMap: %+v, %t", s, known)
	}
	write("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\ntrustDomainAliases: [old.example]\nenableAutoMtls: true\noutboundPolicy: {}")
	r.await(t, "the settings at the ztunnel", func(s *mesh.Snapshot) bool {
		got, _ := s.Settings()
		return got.Equal(mesh.Settings{RegistryOnly: true, TrustDomainAliases: []string{"old.example"}})
	})
	metric(`ambit_controller_mesh_config_fields_without_effect{why="unknown"} 1`)
	metric(`ambit_controller_mesh_config_fields_without_effect{why="not_here"} 1`)
	if !strings.Contains(r.log.String(), "unknown=outboundPolicy") {
		t.Error("the unknown field is not in the log")
	}
	write("outboundTrafficPolicy: {mode: ALLOW_SOME}")
	metric("ambit_controller_mesh_config_valid 0")
	if got, _ := r.store.Load().Settings(); !got.RegistryOnly {
		t.Error("settings that cannot be read opened the way out")
	}
	if !strings.Contains(r.log.String(), "ALLOW_SOME") {
		t.Error("the value is not in the log")
	}
	legacy := podUID + "plain/legacy-1"
	if r.store.Load().Workload(legacy) == nil {
		t.Fatal("legacy-1 is not there to begin with")
	}
	write(`discoverySelectors: [{matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [plain]}]}]`)
	r.await(t, "plain out of view", func(s *mesh.Snapshot) bool {
		got, _ := s.Settings()
		return s.Workload(legacy) == nil && !got.RegistryOnly
	})
	metric("ambit_controller_mesh_config_valid 1")
	must(0, maps.Delete(t.Context(), "istio", metav1.DeleteOptions{}))(t)
	r.await(t, "plain in view again", func(s *mesh.Snapshot) bool { return s.Workload(legacy) != nil })
}
