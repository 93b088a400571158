package diagnose

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

type set = map[string]string

func machine(name string, change ...func(*corev1.Node)) corev1.Node {
	n := corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: set{"kubernetes.io/os": "linux"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64", KernelVersion: "6.8.0-45-generic",
				ContainerRuntimeVersion: "containerd://1.7.22", KubeletVersion: "v1.33.1", OSImage: "Debian 12"},
		},
	}
	for _, c := range change {
		c(&n)
	}
	return n
}

func space(name string, labels, annotations set) corev1.Namespace {
	return corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations}}
}

var ambient = set{labelMode: modeAmbient}

func app(namespace, name string, change ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: set{"app": name}, Annotations: set{}},
		Spec:       corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "app"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.244.1.5"}}},
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

// sound is a cluster before the installation that nothing is wrong with.
func sound() *Cluster {
	c := &Cluster{
		Version:    "v1.33.1",
		APIs:       map[string]bool{VAP: true},
		Nodes:      []corev1.Node{machine("node1"), machine("node2")},
		Namespaces: []corev1.Namespace{space("kube-system", nil, nil), space("shop", ambient, nil), space("plain", nil, nil)},
		Services:   []corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"}}},
		Pods:       []corev1.Pod{app("shop", "web"), app("plain", "other")},
	}
	for _, n := range istioDefinitions {
		c.Definitions = append(c.Definitions, Definition{Name: n, Served: []string{"v1", "v1beta1"}, Status: true})
	}
	for _, n := range gatewayDefinitions {
		c.Definitions = append(c.Definitions, Definition{Name: n, Served: []string{"v1"}, Status: true, BundleVersion: GatewayBundle, Channel: "standard"})
	}
	return c
}

// installedOn adds Ambit's node agent.
func installedOn(c *Cluster, env set, change ...func(*appsv1.DaemonSet)) {
	d := appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ambit-cni-node"},
		Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 2, CurrentNumberScheduled: 2}}
	container := corev1.Container{Name: "cni-node", Env: []corev1.EnvVar{{Name: "EXCLUDE_NAMESPACES", Value: "kube-system,legacy"}}}
	for k, v := range env {
		container.Env = append(container.Env, corev1.EnvVar{Name: k, Value: v})
	}
	d.Spec.Template.Spec.Containers = []corev1.Container{container}
	for _, f := range change {
		f(&d)
	}
	c.DaemonSets = append(c.DaemonSets, d)
	c.Namespaces = append(c.Namespaces, space("ambit-system", set{"pod-security.kubernetes.io/enforce": "privileged", labelMode: modeNone}, nil))
}

// daemonSet and deployment of somebody else.
func daemonSet(namespace, name string, labels, env set) appsv1.DaemonSet {
	d := appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
	c := corev1.Container{Name: "c"}
	for k, v := range env {
		c.Env = append(c.Env, corev1.EnvVar{Name: k, Value: v})
	}
	d.Spec.Template.Spec.Containers = []corev1.Container{c}
	return d
}

func quota(name string, hard corev1.ResourceList, classes ...string) corev1.ResourceQuota {
	q := corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: name}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}
	if len(classes) > 0 {
		q.Spec.ScopeSelector = &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
			{ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn, Values: classes}}}
	}
	return q
}

func pods(n int64) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourcePods: *resource.NewQuantity(n, resource.DecimalSI)}
}

