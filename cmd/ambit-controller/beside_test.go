package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// besideIstio is a cluster in which Istio's control plane has its objects, and
// we have a namespace.
type besideIstio struct {
	*running
	versions map[string]string // of what is not ours, before we came
}

// theirs are the resource versions of all objects of namespaces that are not
// ours, and of those in ours that are marked as Istio's. Only our own ConfigMap
// of roots may come to a namespace.
func (b *besideIstio) theirs(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	note := func(kind string, o metav1.Object) {
		if o.GetNamespace() == "ambit-system" || o.GetName() == "ambit-ca-root-cert" ||
			o.GetNamespace() == "ours" && o.GetLabels()["istio.io/rev"] != "default" && o.GetName() != "unmarked" {
			return
		}
		out[kind+" "+o.GetNamespace()+"/"+o.GetName()] = o.GetResourceVersion()
	}
	core, ctx := b.client.CoreV1(), t.Context()
	configMaps := must(core.ConfigMaps("").List(ctx, metav1.ListOptions{}))(t)
	for i := range configMaps.Items {
		note("ConfigMap", &configMaps.Items[i])
	}
	services := must(core.Services("").List(ctx, metav1.ListOptions{}))(t)
	for i := range services.Items {
		note("Service", &services.Items[i])
	}
	namespaces := must(core.Namespaces().List(ctx, metav1.ListOptions{}))(t)
	for i := range namespaces.Items {
		note("Namespace", &namespaces.Items[i])
	}
	secrets := must(core.Secrets("").List(ctx, metav1.ListOptions{}))(t)
	for i := range secrets.Items {
		note("Secret", &secrets.Items[i])
	}
	policies := must(b.istio.SecurityV1().AuthorizationPolicies("").List(ctx, metav1.ListOptions{}))(t)
	for _, p := range policies.Items {
		note("AuthorizationPolicy", p)
	}
	gateways := must(b.gateways(t).GatewayV1().Gateways("").List(ctx, metav1.ListOptions{}))(t)
	for i := range gateways.Items {
		note("Gateway", &gateways.Items[i])
	}
	classes := must(b.gateways(t).GatewayV1().GatewayClasses().List(ctx, metav1.ListOptions{}))(t)
	for i := range classes.Items {
		note("GatewayClass", &classes.Items[i])
	}
	entries := must(b.istio.NetworkingV1().ServiceEntries("").List(ctx, metav1.ListOptions{}))(t)
	for _, e := range entries.Items {
		note("ServiceEntry", e)
	}
	return out
}

func allowNothing(name string, labels map[string]string) *securityv1.AuthorizationPolicy {
	return &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: v1beta1.AuthorizationPolicy{}}
}

