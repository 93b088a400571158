package netns_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/translate"
	"github.com/ambitmesh/ambit/controller/translate/malformed"
	"istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// policyPlane is a world whose policy comes from a real API server, through
// real controllers.
type policyPlane struct {
	*world
	*plane
	client, other, server *pod
}

// reaches is one exchange with the server on a port.
func (w *policyPlane) reaches(from *pod, port uint16) error {
	c, err := from.dial(w.server.at(port))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

func (w *policyPlane) wantReached(t *testing.T, from *pod, port uint16) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s reaches port %d", from.name, port), func() error { return w.reaches(from, port) })
}

func (w *policyPlane) wantRefused(t *testing.T, from *pod, port uint16) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is refused at port %d", from.name, port), func() error {
		var timeout net.Error
		switch err := w.reaches(from, port); {
		case err == nil:
			return errors.New("it is served")
		case errors.As(err, &timeout) && timeout.Timeout():
			return err
		}
		return nil
	})
}

// TestPolicyFromTheAPIServer: what users write into an API server about policy
// is what happens to connections between two nodes.
//
//ambit:feature networkpolicy-enforced networkpolicy-named policy-dry-run policy-status bad-input-api
func TestPolicyFromTheAPIServer(t *testing.T) {
	world, p := newPlaneWorld(t)
	w := &policyPlane{world: world, plane: p}
	w.client, w.other, w.server = p.meshed(world, w.a, "client"), p.meshed(world, w.a, "other"), p.meshed(world, w.b, "server")
	for _, port := range []uint16{8080, 9090} {
		w.server.listen(port, echo)
		w.wantReached(t, w.client, port)
		w.wantReached(t, w.other, port)
	}
	t.Run("NetworkPolicy", w.networkPolicy)
	t.Run("dry run", w.dryRun)
	t.Run("malformed objects", w.malformed)
}

// enforce does what a network plugin does of a NetworkPolicy that opens 15008:
// it sees nothing else of the mesh on the wire.
func (w *policyPlane) enforce(t *testing.T, policy string, ports string) {
	nat(t, w.b.ns, fmt.Sprintf(`table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	chain forward { type filter hook forward priority 0; ct state established,related accept
		ip daddr %[2]s tcp dport { %[3]s } accept
		ip daddr %[2]s meta l4proto tcp reject with tcp reset
	}
}
`, policy, w.server.addr, ports))
}

func (w *policyPlane) networkPolicy(t *testing.T) {
	client := func(port int32) netv1.NetworkPolicyIngressRule {
		return netv1.NetworkPolicyIngressRule{
			Ports: []netv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(port))}},
			From:  []netv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}},
		}
	}
	np := &netv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "server"}, Spec: netv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
		Ingress:     []netv1.NetworkPolicyIngressRule{client(8080), {Ports: []netv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(15008))}}}},
	}}
	held := w.other.mustDial(t, w.server.at(8080))
	pingPong(t, held, "before the policy")
	kept := w.client.mustDial(t, w.server.at(8080))
	pingPong(t, kept, "before the policy")

	must(w.plane.client.NetworkingV1().NetworkPolicies("demo").Create(w.ctx, np, metav1.CreateOptions{}))(t)
	w.enforce(t, "server", "15008")
	w.wantRefused(t, w.client, 9090)
	w.wantRefused(t, w.other, 8080)
	w.wantReached(t, w.client, 8080)
	for _, from := range []*pod{w.client, w.other} {
		w.b.zt.wantLog(t, `src.workload="`+from.name+`"`, `reason="networkpolicy_denied"`, "explicitly denied by: networkpolicy demo/server")
	}
	if got := w.b.metric(t, "ambit_connections_failed_total", `reason="networkpolicy_denied"`); got < 2 {
		t.Errorf("%v connections counted as refused", got)
	}
	// It is policy, so it holds for open connections too, and only for those it
	// does not admit.
	if _, err := held.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that is not admitted goes on: %v", err)
	}
	pingPong(t, kept, "through the policy")

	// Peers are followed.
	label := func(app string) {
		patch := fmt.Sprintf(`{"metadata":{"labels":{"app":%q}}}`, app)
		must(w.plane.client.CoreV1().Pods("demo").Patch(w.ctx, "other", types.MergePatchType, []byte(patch), metav1.PatchOptions{}))(t)
	}
	label("client")
	w.wantReached(t, w.other, 8080)
	label("other")
	w.wantRefused(t, w.other, 8080)

	// The plugin of a policy without 15008 lets nothing of the mesh through, and
	// whoever calls is told what it may be.
	if err := w.plane.client.NetworkingV1().NetworkPolicies("demo").Delete(w.ctx, "server", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.wantReached(t, w.other, 9090)
	nat(t, w.b.ns, "delete table ip server\n")
}

