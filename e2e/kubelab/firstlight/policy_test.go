package firstlight

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

var policies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

func policyDenies(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	open := s.Hold("client", "server:9090", ambitlab.Token("held"))
	s.Policy("AuthorizationPolicy", "no-client", `{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/`+s.Name+`/sa/client]}}]}]}`)
	s.Fails("client", "http://server/")
	s.Fails("client-beside", "http://server/")
	line := l.Logged(t, "ztunnel", "node2", `direction="inbound"`, `src.identity="`+s.ID("client")+`"`, `reason="policy_denied"`)
	if !strings.Contains(line, s.Name+"/no-client") {
		t.Errorf("the refusal does not name the policy: %s", line)
	}
	ambitlab.Until(t, "a connection that the policy would deny to be closed", func() (string, bool) {
		select {
		case <-open.Done():
			return "", true
		default:
			return "it runs on", false
		}
	})
	l.Logged(t, "ztunnel", "node2", `src.namespace="`+s.Name+`"`, `reason="policy_changed"`)
	if v := s.Failures(t, "node2", "destination", "policy_denied"); v == 0 {
		t.Error("no refusal is counted in ambit_connections_failed_total")
	}
	s.Kubectl(t, "delete", "authorizationpolicy", "-n", s.Name, "no-client")
	s.Works("client", "http://server/")
	s.Works("client-beside", "http://server/")
}

func strict(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	out := l.SpaceNamed(t, s.Name+"-plain", nil)
	out.Pod("client", "node1", nil)
	out.Pod("client-beside", "node2", nil)
	out.Ready("client", "client-beside")
	s.Meshed("client", "server")
	to := "http://server." + s.Name + "/"
	out.Works("client", to)
	s.Policy("PeerAuthentication", "strict", `{mtls: {mode: STRICT}}`)
	out.Fails("client", to)
	out.Fails("client-beside", to)
	l.Logged(t, "ztunnel", "node2", `direction="inbound"`, `dst.namespace="`+s.Name+`"`, `reason="policy_denied"`, "src.addr="+out.Now("client").Status.PodIP+":")
	s.Works("client", "http://server/")
	s.Works("client-beside", "http://server/")
	// The kubelet's probes carry no identity and pass.
	if !ambitlab.IsReady(s.Now("server")) {
		t.Error("the server is not ready under STRICT: its probes are refused")
	}
	s.Kubectl(t, "delete", "peerauthentication", "-n", s.Name, "strict")
	out.Works("client", to)
}

// badPolicy: the version that cannot be honoured is named with its field, and
// the last good one goes on.
func badPolicy(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	good := `{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/` + s.Name + `/sa/client]}}]}]}`
	bad := `{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}]}`
	s.Policy("AuthorizationPolicy", "cidr", good)
	s.Fails("client", "http://server/")
	s.Policy("AuthorizationPolicy", "cidr", bad)
	var text string
	ambitlab.Until(t, "a condition that names the field", func() (string, bool) {
		p, err := l.Dynamic.Resource(policies).Namespace(s.Name).Get(t.Context(), "cidr", metav1.GetOptions{})
		if err != nil {
			return err.Error(), false
		}
		conditions, _, _ := unstructured.NestedSlice(p.Object, "status", "conditions")
		text = fmt.Sprint(conditions)
		return text, strings.Contains(text, "ipBlocks") && strings.Contains(text, "10.0.0.0/99") && strings.Contains(text, "False")
	})
	t.Log(text)
	if _, err := s.Try("client", "http://server/"); err == nil {
		t.Error("the last good version of the policy is not enforced any more")
	}
	s.Policy("AuthorizationPolicy", "cidr", strings.ReplaceAll(bad, "10.0.0.0/99", "192.0.2.0/24"))
	s.Works("client", "http://server/")
	ambitlab.Until(t, "the condition to say that the policy is enforced", func() (string, bool) {
		p, err := l.Dynamic.Resource(policies).Namespace(s.Name).Get(t.Context(), "cidr", metav1.GetOptions{})
		if err != nil {
			return err.Error(), false
		}
		conditions, _, _ := unstructured.NestedSlice(p.Object, "status", "conditions")
		return fmt.Sprint(conditions), !strings.Contains(fmt.Sprint(conditions), "10.0.0.0/99")
	})
}