// testBesideIstio: with another control plane's objects all around, what says
// our revision is ours, and nothing else is read as configuration or written.
func testBesideIstio(t *testing.T, l *lab) {
	b := &besideIstio{running: &running{lab: l, log: &logBuffer{}, whole: t, xds: loopback(t), http: loopback(t), account: l.ownAccount(t)}}
	ctx := t.Context()
	const rev = "istio.io/rev"
	ambient := map[string]string{"istio.io/dataplane-mode": "ambient"}
	mine := map[string]string{rev: "ambit"}
	gateways := l.gateways(t)

	// Istio's: its settings and root, a waypoint that a namespace uses, policies.
	must(l.client.CoreV1().ConfigMaps("istio-system").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"},
		Data: map[string]string{"mesh": "trustDomain: istio.example\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"}}, metav1.CreateOptions{}))(t)
	must(l.client.CoreV1().ConfigMaps("prod").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-ca-root-cert"}, Data: map[string]string{"root-cert.pem": "theirs"}}, metav1.CreateOptions{}))(t)
	must(l.istio.SecurityV1().AuthorizationPolicies("istio-system").Create(ctx, allowNothing("mesh-wide", nil), metav1.CreateOptions{}))(t)
	must(l.istio.SecurityV1().AuthorizationPolicies("prod").Create(ctx, allowNothing("default-revision", nil), metav1.CreateOptions{}))(t)
	must(gateways.GatewayV1().Gateways("prod").Create(ctx, waypointGateway("theirs", nil), metav1.CreateOptions{}))(t)
	addressed(t, gateways, "prod", "theirs", "10.96.8.1")
	l.label(t, "web", `{"istio.io/use-waypoint":"theirs"}`)
	// A pod of theirs in a tunnel of theirs.
	l.pod(t, "prod", "theirs-1", "node-a", "10.0.0.40", map[string]string{"app": "web"})
	l.patchPod(t, "prod", "theirs-1", `{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}`, "status")

	// Ours: a namespace that says so, and in it what says something else.
	labels := maps.Clone(ambient)
	labels[rev] = "ambit"
	labels["istio.io/use-waypoint"] = "wp"
	l.namespace(t, "ours", labels)
	pods := l.istio.SecurityV1().AuthorizationPolicies("ours")
	must(pods.Create(ctx, allowNothing("marked", mine), metav1.CreateOptions{}))(t)
	must(pods.Create(ctx, allowNothing("unmarked", nil), metav1.CreateOptions{}))(t)
	must(pods.Create(ctx, allowNothing("foreign", map[string]string{rev: "default"}), metav1.CreateOptions{}))(t)
	must(gateways.GatewayV1().Gateways("ours").Create(ctx, waypointGateway("wp", mine), metav1.CreateOptions{}))(t)
	addressed(t, gateways, "ours", "wp", "10.96.8.2")
	for name, labels := range map[string]map[string]string{"web": mine, "unmarked": nil} {
		must(l.client.CoreV1().Services("ours").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}, metav1.CreateOptions{}))(t)
	}
	l.pod(t, "ours", "web-1", "node-a", "10.0.0.41", map[string]string{"app": "web"})
	l.patchPod(t, "ours", "web-1", `{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}`, "status")

	b.versions = b.theirs(t)
	b.start(t, "--beside-istio", "--revision", "ambit")
	ztunnel := must(l.client.CoreV1().Pods("ambit-system").Get(ctx, "ztunnel-a", metav1.GetOptions{}))(t)
	b.connect(t, ztunnel)

	// What is ours works, status included.
	s := b.store.Load()
	if w := s.Workload(podUID + "ours/web-1"); w == nil || w.Protocol != mesh.ProtocolHBONE || w.TrustDomain != "" {
		t.Errorf("ours/web-1 is %+v", w)
	}
	for _, name := range []string{"web", "unmarked"} {
		if svc := s.Service("ours/" + name + ".ours.svc.cluster.local"); svc == nil || svc.Waypoint == nil || svc.Waypoint.Address.Prefix.Addr().String() != "10.96.8.2" {
			t.Errorf("ours/%s is %+v", name, svc)
		}
	}
	if got := slices.Sorted(keysOf(s)); !slices.Equal(got, []string{"ours/marked", "ours/unmarked"}) {
		t.Errorf("policies in force are %v", got)
	}
	l.says(t, "ours", "web", bound, "True", "WaypointAccepted", "ours/wp")
	eventually(t, func() error {
		ap, err := pods.Get(ctx, "marked", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(ap.Status.GetConditions()) == 0 {
			return fmt.Errorf("no condition on ours/marked")
		}
		return nil
	})

	// What is theirs is known as an address, and no more.
	if w := s.Workload(podUID + "prod/theirs-1"); w == nil || w.Protocol != mesh.ProtocolTCP || len(w.Policies) > 0 {
		t.Errorf("prod/theirs-1 is %+v", w)
	}
	if svc := s.Service(webKey); svc == nil || svc.Waypoint != nil {
		t.Errorf("prod/web is %+v", svc)
	}
	if settings, _ := s.Settings(); settings.RegistryOnly {
		t.Error("Istio's settings are taken for ours")
	}

	// A pod moves into the namespace, after which the leader has been through
	// all that it writes: nothing of theirs has changed.
	l.namespace(t, "moved", mine)
	eventually(t, func() error {
		_, err := l.client.CoreV1().ConfigMaps("moved").Get(ctx, "ambit-ca-root-cert", metav1.GetOptions{})
		return err
	})
	now := b.theirs(t)
	for name, version := range b.versions {
		if now[name] != version {
			t.Errorf("%s was written: version %s, was %s", name, now[name], version)
		}
	}
	for name := range now {
		if _, ok := b.versions[name]; !ok && !strings.HasSuffix(name, "/moved") {
			t.Errorf("%s was made", name)
		}
	}
	b.stop()
}

func keysOf(s *mesh.Snapshot) func(func(string) bool) {
	return func(yield func(string) bool) {
		for p := range s.AllPolicies() {
			if !yield(p.Key()) {
				return
			}
		}
	}
}