// TestSoundClusters say nothing but what is good to know.
func TestSoundClusters(t *testing.T) {
	after := sound()
	installedOn(after, nil)
	for name, c := range map[string]*Cluster{"before": sound(), "after": after} {
		for _, f := range Precheck(c, Options{System: "ambit-system"}) {
			if f.Level != Info {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}

// TestPrecheck changes one thing of a sound cluster and reads what is said.
//
//ambit:feature precheck-versions precheck-platform precheck-definitions precheck-meshes precheck-namespace precheck-quota precheck-pods
func TestPrecheck(t *testing.T) {
	kernel := func(v string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Status.NodeInfo.KernelVersion = v }
	}
	runtime := func(v string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Status.NodeInfo.ContainerRuntimeVersion = v }
	}
	label := func(k, v string) func(*corev1.Node) { return func(n *corev1.Node) { n.Labels[k] = v } }
	provider := func(v string) func(*corev1.Node) { return func(n *corev1.Node) { n.Spec.ProviderID = v } }
	kubelet := func(v string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Status.NodeInfo.KubeletVersion = v }
	}
	second := func(change ...func(*corev1.Node)) func(*Cluster) {
		return func(c *Cluster) { c.Nodes[1] = machine("node2", change...) }
	}
	both := func(change ...func(*corev1.Node)) func(*Cluster) {
		return func(c *Cluster) {
			c.Nodes = []corev1.Node{machine("node1", change...), machine("node2", change...)}
		}
	}
	gatewayAs := func(version, channel string) func(*Cluster) {
		return func(c *Cluster) {
			for i := range c.Definitions {
				if strings.Contains(c.Definitions[i].Name, "gateway") {
					c.Definitions[i].BundleVersion, c.Definitions[i].Channel = version, channel
				}
			}
		}
	}
	classed := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.RuntimeClassName = &name }
	}
	for _, c := range []struct {
		name   string
		change func(*Cluster)
		level  Level
		check  string
		object string // part of it
		says   string // part of what or do; "" means there is no such finding
	}{
		{"old Kubernetes", func(c *Cluster) { c.Version = "v1.29.9-gke.1" }, Error, "kubernetes", "API server", "older than 1.30"},
		{"Kubernetes at the floor", func(c *Cluster) { c.Version = "v1.30.0" }, Error, "kubernetes", "", ""},
		{"strange version", func(c *Cluster) { c.Version = "main" }, Warning, "kubernetes", "API server", `"main"`},
		{"no admission policies", func(c *Cluster) { c.APIs = map[string]bool{} }, Error, "kubernetes", "API server", "ValidatingAdmissionPolicy"},
		{"no cluster DNS", func(c *Cluster) { c.Services = []corev1.Service{} }, Warning, "kubernetes", "DNS", "kube-dns"},

		{"old kernel", second(kernel("4.18.0-553.el8_10.x86_64")), Error, "nodes", "node2", "older than 5.10"},
		{"kernel without tcx", second(kernel("5.14.0-427.el9.x86_64")), Warning, "nodes", "node2", "clsact"},
		{"the first with tcx", both(kernel("6.6.0")), Warning, "nodes", "", ""},
		{"the last without a refusal", second(kernel("5.10.0-32-cloud-amd64")), Error, "nodes", "", ""},
		{"kernel of unknown form", second(kernel("custom")), Warning, "nodes", "node2", `"custom"`},
		{"Docker", both(runtime("docker://27.1")), Error, "nodes", "node1, node2", "cri-dockerd"},
		{"CRI-O", both(runtime("cri-o://1.33.0")), Warning, "nodes", "", ""},
		{"unknown runtime", second(runtime("frakti://1")), Warning, "nodes", "node2", "CRI_SOCKET"},
		{"old containerd", second(runtime("containerd://1.4.3")), Warning, "nodes", "node2", "1.6"},
		{"architecture", second(func(n *corev1.Node) { n.Status.NodeInfo.Architecture = "s390x" }), Error, "nodes", "node2", "s390x"},
		{"not ready", second(func(n *corev1.Node) { n.Status.Conditions = nil }), Warning, "nodes", "node2", "not ready"},
		{"Windows is no trouble", second(func(n *corev1.Node) {
			n.Status.NodeInfo = corev1.NodeSystemInfo{OperatingSystem: "windows", KernelVersion: "10.0.20348", Architecture: "amd64"}
		}), Info, "nodes", "node2", "Windows"},
		{"and gives no error", second(func(n *corev1.Node) {
			n.Status.NodeInfo = corev1.NodeSystemInfo{OperatingSystem: "windows", KernelVersion: "1.0.1"}
		}), Error, "nodes", "", ""},
		{"Fargate", second(label("eks.amazonaws.com/compute-type", "fargate"), kernel("4.14.0")), Info, "nodes", "node2", "Fargate"},
		{"dual-stack", second(func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"10.244.2.0/24", "fd00:2::/64"} }), Info, "families", "pod network", "IPv4 and IPv6"},

		{"kind", both(provider("kind://docker/kind/kind-worker")), Info, "platform", "cluster", "deploy/overlays/kind (Helm: --set platform=kind)"},
		{"k3s", both(kubelet("v1.33.1+k3s1")), Info, "platform", "cluster", "deploy/overlays/k3s"},
		{"k3d", both(provider("k3s://k3d-x-agent-0")), Info, "platform", "cluster", "deploy/overlays/k3s"},
		{"RKE2", both(kubelet("v1.33.1+rke2r1")), Info, "platform", "cluster", "install deploy/ambit"},
		{"EKS", both(kubelet("v1.33.1-eks-113cf36"), provider("aws:///eu-west-1a/i-1")), Info, "platform", "cluster", "deploy/overlays/eks"},
		{"GKE", both(kubelet("v1.33.1-gke.1584000"), provider("gce://p/z/n")), Info, "platform", "cluster", "deploy/overlays/gke"},
		{"OpenShift", both(label("node.openshift.io/os_id", "rhel")), Info, "platform", "cluster", "deploy/overlays/openshift"},
		{"minikube", both(label("minikube.k8s.io/name", "minikube")), Info, "platform", "cluster", "deploy/overlays/minikube"},
		{"MicroK8s", both(label("microk8s.io/cluster", "true")), Info, "platform", "cluster", "deploy/overlays/microk8s"},
		{"AKS", both(label("kubernetes.azure.com/cluster", "x")), Info, "platform", "cluster", "AKS"},
		{"none that is known", func(*Cluster) {}, Info, "platform", "cluster", "/opt/cni/bin"},
		{"a mixture", second(kubelet("v1.33.1+k3s1"), label("x", "y")), Info, "platform", "cluster", "k3s"},
		{"two platforms", func(c *Cluster) {
			c.Nodes = []corev1.Node{machine("a", kubelet("v1.33.1+k3s1")), machine("b", kubelet("v1.33.1-gke.1"))}
		}, Warning, "platform", "cluster", "different platforms"},
		{"Autopilot", func(c *Cluster) { c.Nodes = append(c.Nodes, machine("gk3-x-pool-1", kubelet("v1.33.1-gke.1"))) }, Error, "platform", "cluster", "Autopilot"},
		{"installed without the overlay", func(c *Cluster) {
			both(kubelet("v1.33.1+k3s1"))(c)
			installedOn(c, set{"CNI_BIN_DIR": "/var/lib/rancher/k3s/data/cni"})
		}, Error, "platform", "ambit-system/ambit-cni-node", "without CNI_CONF_DIR, which k3s needs"},
		{"installed with paths of one's own", func(c *Cluster) {
			both(kubelet("v1.33.1+k3s1"))(c)
			installedOn(c, nil, func(d *appsv1.DaemonSet) {
				d.Spec.Template.Spec.Containers[0].Args = []string{"--cni-bin-dir=/bin", "-cni-conf-dir", "/x"}
			})
		}, Error, "platform", "", ""},
		{"kind without a bpffs", func(c *Cluster) {
			both(provider("kind://docker/kind/kind-worker"))(c)
			installedOn(c, nil)
		}, Error, "platform", "ambit-cni-node", "bpffs"},
		{"kind with one", func(c *Cluster) {
			both(provider("kind://docker/kind/kind-worker"))(c)
			installedOn(c, nil, func(d *appsv1.DaemonSet) {
				d.Spec.Template.Spec.InitContainers = []corev1.Container{{Command: []string{"x", "--mount-bpffs"}}}
			})
		}, Error, "platform", "", ""},

		{"no definitions yet", func(c *Cluster) { c.Definitions = nil }, Warning, "definitions", "authorizationpolicies", "deploy/crds"},
		{"no definitions and installed", func(c *Cluster) { c.Definitions = nil; installedOn(c, nil) }, Error, "definitions", "peerauthentications", "cannot read policies"},
		{"definitions that nobody could ask for", func(c *Cluster) {
			c.Definitions, c.Unread = nil, []string{"customresourcedefinitions: this account may not"}
		}, Warning, "definitions", "", ""},
		{"which is said", func(c *Cluster) {
			c.Definitions, c.Unread = nil, []string{"customresourcedefinitions: this account may not"}
		}, Warning, "reading", "account", "customresourcedefinitions"},
		{"old Istio", func(c *Cluster) { c.Definitions[0].Served = []string{"v1beta1"} }, Error, "definitions", "authorizationpolicies", "not v1"},
		{"no status", func(c *Cluster) { c.Definitions[0].Status = false }, Warning, "definitions", "authorizationpolicies", "no status"},
		{"newer Gateway API", gatewayAs("v1.7.0", "standard"), Warning, "definitions", "Gateway API", "newer than the " + GatewayBundle},
		{"newer by the patch level", gatewayAs("v1.6.10", "standard"), Warning, "definitions", "Gateway API", "newer"},
		{"older Gateway API", gatewayAs("v1.2.1", "standard"), Warning, "definitions", "Gateway API", "older"},
		{"experimental Gateway API", gatewayAs(GatewayBundle, "experimental"), Info, "definitions", "Gateway API", "take fields away"},
		{"Gateway API of no version", gatewayAs("", ""), Warning, "definitions", "Gateway API", "unknown version"},
		{"no Gateway API", func(c *Cluster) { c.Definitions = c.Definitions[:2] }, Info, "definitions", "Gateway API", "waypoints"},
		{"a mixed Gateway API", func(c *Cluster) { c.Definitions[4].BundleVersion = "v1.2.0" }, Warning, "definitions", "Gateway API", "mixture"},
		{"a part of the Gateway API", func(c *Cluster) { c.Definitions = c.Definitions[:6] }, Info, "definitions", "Gateway API", "without"},

		{"Istio", func(c *Cluster) {
			c.Deployments = []appsv1.Deployment{{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod-1-31", Labels: set{"app": "istiod"}}}}
		}, Error, "mesh", "istio-system/istiod-1-31", "--beside-istio"},
		{"Istio's node agent", func(c *Cluster) {
			c.DaemonSets = append(c.DaemonSets, daemonSet("istio-system", "istio-cni-node", nil, set{"AMBIENT_ENABLED": "true"}))
		}, Error, "mesh", "istio-cni-node", "same label"},
		{"Istio's node agent for sidecars", func(c *Cluster) {
			c.DaemonSets = append(c.DaemonSets, daemonSet("istio-system", "istio-cni-node", nil, set{"AMBIENT_ENABLED": "false"}))
		}, Error, "mesh", "", ""},
		{"another ztunnel", func(c *Cluster) {
			c.DaemonSets = append(c.DaemonSets, daemonSet("istio-system", "ztunnel", set{"app": "ztunnel"}, nil))
		}, Error, "mesh", "istio-system/ztunnel", "another ztunnel"},
		{"our own ztunnel", func(c *Cluster) {
			c.DaemonSets = append(c.DaemonSets, daemonSet("ambit-system", "ztunnel", set{"app": "ztunnel"}, nil))
		}, Error, "mesh", "", ""},
		{"Kmesh", func(c *Cluster) { c.DaemonSets = append(c.DaemonSets, daemonSet("kmesh-system", "kmesh", nil, nil)) }, Error, "mesh", "kmesh", "Kmesh"},
		{"Linkerd", func(c *Cluster) {
			c.Deployments = []appsv1.Deployment{{ObjectMeta: metav1.ObjectMeta{Namespace: "linkerd", Name: "linkerd-destination"}}}
		}, Info, "mesh", "linkerd-destination", "Linkerd"},

		{"Cilium alone", func(c *Cluster) { c.Cilium = set{"cni-exclusive": "true"} }, Error, "cni", "cilium-config", "cni.exclusive=false"},
		{"Cilium of before the setting", func(c *Cluster) { c.Cilium = set{} }, Error, "cni", "cilium-config", "cni.exclusive=false"},
		{"Cilium that shares", func(c *Cluster) { c.Cilium = set{"cni-exclusive": "false"} }, Error, "cni", "", ""},
		{"Cilium's socket balancing", func(c *Cluster) {
			c.Cilium = set{"cni-exclusive": "false", "kube-proxy-replacement": "true"}
		}, Warning, "cni", "cilium-config", "hostNamespaceOnly"},
		{"for the host only", func(c *Cluster) {
			c.Cilium = set{"cni-exclusive": "false", "kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true"}
		}, Warning, "cni", "", ""},
		{"Calico's socket balancing", func(c *Cluster) { c.Calico = map[string]any{"bpfEnabled": true} }, Warning, "cni", "felix", "bpfConnectTimeLoadBalancing"},
		{"Calico without", func(c *Cluster) {
			c.Calico = map[string]any{"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "Disabled"}
		}, Warning, "cni", "", ""},
		{"Calico without eBPF", func(c *Cluster) { c.Calico = map[string]any{"bpfConnectTimeLoadBalancing": "TCP"} }, Warning, "cni", "", ""},
		{"security groups for pods", func(c *Cluster) {
			c.DaemonSets = append(c.DaemonSets, daemonSet("kube-system", "aws-node", nil, set{"ENABLE_POD_ENI": "true"}))
		}, Warning, "cni", "aws-node", "standard"},
		{"in the standard mode", func(c *Cluster) {
			c.DaemonSets = append(c.DaemonSets, daemonSet("kube-system", "aws-node", nil, set{"ENABLE_POD_ENI": "true", "POD_SECURITY_GROUP_ENFORCING_MODE": "standard"}))
		}, Warning, "cni", "", ""},

		{"restricted namespace", func(c *Cluster) {
			c.Namespaces = append(c.Namespaces, space("ambit-system", set{"pod-security.kubernetes.io/enforce": "restricted"}, nil))
		}, Error, "namespace", "ambit-system", "restricted"},
		{"namespace without a level", func(c *Cluster) { c.Namespaces = append(c.Namespaces, space("ambit-system", nil, nil)) }, Warning, "namespace", "ambit-system", "enforce=privileged"},
		{"labelled by itself", func(c *Cluster) {
			c.Namespaces = append(c.Namespaces, space("ambit-system", set{labelMode: modeAmbient, "pod-security.kubernetes.io/enforce": "privileged"}, nil))
		}, Error, "namespace", "ambit-system", labelMode + "=none"},
		{"namespace on its way out", func(c *Cluster) {
			n := space("ambit-system", nil, nil)
			n.Status.Phase = corev1.NamespaceTerminating
			c.Namespaces = append(c.Namespaces, n)
		}, Error, "namespace", "ambit-system", "being deleted"},
		{"uninstall begun", func(c *Cluster) {
			installedOn(c, nil)
			c.Namespaces[len(c.Namespaces)-1].Annotations = set{annotationUninstall: "2026-01-01"}
		}, Error, "namespace", "ambit-system", "2026-01-01"},
		{"leftovers", func(c *Cluster) { c.Owned = []string{"clusterroles ambit-controller"} }, Warning, "namespace", "cluster", "clusterroles ambit-controller"},
		{"leftovers in the namespace", func(c *Cluster) {
			c.Namespaces = append(c.Namespaces, space("ambit-system", set{"pod-security.kubernetes.io/enforce": "privileged"}, nil))
			c.Owned = []string{"services ambit-system/ambit-controller"}
		}, Warning, "namespace", "ambit-system", "earlier installation"},

		{"small quota", func(c *Cluster) { c.Quotas = []corev1.ResourceQuota{quota("q", pods(6))} }, Error, "quota", "q", "Ambit has 7"},
		{"enough", func(c *Cluster) { c.Quotas = []corev1.ResourceQuota{quota("q", pods(7))} }, Error, "quota", "", ""},
		{"quota of another class", func(c *Cluster) { c.Quotas = []corev1.ResourceQuota{quota("q", pods(0), "high")} }, Error, "quota", "", ""},
		{"quota of our class", func(c *Cluster) {
			c.Quotas = []corev1.ResourceQuota{quota("q", pods(2), "system-node-critical")}
		}, Error, "quota", "q", "raise"},
		{"quota on limits", func(c *Cluster) {
			c.Quotas = []corev1.ResourceQuota{quota("q", corev1.ResourceList{corev1.ResourceLimitsCPU: resource.MustParse("10")})}
		}, Error, "quota", "q", "limits.cpu"},
		{"with a default", func(c *Cluster) {
			c.Quotas = []corev1.ResourceQuota{quota("q", corev1.ResourceList{corev1.ResourceLimitsCPU: resource.MustParse("10")})}
			c.LimitRanges = []corev1.LimitRange{{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
				{Type: corev1.LimitTypeContainer, Default: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}}}}}
		}, Error, "quota", "", ""},
		{"GKE without a quota", func(c *Cluster) {
			both(kubelet("v1.33.1-gke.1"))(c)
			installedOn(c, set{"CNI_BIN_DIR": "/home/kubernetes/bin"})
		}, Error, "quota", "ambit-system", "deploy/overlays/gke"},
		{"GKE with one", func(c *Cluster) {
			both(kubelet("v1.33.1-gke.1"))(c)
			installedOn(c, set{"CNI_BIN_DIR": "/home/kubernetes/bin"})
			c.Quotas = []corev1.ResourceQuota{quota("q", pods(1000), "system-node-critical", "system-cluster-critical")}
		}, Error, "quota", "", ""},

		{"sandboxed pods", func(c *Cluster) {
			c.RuntimeClasses = []nodev1.RuntimeClass{{ObjectMeta: metav1.ObjectMeta{Name: "sandboxed"}, Handler: "runsc"}}
			c.Pods = append(c.Pods, app("shop", "safe", classed("sandboxed")))
		}, Error, "pods", "shop", "safe: run in runtime class sandboxed"},
		{"sandboxed pods elsewhere", func(c *Cluster) {
			c.RuntimeClasses = []nodev1.RuntimeClass{{ObjectMeta: metav1.ObjectMeta{Name: "sandboxed"}, Handler: "runsc"}}
			c.Pods = append(c.Pods, app("plain", "safe", classed("sandboxed")))
		}, Error, "pods", "", ""},
		{"another runtime class", func(c *Cluster) {
			c.RuntimeClasses = []nodev1.RuntimeClass{{ObjectMeta: metav1.ObjectMeta{Name: "nvidia"}, Handler: "nvidia"}}
			c.Pods = append(c.Pods, app("shop", "gpu", classed("nvidia")))
		}, Error, "pods", "", ""},
		{"host network", func(c *Cluster) {
			c.Pods = append(c.Pods, app("shop", "logs", func(p *corev1.Pod) { p.Spec.HostNetwork = true }))
		}, Info, "pods", "shop", "logs: use the node's network"},
		{"sidecar", func(c *Cluster) {
			c.Pods = append(c.Pods, app("shop", "old", func(p *corev1.Pod) { p.Annotations[annotationSidecar] = "{}" }))
		}, Info, "pods", "shop", "old: have a sidecar"},
		{"Linkerd's proxy", func(c *Cluster) {
			c.Pods = append(c.Pods, app("shop", "lin", func(p *corev1.Pod) { p.Spec.Containers[0].Name = "linkerd-proxy" }))
		}, Warning, "pods", "shop", "lin: have Linkerd's proxy"},
		{"injected too", func(c *Cluster) { c.Namespaces[1].Labels = set{labelMode: modeAmbient, "istio-injection": "enabled"} }, Warning, "pods", "shop", "sidecars too"},
		{"excluded", func(c *Cluster) { c.Namespaces[0].Labels = ambient }, Warning, "pods", "kube-system", "no effect"},
		{"excluded by a setting", func(c *Cluster) {
			installedOn(c, nil)
			c.Namespaces = append(c.Namespaces, space("legacy", ambient, nil))
		}, Warning, "pods", "legacy", "no effect"},
		{"ended pods do not count", func(c *Cluster) {
			c.Pods = append(c.Pods, app("shop", "job", func(p *corev1.Pod) { p.Spec.HostNetwork, p.Status.Phase = true, corev1.PodSucceeded }))
		}, Info, "pods", "", ""},
		{"nor those that opt out", func(c *Cluster) {
			c.Pods = append(c.Pods, app("shop", "out", func(p *corev1.Pod) { p.Spec.HostNetwork, p.Labels[labelMode] = true, modeNone }))
		}, Info, "pods", "", ""},

		{"refused agents", func(c *Cluster) {
			installedOn(c, nil, func(d *appsv1.DaemonSet) { d.Status.CurrentNumberScheduled = 0 })
		}, Error, "agent", "ambit-cni-node", "0 of 2 pods were made"},
		{"failing agents", func(c *Cluster) {
			installedOn(c, nil)
			for _, n := range []string{"node1", "node2"} {
				c.Pods = append(c.Pods, app("ambit-system", "agent-"+n, func(p *corev1.Pod) {
					p.Labels["app"], p.Spec.NodeName = "ambit-cni-node", n
					p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 2,
						State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
						LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: "{\"level\":\"INFO\"}\nsk_lookup is missing\n"}}}}
				}))
			}
		}, Error, "agent", "node1, node2", "CrashLoopBackOff: sk_lookup is missing"},

		{"what agents say of their nodes", func(c *Cluster) {
			installedOn(c, nil)
			for _, n := range []string{"node1", "node2"} {
				c.Pods = append(c.Pods, app("ambit-system", "agent-"+n, func(p *corev1.Pod) {
					p.Labels["app"], p.Spec.NodeName = "ambit-cni-node", n
					p.Annotations[annotationFindings] = `[{"finding":"socket-lb","text":"services are balanced in sockets"}]`
				}))
			}
		}, Warning, "agent", "nodes node1, node2", "socket-lb: services are balanced in sockets"},
		{"in words of another version", func(c *Cluster) {
			installedOn(c, nil)
			c.Pods = append(c.Pods, app("ambit-system", "agent", func(p *corev1.Pod) {
				p.Labels["app"], p.Annotations[annotationFindings] = "ambit-cni-node", "{}"
			}))
		}, Warning, "agent", "node1", "{}"},

		{"no rights", func(c *Cluster) { c.Denied = []string{"create namespaces"} }, Warning, "rights", "account", "create namespaces"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := sound()
			c.change(cluster)
			found := false
			all := Precheck(cluster, Options{System: "ambit-system"})
			for _, f := range all {
				if f.Level == c.level && f.Check == c.check && strings.Contains(f.Object, c.object) && strings.Contains(f.What+" "+f.Do, c.says) {
					found = true
				}
				if !slices.Contains(Checks(), f.Check) {
					t.Errorf("check %q is not listed", f.Check)
				}
			}
			if found != (c.says != "") {
				t.Errorf("want %s of %s about %q saying %q, got %s", c.level, c.check, c.object, c.says, lines(all))
			}
		})
	}
}

