package diagnose

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Platform is a kind of cluster, with what an installation needs there beyond
// the plain one. The overlays in deploy/overlays are the same knowledge as
// manifests; a test there compares.
type Platform struct {
	Name    string
	Overlay string            // folder in deploy/overlays; empty: deploy/ambit
	Agent   map[string]string // variables of the node agent
	BPFFS   bool              // nodes may have no bpffs
	Quota   bool              // the critical priority classes need a quota
	known   func(*corev1.Node) bool
}

// Platforms in the order they are tried: those that run on the machines of
// others first.
func Platforms() []Platform {
	label := func(name string) func(*corev1.Node) bool {
		return func(n *corev1.Node) bool { _, ok := n.Labels[name]; return ok }
	}
	kubelet := func(part string) func(*corev1.Node) bool {
		return func(n *corev1.Node) bool { return strings.Contains(n.Status.NodeInfo.KubeletVersion, part) }
	}
	provider := func(prefix string) func(*corev1.Node) bool {
		return func(n *corev1.Node) bool { return strings.HasPrefix(n.Spec.ProviderID, prefix) }
	}
	oneOf := func(fs ...func(*corev1.Node) bool) func(*corev1.Node) bool {
		return func(n *corev1.Node) bool {
			return slices.ContainsFunc(fs, func(f func(*corev1.Node) bool) bool { return f(n) })
		}
	}
	return []Platform{
		{Name: "kind", Overlay: "kind", BPFFS: true, known: provider("kind://")},
		{Name: "minikube", Overlay: "minikube", BPFFS: true, known: label("minikube.k8s.io/name")},
		{Name: "OpenShift", Overlay: "openshift", Agent: map[string]string{"CNI_BIN_DIR": "/var/lib/cni/bin", "CNI_CONF_DIR": "/etc/kubernetes/cni/net.d"},
			known: label("node.openshift.io/os_id")},
		{Name: "MicroK8s", Overlay: "microk8s", Agent: map[string]string{"CNI_BIN_DIR": "/var/snap/microk8s/current/opt/cni/bin",
			"CNI_CONF_DIR": "/var/snap/microk8s/current/args/cni-network", "CRI_SOCKET": "/var/snap/microk8s/common/run/containerd.sock"},
			known: label("microk8s.io/cluster")},
		{Name: "RKE2", known: kubelet("+rke2")},
		{Name: "k3s", Overlay: "k3s", Agent: map[string]string{"CNI_BIN_DIR": "/var/lib/rancher/k3s/data/cni",
			"CNI_CONF_DIR": "/var/lib/rancher/k3s/agent/etc/cni/net.d"}, known: oneOf(kubelet("+k3s"), provider("k3s://"))},
		{Name: "GKE", Overlay: "gke", Agent: map[string]string{"CNI_BIN_DIR": "/home/kubernetes/bin"}, Quota: true,
			known: oneOf(label("cloud.google.com/gke-nodepool"), kubelet("-gke."))},
		{Name: "EKS", Overlay: "eks", known: oneOf(label("eks.amazonaws.com/nodegroup"), label("eks.amazonaws.com/compute-type"), kubelet("-eks-"))},
		{Name: "AKS", known: label("kubernetes.azure.com/cluster")},
	}
}

// recognize names the platforms of the nodes; empty when none is known.
func recognize(nodes []corev1.Node) []Platform {
	found := map[string]Platform{}
	for i := range nodes {
		for _, p := range Platforms() {
			if p.known(&nodes[i]) {
				found[p.Name] = p
				break
			}
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b Platform) int { return cmp.Compare(a.Name, b.Name) })
}

func platform(c *Cluster, o Options, f *findings) {
	all, there := recognize(c.Nodes), c.installed(o)
	if len(all) == 0 && len(c.Nodes) > 0 {
		do := ""
		if there == nil {
			do = "install deploy/ambit; CNI files are expected in /opt/cni/bin and /etc/cni/net.d"
		}
		f.add(Info, "cluster", "no platform that differs was recognized", do)
	}
	if len(all) > 1 {
		f.add(Warning, "cluster", "nodes of different platforms", "one DaemonSet cannot suit all of them; install one agent for each kind of node with a nodeSelector")
	}
	for _, p := range all {
		folder := "deploy/ambit"
		if p.Overlay != "" {
			folder = "deploy/overlays/" + p.Overlay
		}
		if there == nil {
			f.add(Info, "cluster", "the platform is "+p.Name, "install "+folder+helm(p))
			continue
		}
		f.add(Info, "cluster", "the platform is "+p.Name, "")
		if len(all) == 1 {
			for _, want := range missing(p, there.Spec.Template.Spec) {
				f.add(Error, "daemonset "+there.Namespace+"/"+there.Name, want+", which "+p.Name+" needs", "install "+folder+helm(p))
			}
		}
	}
	for i := range c.Nodes {
		if strings.HasPrefix(c.Nodes[i].Name, "gk3-") {
			f.add(Error, "cluster", "GKE Autopilot runs no privileged pods of others", "use a standard cluster")
			break
		}
	}
}

func helm(p Platform) string {
	if p.Overlay == "" {
		return ""
	}
	return " (Helm: --set platform=" + p.Overlay + ")"
}

// missing compares an installed agent with what the platform needs. A value
// that somebody chose otherwise is left alone.
func missing(p Platform, s corev1.PodSpec) []string {
	set := map[string]bool{}
	for _, c := range s.Containers {
		for _, e := range c.Env {
			set[e.Name] = true
		}
		for _, a := range c.Args {
			name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
			set[strings.ToUpper(strings.ReplaceAll(name, "-", "_"))] = true
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p.Agent)) {
		if !set[name] {
			out = append(out, "is without "+name)
		}
	}
	mounts := slices.ContainsFunc(s.InitContainers, func(c corev1.Container) bool { return slices.Contains(c.Command, "--mount-bpffs") })
	if p.BPFFS && !mounts {
		out = append(out, "is without the init container that mounts a bpffs")
	}
	return out
}