func (w *policyPlane) dryRun(t *testing.T) {
	ap := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "rehearsal", Annotations: map[string]string{"istio.io/dry-run": "true"}}}
	ap.Spec.Action = v1beta1.AuthorizationPolicy_DENY
	ap.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": "server"}}
	ap.Spec.Rules = []*v1beta1.Rule{{From: []*v1beta1.Rule_From{{Source: &v1beta1.Source{ServiceAccounts: []string{"other"}}}}}}
	w.post(t, w.b, "/logging?level=policy=debug")
	policies := w.istio.SecurityV1().AuthorizationPolicies("demo")
	must(policies.Create(w.ctx, ap, metav1.CreateOptions{}))(t)
	w.wantCondition(t, "rehearsal", "ZtunnelAccepted", "True", "Accepted", "dry run")
	eventually(t, "what the policy would do is in the log", func() error {
		if err := w.reaches(w.other, 8080); err != nil {
			return err // it is only tried out
		}
		if _, ok := w.b.zt.log("dry-run: deny policy match", `policy="demo/rehearsal"`); !ok {
			return errors.New("not in the log")
		}
		return nil
	})
	must(policies.Patch(w.ctx, "rehearsal", types.MergePatchType, []byte(`{"metadata":{"annotations":{"istio.io/dry-run":"false"}}}`), metav1.PatchOptions{}))(t)
	w.wantRefused(t, w.other, 8080)
	w.wantReached(t, w.client, 8080)
	w.wantCondition(t, "rehearsal", "ZtunnelAccepted", "True", "Accepted", "attached to ztunnel")
	if err := policies.Delete(w.ctx, "rehearsal", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.wantReached(t, w.other, 8080)
}

// post asks a ztunnel's admin interface to do something.
func (w *policyPlane) post(t *testing.T, n *node, path string) {
	t.Helper()
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, a string) (net.Conn, error) {
			return n.ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(a), netns.SocketOptions{})
		}}}
	r := must(c.Post("http://127.0.0.1:15000"+path, "", nil))(t)
	defer r.Body.Close()
	if body := must(io.ReadAll(r.Body))(t); r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s", path, r.Status, body)
	}
}