func lines(all []Finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "\n  %s %s: %s: %s > %s", f.Level, f.Check, f.Object, f.What, f.Do)
	}
	return b.String()
}

func port(p int) networkingv1.NetworkPolicyPort {
	n := intstr.FromInt(p)
	return networkingv1.NetworkPolicyPort{Port: &n}
}

func from(labels set) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: labels}}
}

func ingress(peers []networkingv1.NetworkPolicyPeer, ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicyIngressRule {
	return networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports}
}

func policy(namespace, name string, selector set, spec networkingv1.NetworkPolicySpec) networkingv1.NetworkPolicy {
	spec.PodSelector.MatchLabels = selector
	return networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
}

// TestNetworkPolicies: which rules would not let the mesh's calls through.
//
//ambit:feature precheck-network-policy
func TestNetworkPolicies(t *testing.T) {
	type spec = networkingv1.NetworkPolicySpec
	type in = networkingv1.NetworkPolicyIngressRule
	type out = networkingv1.NetworkPolicyEgressRule
	type peers = []networkingv1.NetworkPolicyPeer
	end := int32(15100)
	span := port(15000)
	span.EndPort = &end
	udp := corev1.ProtocolUDP
	dgram := port(15008)
	dgram.Protocol = &udp
	named := networkingv1.NetworkPolicyPort{Port: &intstr.IntOrString{Type: intstr.String, StrVal: "http"}}
	dns, dnsTCP := port(53), port(53)
	dns.Protocol = &udp
	ours := "ambit-system"
	zt, ctl := set{"app": "ztunnel"}, set{"app": "ambit-controller"}
	block := func(cidr string, except ...string) peers {
		return peers{{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}}
	}
	spaces := func(labels set) peers {
		return peers{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: labels}}}
	}
	alone := app("lab", "client", func(p *corev1.Pod) { p.Labels[labelMode] = modeAmbient })
	egressOnly := []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	for _, c := range []struct {
		name     string
		policies []networkingv1.NetworkPolicy
		level    Level
		says     string // "" : nothing
	}{
		{"none", nil, "", ""},
		{"only the application's port", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(nil, port(8080))}})},
			Error, "networkpolicy shop/web: ingress rule 1 admits TCP 8080"},
		{"a named port", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(nil, named)}})}, Error, "TCP http"},
		{"both ports", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(nil, port(8080), port(15008))}})}, "", ""},
		{"a range", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(nil, port(8080), span)}})}, "", ""},
		{"UDP is not TCP", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(nil, port(8080), dgram)}})}, Error, "shop/web"},
		{"all ports", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(peers{from(set{"a": "b"})})}})}, "", ""},
		{"another pod", []networkingv1.NetworkPolicy{policy("shop", "db", set{"app": "db"}, spec{Ingress: []in{ingress(nil, port(5432))}})}, "", ""},
		{"another namespace", []networkingv1.NetworkPolicy{policy("plain", "web", nil, spec{Ingress: []in{ingress(nil, port(8080))}})}, "", ""},
		{"deny all breaks nothing that worked", []networkingv1.NetworkPolicy{policy("shop", "deny", nil, spec{})}, "", ""},
		{"a second policy adds it for all", []networkingv1.NetworkPolicy{
			policy("shop", "web", nil, spec{Ingress: []in{ingress(peers{from(set{"a": "b"})}, port(8080))}}),
			policy("shop", "mesh", nil, spec{Ingress: []in{ingress(nil, port(15008))}})}, "", ""},
		{"adds it for the same", []networkingv1.NetworkPolicy{
			policy("shop", "web", nil, spec{Ingress: []in{ingress(peers{from(set{"a": "b"})}, port(8080))}}),
			policy("shop", "mesh", nil, spec{Ingress: []in{ingress(peers{from(set{"a": "b"}), from(set{"c": "d"})}, port(15008))}})}, "", ""},
		{"adds it for others", []networkingv1.NetworkPolicy{
			policy("shop", "web", nil, spec{Ingress: []in{ingress(peers{from(set{"a": "b"})}, port(8080))}}),
			policy("shop", "mesh", nil, spec{Ingress: []in{ingress(peers{from(set{"c": "d"})}, port(15008))}})}, Error, "shop/web"},
		{"from outside the cluster", []networkingv1.NetworkPolicy{policy("shop", "lb", nil, spec{Ingress: []in{ingress(block("192.0.2.0/24"), port(443))}})}, "", ""},
		{"a range that has pods", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(block("10.0.0.0/8"), port(8080))}})},
			Warning, "ingress rule 1 admits TCP 8080 for a range that has addresses of pods"},
		{"a range without the pods", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(block("0.0.0.0/0", "10.0.0.0/8"), port(8080))}})}, "", ""},
		{"a range of no form", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(block("x"), port(8080))}})}, "", ""},
		{"a range that may add it", []networkingv1.NetworkPolicy{
			policy("shop", "web", nil, spec{Ingress: []in{ingress(peers{from(set{"a": "b"})}, port(8080))}}),
			policy("shop", "mesh", nil, spec{Ingress: []in{ingress(block("10.244.0.0/16"), port(15008))}})}, Warning, "shop/web"},
		{"from outside the mesh", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(spaces(set{"name": "plain"}), port(9090))}})}, "", ""},
		{"from some of the mesh", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{ingress(spaces(nil), port(9090))}})}, Error, "ingress rule 1 admits TCP 9090"},
		{"from its part in the mesh by another rule", []networkingv1.NetworkPolicy{policy("shop", "web", nil, spec{Ingress: []in{
			ingress(append(spaces(set{"name": "plain"}), from(set{"a": "b"})), port(9090)), ingress(peers{from(set{"a": "b"})}, port(15008))}})}, "", ""},
		{"from a pod in the mesh by itself", []networkingv1.NetworkPolicy{policy("lab", "client", set{"app": "client"}, spec{Ingress: []in{
			ingress(peers{from(set{"app": "client"})}, port(9090)), ingress(peers{from(set{"app": "other"})}, port(9091))}})}, Error, "lab/client: ingress rule 1 admits TCP 9090"},
		{"from its neighbour that is not", []networkingv1.NetworkPolicy{policy("lab", "client", set{"app": "client"}, spec{Ingress: []in{
			ingress(peers{from(set{"app": "other"})}, port(9091))}})}, "", ""},
		{"egress out of the mesh", []networkingv1.NetworkPolicy{policy("shop", "out", nil, spec{PolicyTypes: egressOnly, Egress: []out{{To: spaces(set{"name": "plain"}), Ports: []networkingv1.NetworkPolicyPort{port(5432)}}}})}, "", ""},
		{"egress to pods", []networkingv1.NetworkPolicy{policy("shop", "out", nil, spec{PolicyTypes: egressOnly, Egress: []out{{To: peers{from(set{"app": "db"})}, Ports: []networkingv1.NetworkPolicyPort{port(5432)}}}})},
			Error, "egress rule 1 admits TCP 5432"},
		{"egress to anywhere", []networkingv1.NetworkPolicy{policy("shop", "out", nil, spec{PolicyTypes: egressOnly, Egress: []out{{Ports: []networkingv1.NetworkPolicyPort{port(443)}}}})},
			Warning, "egress rule 1 admits TCP 443"},
		{"DNS only", []networkingv1.NetworkPolicy{policy("shop", "dns", nil, spec{PolicyTypes: egressOnly, Egress: []out{{Ports: []networkingv1.NetworkPolicyPort{dns, dnsTCP}}}})}, "", ""},
		{"egress without types", []networkingv1.NetworkPolicy{policy("shop", "out", nil, spec{Egress: []out{{To: peers{from(set{"app": "db"})}, Ports: []networkingv1.NetworkPolicyPort{port(5432)}}}})}, Error, "egress rule 1"},

		{"ours are shut off", []networkingv1.NetworkPolicy{policy(ours, "deny", nil, spec{})}, Error, "networkpolicy ambit-system/deny: keeps ztunnel from the controller"},
		{"ours are let in", []networkingv1.NetworkPolicy{policy(ours, "deny", nil, spec{Ingress: []in{ingress(peers{from(zt)}, port(15012))}})}, "", ""},
		{"the wrong ones are let in", []networkingv1.NetworkPolicy{policy(ours, "deny", nil, spec{Ingress: []in{ingress(peers{from(set{"app": "prometheus"})}, port(15012))}})}, Error, "keeps ztunnel from the controller"},
		{"the wrong namespace is let in", []networkingv1.NetworkPolicy{policy(ours, "deny", nil, spec{Ingress: []in{ingress(peers{{
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: set{"kubernetes.io/metadata.name": "monitoring"}}}}, port(15012))}})}, Error, "keeps ztunnel from the controller"},
		{"ztunnel may call nobody", []networkingv1.NetworkPolicy{policy(ours, "out", zt, spec{PolicyTypes: egressOnly})}, Error, "keeps ztunnel from the cluster's DNS"},
		{"ztunnel may call the controller and DNS", []networkingv1.NetworkPolicy{policy(ours, "out", zt, spec{PolicyTypes: egressOnly, Egress: []out{
			{To: peers{from(ctl)}, Ports: []networkingv1.NetworkPolicyPort{port(15012)}}, {Ports: []networkingv1.NetworkPolicyPort{dns}}}})}, "", ""},
		{"ztunnel may call a range", []networkingv1.NetworkPolicy{policy(ours, "out", zt, spec{PolicyTypes: egressOnly, Egress: []out{
			{To: block("10.0.0.0/8"), Ports: []networkingv1.NetworkPolicyPort{port(15012), dns}}}})}, "", ""},
		{"an API server on a port of its own", []networkingv1.NetworkPolicy{policy(ours, "out", ctl, spec{PolicyTypes: egressOnly, Egress: []out{
			{Ports: []networkingv1.NetworkPolicyPort{port(16443)}}}})}, "", ""},
		{"the controller may call nobody", []networkingv1.NetworkPolicy{policy(ours, "out", ctl, spec{PolicyTypes: egressOnly})}, Error, "keep the controller from the API server"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := sound()
			cluster.Namespaces = append(cluster.Namespaces, space("lab", nil, nil))
			for i := range cluster.Namespaces {
				n := &cluster.Namespaces[i]
				n.Labels = maps.Clone(n.Labels)
				if n.Labels == nil {
					n.Labels = set{}
				}
				n.Labels["name"] = n.Name
			}
			cluster.Pods = append(cluster.Pods, alone)
			cluster.NetworkPolicies = c.policies
			var all []Finding
			for _, f := range Precheck(cluster, Options{System: ours}) {
				if f.Check == "network-policy" {
					all = append(all, f)
				}
			}
			if c.says == "" {
				if len(all) > 0 {
					t.Errorf("want nothing, got %s", lines(all))
				}
				return
			}
			if !slices.ContainsFunc(all, func(f Finding) bool { return f.Level == c.level && strings.Contains(f.Object+": "+f.What, c.says) }) {
				t.Errorf("want %s %q, got %s", c.level, c.says, lines(all))
			}
		})
	}
}

