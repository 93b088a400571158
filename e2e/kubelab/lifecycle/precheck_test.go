package lifecycle

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authnv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/ambitmesh/ambit/e2e/kubelab"
	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

// finding is a line of ambit precheck.
type finding struct{ Level, Check, Object, What, Do string }

type answer struct {
	OK       bool
	Findings []finding
}

// precheck runs the command; its exit code must agree with what it says.
func precheck(t *testing.T, l *ambitlab.Lab, args ...string) answer {
	t.Helper()
	out, code := l.Ambit(t, append([]string{"precheck", "-o", "json"}, args...)...)
	var a answer
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	if (code == 0) != a.OK || code > 1 {
		t.Errorf("exit code %d, ok %t", code, a.OK)
	}
	return a
}

// find returns the finding about an object that says something.
func (a answer) find(t *testing.T, level, object, says string) finding {
	t.Helper()
	i := slices.IndexFunc(a.Findings, func(f finding) bool {
		return f.Level == level && strings.Contains(f.Object, object) && strings.Contains(f.What+" "+f.Do, says)
	})
	if i < 0 {
		t.Errorf("no %s about %s that says %q in %s", level, object, says, a)
		return finding{}
	}
	return a.Findings[i]
}

func (a answer) String() string {
	var b strings.Builder
	for _, f := range a.Findings {
		fmt.Fprintf(&b, "\n  %s %s: %s: %s > %s", f.Level, f.Check, f.Object, f.What, f.Do)
	}
	return b.String()
}

// quiet: nothing that keeps Ambit from working.
func (a answer) quiet(t *testing.T, when string) {
	t.Helper()
	if !a.OK {
		t.Errorf("%s: %s", when, a)
	}
}

// advice runs what a finding says should be done.
func advice(t *testing.T, l *ambitlab.Lab, do string) (string, error) {
	t.Helper()
	i := strings.Index(do, "kubectl ")
	if i < 0 {
		t.Fatalf("%q is no command", do)
	}
	command := strings.ReplaceAll(do[i:], " deploy/", " "+l.Root+"/deploy/")
	return l.TryKubectl(t, strings.Fields(command)[1:]...)
}

// TestPrecheckOfPoorClusters asks a real API server about everything that a
// healthy cluster does not have, and follows the advice.
//
//ambit:feature precheck-real install-definitions
func TestPrecheckOfPoorClusters(t *testing.T) {
	l := ambitlab.Bare(t, kubelab.Options{Name: "poor", APIOnly: true})
	fresh := precheck(t, l)
	fresh.quiet(t, "a fresh cluster")
	all := fresh.find(t, "warning", "authorizationpolicies", "not there yet").Do

	t.Run("definitions of others stay", func(t *testing.T) { foreignDefinitions(t, l, all) })

	t.Run("nodes", func(t *testing.T) {
		nodes := l.Client.CoreV1().Nodes()
		for name, info := range map[string]corev1.NodeSystemInfo{
			"aged":   {OperatingSystem: "linux", Architecture: "amd64", KernelVersion: "4.18.0-553.el8_10.x86_64", ContainerRuntimeVersion: "docker://26.1.0", KubeletVersion: "v1.30.0+k3s1"},
			"middle": {OperatingSystem: "linux", Architecture: "arm64", KernelVersion: "5.15.0-1", ContainerRuntimeVersion: "containerd://1.7.0", KubeletVersion: "v1.30.0+k3s1"},
		} {
			n, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			if err == nil {
				n.Status.NodeInfo = info
				_, err = nodes.UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		a := precheck(t, l)
		a.find(t, "error", "nodes aged", "older than 5.10")
		a.find(t, "error", "nodes aged", "cri-dockerd")
		a.find(t, "warning", "nodes middle", "clsact")
		a.find(t, "warning", "nodes aged, middle", "not ready")
		a.find(t, "info", "cluster", "deploy/overlays/k3s")
		for _, name := range []string{"aged", "middle"} {
			if err := nodes.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		precheck(t, l).quiet(t, "without these nodes")
	})

	t.Run("namespace and quota", func(t *testing.T) {
		l.Apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: ambit-system, labels: {pod-security.kubernetes.io/enforce: baseline}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: small, namespace: ambit-system}
spec: {hard: {pods: "1", limits.cpu: "4"}}
`)
		a := precheck(t, l)
		a.find(t, "error", "resourcequota ambit-system/small", "admits 1 pods")
		a.find(t, "error", "resourcequota ambit-system/small", "limits.cpu")
		if _, err := advice(t, l, a.find(t, "error", "namespace ambit-system", "baseline").Do); err != nil {
			t.Error(err)
		}
		l.Kubectl(t, "delete", "resourcequota", "-n", "ambit-system", "small")
		precheck(t, l).quiet(t, "after the advice")
	})

	t.Run("network policies", func(t *testing.T) {
		l.Apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: bank}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: bank}
---
apiVersion: v1
kind: Pod
metadata: {name: teller, namespace: bank, labels: {app: teller}}
spec: {serviceAccountName: default, automountServiceAccountToken: false, containers: [{name: c, image: none}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: front, namespace: bank}
spec: {podSelector: {}, ingress: [{ports: [{port: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: ambit-system}
spec: {podSelector: {}}
`)
		precheck(t, l).find(t, "error", "networkpolicy ambit-system/nobody", "15012")
		l.Kubectl(t, "delete", "networkpolicy", "-n", "ambit-system", "nobody")
		precheck(t, l).quiet(t, "before bank is labelled")
		precheck(t, l, "-n", "bank").find(t, "error", "networkpolicy bank/front", "15008")
		l.Kubectl(t, "label", "namespace", "bank", "istio.io/dataplane-mode=ambient")
		precheck(t, l).find(t, "error", "networkpolicy bank/front", "15008")
		l.Kubectl(t, "patch", "networkpolicy", "-n", "bank", "front", "--type=json", "-p", `[{"op":"add","path":"/spec/ingress/0/ports/-","value":{"port":15008}}]`)
		precheck(t, l).quiet(t, "with 15008 in the policy")
	})

	t.Run("another mesh", func(t *testing.T) {
		l.Apply(t, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: istiod, namespace: istio-system, labels: {app: istiod}}
spec: {selector: {matchLabels: {app: istiod}}, template: {metadata: {labels: {app: istiod}}, spec: {containers: [{name: discovery, image: none}]}}}
`)
		precheck(t, l).find(t, "error", "deployment istio-system/istiod", "--beside-istio")
		a := precheck(t, l, "--beside-istio")
		a.quiet(t, "beside Istio")
		a.find(t, "warning", "deployment istio-system/istiod", "label namespaces istio.io/rev=")
		l.Kubectl(t, "delete", "deployment", "-n", "istio-system", "istiod")
	})

	t.Run("an account that may not much", func(t *testing.T) {
		l.Apply(t, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: guest, namespace: bank}
`)
		a := precheck(t, l, "--kubeconfig", kubeconfig(t, l, "bank", "guest"))
		a.find(t, "warning", "this account", "nodes: this account may not")
		a.find(t, "warning", "this account", "may not install")
	})
}

