package firstlight

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var policies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

func (s *space) policy(kind, name, spec string) {
	s.t.Helper()
	s.kubectl(s.t, fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: %s\n", kind, name, s.name, spec), "apply", "-f", "-")
}

func policyDenies(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	open := s.hold("client", "server:9090", token("held"))
	s.policy("AuthorizationPolicy", "no-client", `{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/`+s.name+`/sa/client]}}]}]}`)
	s.fails("client", "http://server/")
	s.fails("client-beside", "http://server/")
	line := l.logged(t, "ztunnel", "node2", `direction="inbound"`, `src.identity="`+s.id("client")+`"`, `reason="policy_denied"`)
	if !strings.Contains(line, s.name+"/no-client") {
		t.Errorf("the refusal does not name the policy: %s", line)
	}
	until(t, "a connection that the policy would deny to be closed", func() (string, bool) {
		select {
		case <-open.done:
			return "", true
		default:
			return "it runs on", false
		}
	})
	l.logged(t, "ztunnel", "node2", `src.namespace="`+s.name+`"`, `reason="policy_changed"`)
	if v := s.failures("node2", "destination", "policy_denied"); v == 0 {
		t.Error("no refusal is counted in ambit_connections_failed_total")
	}
	s.kubectl(t, "", "delete", "authorizationpolicy", "-n", s.name, "no-client")
	s.works("client", "http://server/")
	s.works("client-beside", "http://server/")
}

// failures reads ambit_connections_failed_total of a node's ztunnel.
func (s *space) failures(node, reporter, reason string) float64 {
	s.t.Helper()
	pod := s.component(s.t, "ztunnel", node).Name
	b, err := s.client.CoreV1().Pods(system).ProxyGet("http", pod, "15020", "/metrics", nil).DoRaw(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	sum := 0.0
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "ambit_connections_failed_total{") || !strings.Contains(line, `reporter="`+reporter+`"`) || !strings.Contains(line, `reason="`+reason+`"`) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, '}')+1:], &v); err != nil {
			s.t.Fatalf("%s: %v", line, err)
		}
		sum += v
	}
	return sum
}

func strict(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	out := &space{lab: l, t: t, name: s.name + "-plain"}
	out.create(nil)
	out.pod("client", "node1", nil)
	out.pod("client-beside", "node2", nil)
	out.ready("client", "client-beside")
	s.meshed("client", "server")
	to := "http://server." + s.name + "/"
	out.works("client", to)
	s.policy("PeerAuthentication", "strict", `{mtls: {mode: STRICT}}`)
	out.fails("client", to)
	out.fails("client-beside", to)
	l.logged(t, "ztunnel", "node2", `direction="inbound"`, `dst.namespace="`+s.name+`"`, `reason="policy_denied"`, "src.addr="+out.get("client").Status.PodIP+":")
	s.works("client", "http://server/")
	s.works("client-beside", "http://server/")
	// The kubelet's probes carry no identity and pass.
	if !ready(s.get("server")) {
		t.Error("the server is not ready under STRICT: its probes are refused")
	}
	s.kubectl(t, "", "delete", "peerauthentication", "-n", s.name, "strict")
	out.works("client", to)
}

// badPolicy: the version that cannot be honoured is named with its field, and
// the last good one goes on.
func badPolicy(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.meshed("client", "server")
	good := `{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/` + s.name + `/sa/client]}}]}]}`
	bad := `{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}]}`
	s.policy("AuthorizationPolicy", "cidr", good)
	s.fails("client", "http://server/")
	s.policy("AuthorizationPolicy", "cidr", bad)
	var text string
	until(t, "a condition that names the field", func() (string, bool) {
		p, err := l.dynamic.Resource(policies).Namespace(s.name).Get(t.Context(), "cidr", metav1.GetOptions{})
		if err != nil {
			return err.Error(), false
		}
		conditions, _, _ := unstructured.NestedSlice(p.Object, "status", "conditions")
		text = fmt.Sprint(conditions)
		return text, strings.Contains(text, "ipBlocks") && strings.Contains(text, "10.0.0.0/99") && strings.Contains(text, "False")
	})
	t.Log(text)
	if _, err := s.try("client", "http://server/"); err == nil {
		t.Error("the last good version of the policy is not enforced any more")
	}
	s.policy("AuthorizationPolicy", "cidr", strings.ReplaceAll(bad, "10.0.0.0/99", "192.0.2.0/24"))
	s.works("client", "http://server/")
	until(t, "the condition to say that the policy is enforced", func() (string, bool) {
		p, err := l.dynamic.Resource(policies).Namespace(s.name).Get(t.Context(), "cidr", metav1.GetOptions{})
		if err != nil {
			return err.Error(), false
		}
		conditions, _, _ := unstructured.NestedSlice(p.Object, "status", "conditions")
		return fmt.Sprint(conditions), !strings.Contains(fmt.Sprint(conditions), "10.0.0.0/99")
	})
}