func (w *policyPlane) wantCondition(t *testing.T, policy, kind, status, reason, message string) {
	t.Helper()
	eventually(t, policy+" says "+kind, func() error {
		ap, err := w.istio.SecurityV1().AuthorizationPolicies("demo").Get(w.ctx, policy, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range ap.Status.Conditions {
			if c.Type != kind {
				continue
			}
			if c.Status == status && c.Reason == reason && strings.Contains(c.Message, message) && c.ObservedGeneration == ap.Generation {
				return nil
			}
			return fmt.Errorf("%s %s: %s", c.Status, c.Reason, c.Message)
		}
		return fmt.Errorf("has not: %v", ap.Status.Conditions)
	})
}

// malformed puts into the API server what it takes of objects with an odd
// field, all at once, and changes nothing else by that.
func (w *policyPlane) malformed(t *testing.T) {
	files := must(filepath.Glob("../../deploy/crds/istio/*.yaml"))(t)
	kinds := must(malformed.Definitions(files...))(t)
	kinds = append(kinds, must(malformed.Core())(t)...)
	text := must(os.ReadFile("../../controller/translate/testdata/malformed/seeds.yaml"))(t)
	p := w.plane
	p.namespace("ns", nil)
	must(p.client.CoreV1().ServiceAccounts("ns").Create(p.ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))(t)
	made, wrong := 0, map[string]*translate.Condition{}
	cfg := translate.Config{ClusterID: "test", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}
	for i, doc := range strings.Split(string(text), "\n---\n") {
		var seed map[string]any
		if err := yaml.Unmarshal([]byte(doc), &seed); err != nil {
			t.Fatal(err)
		}
		path := resources[seed["kind"].(string)]
		if path == "" {
			continue
		}
		for _, k := range kinds {
			if k.Kind != seed["kind"] {
				continue
			}
			accepted, refusal := 0, error(nil)
			cases := k.Cases(seed)
			for j := range cases {
				c := &cases[j]
				if accepted == perKind {
					break
				}
				// Spread over the fields, always with what no client reads whole.
				special := strings.Contains(c.Path, "portLevelMtls") && strings.Contains(c.What, "key")
				if strings.HasPrefix(c.Path, "status") || !special && j%(1+len(cases)/(3*perKind)) != 0 {
					continue
				}
				name := fmt.Sprintf("odd-%d-%d", i, j)
				body := renamed(t, c, name)
				err := p.client.Discovery().RESTClient().Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(body).Do(p.ctx).Error()
				switch {
				case err == nil:
				case apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsForbidden(err):
					refusal = err // the API server's own business
					continue
				default:
					t.Fatalf("%s %s: %v", c.Path, c.What, err)
				}
				accepted++
				if k.Kind == "AuthorizationPolicy" {
					ap := &securityv1.AuthorizationPolicy{}
					if err := json.Unmarshal(body, ap); err != nil {
						t.Fatal(err)
					}
					wrong[name] = cfg.AuthorizationPolicy(ap).Condition
				}
			}
			if made += accepted; accepted == 0 {
				t.Errorf("the API server takes no odd %s: %v", k.Kind, refusal)
			}
		}
	}
	t.Logf("%d odd objects", made)
	eventually(t, "every odd policy has its status", func() error {
		all, err := w.istio.SecurityV1().AuthorizationPolicies("ns").List(p.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		have := map[string]string{}
		for _, ap := range all.Items {
			for _, c := range ap.Status.Conditions {
				if c.Type == translate.ConditionZtunnelAccepted {
					have[ap.Name] = c.Reason
				}
			}
		}
		for name, want := range wrong {
			if reason := have[name]; want != nil && reason != want.Reason {
				return fmt.Errorf("%s: %q, want %+v", name, reason, want)
			}
		}
		return nil
	})
	// Controllers that start among them serve, and what is new is in force: of
	// each kind, so that none is hidden by an odd one.
	for _, r := range p.replicas {
		r.end(syscall.SIGKILL)
		r.start()
	}
	deny := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "after"}}
	deny.Spec.Action = v1beta1.AuthorizationPolicy_DENY
	deny.Spec.Rules = []*v1beta1.Rule{{From: []*v1beta1.Rule_From{{Source: &v1beta1.Source{ServiceAccounts: []string{"other"}}}}}}
	must(w.istio.SecurityV1().AuthorizationPolicies("demo").Create(p.ctx, deny, metav1.CreateOptions{}))(t)
	w.wantRefused(t, w.other, 8080)
	w.wantReached(t, w.client, 8080)
	strict := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Name: "after"}}
	strict.Spec.Mtls = &v1beta1.PeerAuthentication_MutualTLS{Mode: v1beta1.PeerAuthentication_MutualTLS_STRICT}
	stranger := w.newPod(w.a, "stranger")
	w.wantReached(t, stranger, 8080)
	must(w.istio.SecurityV1().PeerAuthentications("demo").Create(p.ctx, strict, metav1.CreateOptions{}))(t)
	w.wantRefused(t, stranger, 8080)
	w.wantReached(t, w.client, 8080)
}

// perKind is how many odd objects of a kind are made.
const perKind = 12

// resources are where objects of a kind are made.
var resources = map[string]string{
	"Pod":                 "/api/v1/namespaces/ns/pods",
	"Service":             "/api/v1/namespaces/ns/services",
	"EndpointSlice":       "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices",
	"NetworkPolicy":       "/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies",
	"AuthorizationPolicy": "/apis/security.istio.io/v1/namespaces/ns/authorizationpolicies",
	"PeerAuthentication":  "/apis/security.istio.io/v1/namespaces/ns/peerauthentications",
	"ServiceEntry":        "/apis/networking.istio.io/v1/namespaces/ns/serviceentries",
	"WorkloadEntry":       "/apis/networking.istio.io/v1/namespaces/ns/workloadentries",
}

// renamed is the object under another name, with nothing that only one object
// can have.
func renamed(t *testing.T, c *malformed.Case, name string) []byte {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal(c.JSON(), &o); err != nil {
		t.Fatal(err)
	}
	meta := o["metadata"].(map[string]any)
	meta["name"], meta["namespace"] = name, "ns"
	delete(meta, "uid")
	delete(meta, "creationTimestamp")
	if spec, ok := o["spec"].(map[string]any); ok && o["kind"] == "Service" && !strings.HasPrefix(c.Path, "spec.cluster") {
		delete(spec, "clusterIP")
		delete(spec, "clusterIPs")
		delete(spec, "ipFamilies")
		delete(spec, "ipFamilyPolicy")
	} else if ok && o["kind"] == "Pod" {
		delete(spec, "serviceAccountName") // that there is none
		spec["automountServiceAccountToken"] = false
	}
	body, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
