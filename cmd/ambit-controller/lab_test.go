package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authnv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	istioclient "istio.io/client-go/pkg/clientset/versioned"
)

// lab is a real kube-apiserver without controllers: every object in it is made
// by the test.
type lab struct {
	kubeconfig string
	client     kubernetes.Interface
	istio      istioclient.Interface
}

func newLab(t *testing.T) *lab {
	t.Helper()
	program := os.Getenv("AMBIT_KUBELAB")
	if program == "" {
		program, _ = exec.LookPath("kubelab")
	}
	switch {
	case program == "":
		t.Skip("needs a kube-apiserver: AMBIT_KUBELAB is not set and kubelab is not in PATH")
	case os.Getuid() != 0:
		t.Skip("kubelab needs root")
	}
	name := fmt.Sprintf("controller%d", os.Getpid())
	t.Cleanup(func() {
		if out, err := exec.Command(program, "down", "--name", name).CombinedOutput(); err != nil {
			t.Errorf("kubelab down: %v\n%s", err, out)
		}
	})
	var stderr bytes.Buffer
	up := exec.Command(program, "up", "--api-only", "--name", name)
	up.Stderr = &stderr
	out, err := up.Output()
	if err != nil {
		t.Fatalf("kubelab up: %v\n%s", err, stderr.String())
	}
	_, path, ok := strings.Cut(string(out), "KUBECONFIG=")
	if !ok {
		t.Fatalf("kubelab up printed no KUBECONFIG: %q", out)
	}
	l := &lab{kubeconfig: strings.TrimSpace(path)}
	rc, err := clientcmd.BuildConfigFromFlags("", l.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	rc.QPS = -1
	l.client = must(kubernetes.NewForConfig(rc))(t)
	l.istio = must(istioclient.NewForConfig(rc))(t)
	return l
}

// must turns a call's error into the end of the test.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (l *lab) installCRDs(t *testing.T) {
	t.Helper()
	l.installTypes(t, "../../deploy/crds/istio/*.yaml")
}

func (l *lab) installTypes(t *testing.T, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs like %s: %v", pattern, err)
	}
	for _, f := range files {
		text := must(os.ReadFile(f))(t)
		err := l.client.Discovery().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
			SetHeader("Content-Type", "application/json").Body(must(yaml.YAMLToJSON(text))(t)).Do(t.Context()).Error()
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
	}
}

// leastPrivilege applies the shipped RBAC of the controller and returns the
// path of a kubeconfig with nothing but that.
func (l *lab) leastPrivilege(t *testing.T) string {
	t.Helper()
	text := must(os.ReadFile("../../deploy/ambit/controller-rbac.yaml"))(t)
	const rbac = "/apis/rbac.authorization.k8s.io/v1"
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var o struct {
			Kind     string
			Metadata struct{ Namespace string }
		}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		paths := map[string]string{
			"ServiceAccount":     "/api/v1/namespaces/" + o.Metadata.Namespace + "/serviceaccounts",
			"ClusterRole":        rbac + "/clusterroles",
			"ClusterRoleBinding": rbac + "/clusterrolebindings",
			"Role":               rbac + "/namespaces/" + o.Metadata.Namespace + "/roles",
			"RoleBinding":        rbac + "/namespaces/" + o.Metadata.Namespace + "/rolebindings",
		}
		err := l.client.Discovery().RESTClient().Post().AbsPath(paths[o.Kind]).
			SetHeader("Content-Type", "application/json").Body(must(yaml.YAMLToJSON([]byte(doc)))(t)).Do(t.Context()).Error()
		if err != nil {
			t.Fatalf("%s: %v", o.Kind, err)
		}
	}
	return l.ownAccount(t)
}

// ownAccount is a kubeconfig of the controller's account.
func (l *lab) ownAccount(t *testing.T) string {
	t.Helper()
	token := must(l.client.CoreV1().ServiceAccounts("ambit-system").CreateToken(t.Context(), "ambit-controller", &authnv1.TokenRequest{}, metav1.CreateOptions{}))(t)
	c := must(clientcmd.LoadFromFile(l.kubeconfig))(t)
	for _, u := range c.AuthInfos {
		u.ClientCertificateData, u.ClientKeyData, u.Token = nil, nil, token.Status.Token
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func (l *lab) namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	_, err := l.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) node(t *testing.T, name, zone string) {
	t.Helper()
	_, err := l.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// pod makes a pod that is bound to node and ready at ip, and its account.
func (l *lab) pod(t *testing.T, namespace, name, node, ip string, labels map[string]string) *corev1.Pod {
	t.Helper()
	_, err := l.client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account(name)}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	pods := l.client.CoreV1().Pods(namespace)
	p := must(pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: account(name),
			Containers: []corev1.Container{{Name: "c", Image: "none", Ports: []corev1.ContainerPort{{Name: "main", ContainerPort: 8080}}}},
		},
	}, metav1.CreateOptions{}))(t)
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	return must(pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{}))(t)
}

// account of a pod "web-1" is "web".
func account(pod string) string {
	name, _, _ := strings.Cut(pod, "-")
	return name
}

func (l *lab) patchPod(t *testing.T, namespace, name, patch string, subresource ...string) {
	t.Helper()
	_, err := l.client.CoreV1().Pods(namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, subresource...)
	if err != nil {
		t.Fatal(err)
	}
}

// token is a ServiceAccount token bound to pod, as kubelet mounts it.
func (l *lab) token(pod *corev1.Pod) (string, error) {
	r, err := l.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(context.Background(), pod.Spec.ServiceAccountName, &authnv1.TokenRequest{
		Spec: authnv1.TokenRequestSpec{
			Audiences:      []string{"istio-ca"},
			BoundObjectRef: &authnv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return r.Status.Token, nil
}

// patience is how long a condition may take on a machine that is busy.
const patience = 90 * time.Second

// eventually asks until ok is nil.
func eventually(t *testing.T, ok func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(errors.Join(errors.New("still not so"), err))
		}
	}
}
