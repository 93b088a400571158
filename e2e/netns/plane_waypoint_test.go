package netns_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
	"sigs.k8s.io/yaml"
)

// gateways installs the Gateway API and is a client for it.
func (p *plane) gateways(t *testing.T) gatewayclient.Interface {
	t.Helper()
	files := must(filepath.Glob("../../deploy/crds/gateway-api/*_gateway*.yaml"))(t)
	for _, f := range files {
		body := must(yaml.YAMLToJSON(must(os.ReadFile(f))(t)))(t)
		err := p.client.Discovery().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
			SetHeader("Content-Type", "application/json").Body(body).Do(p.ctx).Error()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatalf("%s: %v", f, err)
		}
	}
	rc := must(clientcmd.BuildConfigFromFlags("", p.kubeconfig))(t)
	rc.QPS = -1
	return must(gatewayclient.NewForConfig(rc))(t)
}

// testWaypoint: from the label on a Service in the API server to a connection
// that goes through the waypoint, and from the mesh's settings to one that is
// refused. The waypoint is a captured pod that passes on what it is handed, so
// every certificate is the real CA's.
func (p *plane) testWaypoint(t *testing.T, w *world, client, server *pod) {
	gateways := p.gateways(t).GatewayV1().Gateways("demo")
	way := w.newPod(w.b, "way")
	must(p.pod("demo", "way", "way", w.b.name, way.addr.String(),
		map[string]string{"gateway.networking.k8s.io/gateway-name": "way"}, map[string]string{"ambient.istio.io/redirection": "enabled"}))(t)
	w.b.agent.enrol(way)
	var passed atomic.Int32
	way.listen(8090, func(c *net.TCPConn) {
		out, err := way.dial(server.at(9000))
		if err != nil {
			return
		}
		defer out.Close()
		passed.Add(1)
		var wg sync.WaitGroup
		wg.Go(func() {
			io.Copy(out, c)
			out.CloseWrite()
		})
		io.Copy(c, out)
		c.CloseWrite()
		wg.Wait()
	})
	service := func(name string, selector map[string]string, port, target int) string {
		t.Helper()
		svc := must(p.client.CoreV1().Services("demo").Create(p.ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Name: "tcp", Port: int32(port), TargetPort: intstr.FromInt32(int32(target))}}}}, metav1.CreateOptions{}))(t)
		return fmt.Sprintf("%s:%d", svc.Spec.ClusterIP, port)
	}
	to := service("fronted", map[string]string{"app": server.name}, 80, 9000)
	service("way", map[string]string{"gateway.networking.k8s.io/gateway-name": "way"}, 15008, 15008)
	label := func(labels string) {
		t.Helper()
		must(p.client.CoreV1().Services("demo").Patch(p.ctx, "fronted", types.MergePatchType, []byte(`{"metadata":{"labels":`+labels+`}}`), metav1.PatchOptions{}))(t)
	}
	says := func(kind, status, reason string) {
		t.Helper()
		eventuallyLong(t, "condition "+kind, func() error {
			svc, err := p.client.CoreV1().Services("demo").Get(p.ctx, "fronted", metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, c := range svc.Status.Conditions {
				if c.Type == kind && string(c.Status) == status && c.Reason == reason {
					return nil
				}
			}
			return fmt.Errorf("conditions %+v", svc.Status.Conditions)
		})
	}
	// through waits until an exchange by the service does, or does not, go
	// through the waypoint: the client's node learns of a change a moment later.
	through := func(want bool) {
		t.Helper()
		eventuallyLong(t, fmt.Sprintf("through the waypoint: %t", want), func() error {
			before := passed.Load()
			if err := converse(client, to); err != nil {
				return err
			}
			if got := passed.Load() > before; got != want {
				return fmt.Errorf("through the waypoint: %t", got)
			}
			return nil
		})
	}
	through(false)
	label(`{"istio.io/use-waypoint":"way"}`)
	says("istio.io/WaypointBound", "False", "WaypointIsNotReady")
	through(false)                                  // which is not there yet
	eventuallyLong(t, "the Gateway", func() error { // the API server serves a new type after a moment
		_, err := gateways.Create(p.ctx, &gatewayv1.Gateway{
			ObjectMeta: metav1.ObjectMeta{Name: "way", Annotations: map[string]string{"ambient.istio.io/waypoint-inbound-binding": "NONE/8090"}},
			Spec:       gatewayv1.GatewaySpec{GatewayClassName: "sandwich", Listeners: []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}}},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	eventuallyLong(t, "the Gateway's address", func() error {
		gw, err := gateways.Get(p.ctx, "way", metav1.GetOptions{})
		if err != nil {
			return err
		}
		hostname := gatewayv1.HostnameAddressType
		gw.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Type: &hostname, Value: "way.demo.svc.cluster.local"}}
		_, err = gateways.UpdateStatus(p.ctx, gw, metav1.UpdateOptions{})
		return err
	})
	says("istio.io/WaypointBound", "True", "WaypointAccepted")
	through(true)

	label(`{"ambitmesh.io/require-waypoint":"true"}`)
	says("ambitmesh.io/WaypointRequired", "True", "Enforced")
	eventuallyLong(t, "nobody gets past it", func() error {
		if err := converse(client, server.at(9000)); err == nil {
			return fmt.Errorf("%s reached the pod directly", client.name)
		}
		return nil
	})
	w.b.zt.wantLog(t, `src.identity="`+client.id().String()+`"`, `reason="waypoint_required"`)
	through(true)
	label(`{"ambitmesh.io/require-waypoint":null,"istio.io/use-waypoint":null}`)
	through(false)
	p.testRegistryOnly(t, w, client)
}

// testRegistryOnly: from the ConfigMap to the next connection.
func (p *plane) testRegistryOnly(t *testing.T, w *world, client *pod) {
	outside := w.newPod(w.b, "outside") // which the API server does not know
	outside.listen(9000, echo)
	eventuallyLong(t, "the world outside", func() error { return converse(client, outside.at(9000)) })
	maps := p.client.CoreV1().ConfigMaps("istio-system")
	must(maps.Create(p.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"}, Data: map[string]string{"mesh": "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"}}, metav1.CreateOptions{}))(t)
	eventuallyLong(t, "REGISTRY_ONLY", func() error {
		if err := converse(client, outside.at(9000)); err == nil {
			return fmt.Errorf("%s still gets out", client.name)
		}
		return nil
	})
	w.a.zt.wantLog(t, `reason="not_registered"`, outside.at(9000))
	must(0, maps.Delete(p.ctx, "istio", metav1.DeleteOptions{}))(t)
	eventuallyLong(t, "ALLOW_ANY again", func() error { return converse(client, outside.at(9000)) })
}

// converse is one short one.
func converse(from *pod, to string) error {
	c, err := from.dial(to)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "ping"); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && !strings.HasPrefix(string(b), "ping") {
		err = fmt.Errorf("answer %q", b)
	}
	return err
}
