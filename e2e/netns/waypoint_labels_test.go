package netns_test

import (
	"fmt"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// written is what users have written in a world, and what the controller makes of
// it is what all ztunnels know.
type written struct {
	w    *world
	set  translate.Set
	last mesh.Delta
}

// parse fills o from YAML.
func parse[T any](t testing.TB, text string, args ...any) *T {
	t.Helper()
	o := new(T)
	if err := yaml.UnmarshalStrict([]byte(fmt.Sprintf(text, args...)), o); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return o
}

// pod is p as the API server has it.
func (r *written) pod(p *pod, labels map[string]string, captured bool) {
	obj := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.name, Namespace: "demo", Labels: labels},
		Spec: corev1.PodSpec{NodeName: p.node.name, ServiceAccountName: p.sa}, Status: corev1.PodStatus{Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	for _, a := range p.addrs {
		obj.Status.PodIPs = append(obj.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if captured {
		obj.Annotations = map[string]string{"ambient.istio.io/redirection": "enabled"}
	}
	r.set.PodList = append(r.set.PodList, obj)
}

// sync tells the mesh; on return all ztunnels know.
func (r *written) sync() {
	t := r.w.t
	t.Helper()
	d, err := translate.All(translate.Config{ClusterID: "test", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}, &r.set)
	if err != nil {
		t.Fatal(err)
	}
	next := d
	next.RemovedPolicies = nil
	have := map[string]bool{}
	for _, p := range d.Policies {
		have[p.Key()] = true
	}
	for _, p := range r.last.Policies {
		if !have[p.Key()] {
			next.RemovedPolicies = append(next.RemovedPolicies, p.Key())
		}
	}
	r.last = d
	r.w.control.apply(next)
	r.w.control.settled(t)
}

// From the labels that users write to what waypoints, workloads and clients see.
//
//ambit:feature waypoint-service waypoint-workload waypoint-original-client waypoint-required
func TestWaypointLabels(t *testing.T) { each(t, waypointLabels, onlyIPv4) }

func waypointLabels(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, other, server, way := w.newPod(w.a, "client"), w.newPod(w.a, "other"), w.newPod(w.b, "server"), w.newPod(w.b, "way")
	server.listen(8080, echo)
	hb := way.serveHBONE(15008, passOn(server, 8080, true))
	r := &written{w: w}
	ns := parse[corev1.Namespace](t, `{metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}}`)
	r.set.NamespaceList = []*corev1.Namespace{ns}
	r.pod(client, nil, true)
	r.pod(other, nil, true)
	r.pod(server, map[string]string{"app": "web"}, true)
	r.pod(way, map[string]string{"gateway.networking.k8s.io/gateway-name": "way", "gateway.istio.io/managed": "istio.io-mesh-controller",
		"networking.istio.io/tunnel": "http"}, false)
	vips := f.vip(1)
	web := parse[corev1.Service](t, `{metadata: {name: web, namespace: demo}, spec: {clusterIP: %[1]s, clusterIPs: ["%[1]s"], selector: {app: web},
  ports: [{name: tcp, port: 80, targetPort: 8080}]}}`, vips[0])
	r.set.ServiceList = []*corev1.Service{web, parse[corev1.Service](t, `{metadata: {name: way, namespace: demo,
  labels: {gateway.networking.k8s.io/gateway-name: way, gateway.istio.io/managed: istio.io-mesh-controller}},
  spec: {clusterIP: %[1]s, clusterIPs: ["%[1]s"], selector: {gateway.networking.k8s.io/gateway-name: way}, ports: [{name: mesh, port: 15008, targetPort: 15008}]}}`, f.vip(9)[0])}
	gw := parse[gatewayv1.Gateway](t, `{metadata: {name: way, namespace: demo, labels: {istio.io/waypoint-for: all}},
  spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}`)
	r.set.GatewayList = []*gatewayv1.Gateway{gw}
	for _, p := range []*pod{client, other, server} {
		p.node.agent.enrol(p)
	}
	to := f.vipAt(1, 80)
	reach := func(t *testing.T, p *pod, to string, through bool) {
		t.Helper()
		before := hb.count()
		c := p.mustDial(t, to)
		pingPong(t, c, "hello")
		c.Close()
		if got := hb.count() - before; got > 0 != through {
			t.Errorf("%s to %s: the waypoint was asked %d times", p.name, to, got)
		}
	}

	t.Run("not ready yet", func(t *testing.T) {
		web.Labels = map[string]string{"istio.io/use-waypoint": "way"}
		r.sync()
		reach(t, client, to, false)
	})
	hostname := gatewayv1.HostnameAddressType
	gw.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Type: &hostname, Value: "way.demo.svc.cluster.local"}}
	t.Run("of a service", func(t *testing.T) {
		r.sync()
		reach(t, client, to, true)
		if got := hb.last().Authority; got != to {
			t.Errorf("asked for %s", got)
		}
		reach(t, client, server.at(8080), false)
	})
	t.Run("policy means clients", func(t *testing.T) {
		r.set.PolicyList = []*securityv1.AuthorizationPolicy{parse[securityv1.AuthorizationPolicy](t, `{metadata: {name: only-client, namespace: demo},
  spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ["%s"]}}]}]}}`, client.id().Principal())}
		r.sync()
		reach(t, client, to, true)
		refused(t, other, to)
		w.b.zt.wantLog(t, `client.identity="`+other.id().String()+`"`, `reason="policy_denied"`)
		r.set.PolicyList = nil
	})
	t.Run("required", func(t *testing.T) {
		web.Labels["ambitmesh.io/require-waypoint"] = "true"
		r.sync()
		reach(t, other, to, true)
		refused(t, other, server.at(8080))
		w.b.zt.wantLog(t, `src.identity="`+other.id().String()+`"`, `reason="waypoint_required"`)
		delete(web.Labels, "ambitmesh.io/require-waypoint")
	})
	t.Run("of a namespace, for workloads too", func(t *testing.T) {
		delete(web.Labels, "istio.io/use-waypoint")
		ns.Labels["istio.io/use-waypoint"] = "way"
		r.sync()
		reach(t, client, to, true)
		reach(t, client, server.at(8080), true)
	})
	t.Run("none", func(t *testing.T) {
		web.Labels["istio.io/use-waypoint"] = "none"
		r.sync()
		reach(t, client, to, false)
		delete(ns.Labels, "istio.io/use-waypoint")
		r.sync()
		reach(t, client, server.at(8080), false)
	})
}