// TestOptions: what the caller says beside the objects.
//
//ambit:feature beside-installed
func TestOptions(t *testing.T) {
	c := sound()
	c.Deployments = []appsv1.Deployment{{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod", Labels: set{"app": "istiod"}}}}
	c.NetworkPolicies = []networkingv1.NetworkPolicy{policy("plain", "p", nil, networkingv1.NetworkPolicySpec{
		Ingress: []networkingv1.NetworkPolicyIngressRule{ingress(nil, port(80))}})}
	says := func(o Options, l Level, text string) bool {
		return slices.ContainsFunc(Precheck(c, o), func(f Finding) bool { return f.Level == l && strings.Contains(f.Object+f.What, text) })
	}
	if !says(Options{System: "ambit-system"}, Error, "control plane") || says(Options{System: "ambit-system", BesideIstio: true}, Error, "istiod") {
		t.Error("--beside-istio is not what decides about Istio")
	}
	if !says(Options{System: "ambit-system", BesideIstio: true}, Warning, "istio.io/rev") {
		t.Error("what keeps the two apart is not said")
	}
	controller := func(env ...corev1.EnvVar) appsv1.Deployment {
		return appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ambit-controller"},
			Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Env: env}}}}}}
	}
	c.Deployments = append(c.Deployments, controller())
	if !says(Options{System: "ambit-system", BesideIstio: true}, Error, "does not know that Istio is there") {
		t.Error("a controller that was not told is not named")
	}
	c.Deployments[1] = controller(corev1.EnvVar{Name: "AMBIT_BESIDE_ISTIO", Value: "true"}, corev1.EnvVar{Name: "REVISION", Value: "ambit"})
	if says(Options{System: "ambit-system", BesideIstio: true}, Error, "ambit-controller") || !says(Options{System: "ambit-system", BesideIstio: true}, Info, "istio.io/rev=ambit") {
		t.Error("a controller that was told is named")
	}
	c.Deployments = c.Deployments[:1]
	if says(Options{System: "ambit-system"}, Error, "plain/p") || !says(Options{System: "ambit-system", Namespaces: []string{"plain"}}, Error, "plain/p") {
		t.Error("a namespace to be labelled is not looked at")
	}
	if !says(Options{System: "ambit-system", Namespaces: []string{"typo"}}, Error, "namespace typo") {
		t.Error("a namespace that is not there")
	}
}

