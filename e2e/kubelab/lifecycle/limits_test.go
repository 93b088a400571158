package lifecycle

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	authnv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/ambitmesh/ambit/e2e/kubelab"
	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

// api is a real API server without nodes: every object is the test's.
type api struct{ *ambitlab.Lab }

func (a api) node(t *testing.T, name string) {
	t.Helper()
	if _, err := a.Client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (a api) pod(t *testing.T, namespace, name, account, node, ip string) *corev1.Pod {
	t.Helper()
	pods := a.Client.CoreV1().Pods(namespace)
	p, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}, Annotations: map[string]string{"owner": "somebody"}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}, metav1.CreateOptions{})
	if err == nil {
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
		p, err = pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// as is a client with the token of an account, bound to pod as the kubelet
// mounts it, or to nothing.
func (a api) as(t *testing.T, account string, pod *corev1.Pod) kubernetes.Interface {
	t.Helper()
	r := &authnv1.TokenRequest{}
	if pod != nil {
		r.Spec.BoundObjectRef = &authnv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	got, err := a.Client.CoreV1().ServiceAccounts(ambitlab.System).CreateToken(t.Context(), account, r, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rc := rest.AnonymousClientConfig(a.REST)
	rc.BearerToken = got.Status.Token
	return kubernetes.NewForConfigOrDie(rc)
}

// TestAgentLimits is the ValidatingAdmissionPolicy of the node agents: what
// they do every day passes, what a thief of a token would like does not.
//
//ambit:feature security-agent-limits
func TestAgentLimits(t *testing.T) {
	a := api{ambitlab.Bare(t, kubelab.Options{Name: "limits", APIOnly: true})}
	for _, f := range []string{"namespace.yaml", "cni-node-rbac.yaml", "cni-node-limits.yaml"} {
		a.Kubectl(t, "apply", "-f", filepath.Join(a.Root, "deploy/ambit", f))
	}
	if _, err := a.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Client.CoreV1().ServiceAccounts("shop").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "web"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a.node(t, "node1")
	a.node(t, "node2")
	agent1 := a.pod(t, ambitlab.System, "agent-1", "ambit-cni-node", "node1", "172.30.0.11")
	a.pod(t, "shop", "mine", "web", "node1", "10.244.1.5")
	a.pod(t, "shop", "theirs", "web", "node2", "10.244.2.5")
	bound, stolen := a.as(t, "ambit-cni-node", agent1), a.as(t, "ambit-cni-node", nil)

	patch := func(c kubernetes.Interface, pod, body string) error {
		_, err := c.CoreV1().Pods("shop").Patch(t.Context(), pod, types.MergePatchType, []byte(body), metav1.PatchOptions{}, "status")
		return err
	}
	note := func(key, value string) string {
		if value != "null" {
			value = `"` + value + `"`
		}
		return `{"metadata":{"annotations":{"` + key + `":` + value + `}}}`
	}
	// The API server takes a new policy up after a moment.
	ambitlab.Until(t, "the policy to be in force", func() (string, bool) {
		err := patch(bound, "theirs", note(ambitlab.Redirection, ""))
		return fmt.Sprint("not refused: ", err), apierrors.IsForbidden(err)
	})
	for _, c := range []struct {
		name      string
		client    kubernetes.Interface
		pod, body string
		refused   string // "" passes
	}{
		{"captured", bound, "mine", note(ambitlab.Redirection, "enabled"), ""},
		{"why not", bound, "mine", note("ambitmesh.io/redirection-reason", "because"), ""},
		{"released", bound, "mine", note(ambitlab.Redirection, "null"), ""},
		{"older connections", bound, "mine", note("ambitmesh.io/older-connections", "3"), ""},
		{"another node's pod", bound, "theirs", note(ambitlab.Redirection, "enabled"), "own node"},
		{"a token that names no node", stolen, "mine", note(ambitlab.Redirection, "enabled"), "own node"},
		{"the pod's address", bound, "mine", `{"status":{"podIP":"10.244.1.66","podIPs":[{"ip":"10.244.1.66"}]}}`, "status itself"},
		{"readiness", bound, "mine", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status itself"},
		{"its phase, beside what is allowed", bound, "mine", `{"metadata":{"annotations":{"` + ambitlab.Redirection + `":"enabled"}},"status":{"phase":"Succeeded"}}`, "status itself"},
		{"its node's address", bound, "mine", `{"status":{"hostIP":"172.30.0.66"}}`, "status itself"},
		{"why it is as it is", bound, "mine", `{"status":{"reason":"Evicted","message":"go away"}}`, "status itself"},
		{"its containers", bound, "mine", `{"status":{"containerStatuses":[{"name":"c","ready":true,"image":"none","imageID":"none","restartCount":0}]}}`, "status itself"},
		{"another's annotation", bound, "mine", note("owner", "me"), "only write annotations"},
		{"a new annotation", bound, "mine", note("sidecar.istio.io/status", "x"), "only write annotations"},
		{"another annotation of Istio's", bound, "mine", note("ambient.istio.io/other", "x"), "only write annotations"},
		{"an annotation that begins like ours", bound, "mine", note("ambitmesh.io.example.com/x", "y"), "only write annotations"},
		{"taking another's annotation away", bound, "mine", note("owner", "null"), "only remove annotations"},
		{"a label", bound, "mine", `{"metadata":{"labels":{"app":"database"}}}`, "labels"},
		{"a finalizer", bound, "mine", `{"metadata":{"finalizers":["example.com/stay"]}}`, "finalizers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := patch(c.client, c.pod, c.body)
			switch {
			case c.refused == "" && err != nil:
				t.Error(err)
			case c.refused != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), c.refused)):
				t.Errorf("want a refusal about %q, got %v", c.refused, err)
			}
		})
	}
	// The kubelet and everybody else go on as before.
	if err := patch(a.Client, "theirs", `{"status":{"podIP":"10.244.2.6","podIPs":[{"ip":"10.244.2.6"}]}}`); err != nil {
		t.Errorf("the policy is in the way of others: %v", err)
	}
	// And the agent may not reach the pod by another door.
	_, err := bound.CoreV1().Pods("shop").Patch(t.Context(), "mine", types.MergePatchType, []byte(note(ambitlab.Redirection, "enabled")), metav1.PatchOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("patch of the pod itself: %v", err)
	}
}