// foreignDefinitions: somebody else brought the Gateway API, newer than ours,
// or older (that first: ours bring a policy against it). Applying ours is refused and changes nothing of it.
func foreignDefinitions(t *testing.T, l *ambitlab.Lab, all string) {
	const crd = "gateways.gateway.networking.k8s.io"
	b, err := os.ReadFile(filepath.Join(l.Root, "deploy/crds/gateway-api/gateway.networking.k8s.io_gateways.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	bundle := func(of string) string {
		return l.Kubectl(t, "get", "crd", of, "-o", `jsonpath={.metadata.annotations.gateway\.networking\.k8s\.io/bundle-version}`)
	}
	for _, c := range []struct{ version, says string }{{"v1.5.1", "mixture"}, {"v1.9.0", "would downgrade"}} {
		theirs := filepath.Join(t.TempDir(), "gateways.yaml")
		if err := os.WriteFile(theirs, []byte(strings.ReplaceAll(string(b), "bundle-version: v1.6.3", "bundle-version: "+c.version)), 0o644); err != nil {
			t.Fatal(err)
		}
		l.Kubectl(t, "apply", "--server-side", "--force-conflicts", "--field-manager=cluster-admin", "-f", theirs)
		if got := bundle(crd); got != c.version {
			t.Fatalf("the test's definition is of %q", got)
		}
		if out, err := advice(t, l, all); err == nil || !strings.Contains(out, "conflict") {
			t.Errorf("%s: deploy/crds went over it: %v %s", c.version, err, out)
		}
		if got := bundle(crd); got != c.version {
			t.Errorf("the definition of others is %s now, was %s", got, c.version)
		}
		// A mixture now, because the others went through; what says "leave it"
		// must still apply.
		a := precheck(t, l)
		a.quiet(t, "with another Gateway API")
		f := a.find(t, "warning", "Gateway API", "managed by cluster-admin")
		if !strings.Contains(f.What, c.says) {
			t.Errorf("want %q: %+v", c.says, f)
		}
		if out, err := advice(t, l, f.Do); err != nil {
			t.Errorf("%s: %v %s", f.Do, err, out)
		}
		l.Kubectl(t, "get", "crd", "authorizationpolicies.security.istio.io", "-o", "name")
	}
	// Ours again, by a decision: then nothing is to be said, and again changes
	// nothing.
	if out, err := advice(t, l, all+" --force-conflicts"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out, err := advice(t, l, all); err != nil {
		t.Errorf("a second time: %v %s", err, out)
	}
	if got := bundle(crd); got != "v1.6.3" {
		t.Errorf("%s", got)
	}
}

// kubeconfig is a file with the token of an account.
func kubeconfig(t *testing.T, l *ambitlab.Lab, namespace, account string) string {
	t.Helper()
	got, err := l.Client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authnv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := clientcmdapi.NewConfig()
	c.Clusters["x"] = &clientcmdapi.Cluster{Server: l.REST.Host, CertificateAuthorityData: l.REST.CAData}
	c.AuthInfos["x"] = &clientcmdapi.AuthInfo{Token: got.Status.Token}
	c.Contexts["x"] = &clientcmdapi.Context{Cluster: "x", AuthInfo: "x"}
	c.CurrentContext = "x"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, file); err != nil {
		t.Fatal(err)
	}
	return file
}