// TestOrder: the worst comes first, the rest is the same every time.
func TestOrder(t *testing.T) {
	c := sound()
	c.Version = "v1.20.0"
	for i := range 5 {
		c.Nodes = append(c.Nodes, machine(fmt.Sprint("old", i), func(n *corev1.Node) { n.Status.NodeInfo.KernelVersion = "4.4.0" }))
	}
	first := Precheck(c, Options{System: "ambit-system"})
	if !slices.IsSortedFunc(first, func(a, b Finding) int { return a.Level.rank() - b.Level.rank() }) {
		t.Error(lines(first))
	}
	for range 20 {
		if again := Precheck(c, Options{System: "ambit-system"}); !slices.Equal(first, again) {
			t.Fatalf("first %s\nthen %s", lines(first), lines(again))
		}
	}
	if !slices.ContainsFunc(first, func(f Finding) bool { return strings.Contains(f.Object, "old0, old1, old2 and 2 more") }) {
		t.Errorf("nodes with the same trouble are not together: %s", lines(first))
	}
}

func TestReleases(t *testing.T) {
	for text, want := range map[string]release{"v1.30.4-gke.1": {1, 30}, "6.6": {6, 6}, "5.14.0-427.el9": {5, 14}, "1.36+": {1, 36},
		"v1.33.1-eks-113cf36": {1, 33}, "v1.33.1+k3s1": {1, 33}, "6.1.0-26-cloud-amd64": {6, 1}, "5.10.0-gke": {5, 10}, "6.6.87.2-microsoft-standard-WSL2": {6, 6}} {
		if got, ok := parseRelease(text); !ok || got != want {
			t.Errorf("%s: %v %t", text, got, ok)
		}
	}
	for _, text := range []string{"", "main", "v1", "x.1", "1.x", "-1.2", "99999999999999999999.1"} {
		if got, ok := parseRelease(text); ok {
			t.Errorf("%s: %v", text, got)
		}
	}
	for _, text := range []string{"", "v1.2", "1.2.x", "v1.2.3.4"} {
		if _, ok := parsePatched(text); ok {
			t.Error(text)
		}
	}
	if v, ok := parsePatched("v1.7.0-rc.1"); !ok || v != [3]int{1, 7, 0} {
		t.Error(v, ok)
	}
}

// FuzzReleases: versions are text of others.
func FuzzReleases(f *testing.F) {
	f.Add("v1.30.4-gke.1")
	f.Add("6.")
	f.Fuzz(func(_ *testing.T, text string) {
		parseRelease(text)
		parsePatched(text)
	})
}

// TestPlatformsAreApart: a node is of one platform.
func TestPlatformsAreApart(t *testing.T) {
	names := map[string]bool{}
	for _, p := range Platforms() {
		if names[p.Name] {
			t.Errorf("%s is there twice", p.Name)
		}
		names[p.Name] = true
		if p.Overlay == "" && len(p.Agent) > 0 {
			t.Errorf("%s needs settings and has no overlay", p.Name)
		}
	}
	if !slices.Contains(slices.Collect(maps.Keys(names)), "kind") {
		t.Error("no kind")
	}
}
