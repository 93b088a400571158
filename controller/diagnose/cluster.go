package diagnose

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
)

// Cluster is everything Precheck looks at. What could not be read is empty and
// named in Unread.
type Cluster struct {
	Version         string          // of the API server, as /version says it
	APIs            map[string]bool // "group/version resource", of those asked for
	Nodes           []corev1.Node
	Namespaces      []corev1.Namespace
	Pods            []corev1.Pod
	DaemonSets      []appsv1.DaemonSet
	Deployments     []appsv1.Deployment
	Services        []corev1.Service // of kube-system
	NetworkPolicies []networkingv1.NetworkPolicy
	RuntimeClasses  []nodev1.RuntimeClass
	Quotas          []corev1.ResourceQuota // of the system namespace
	LimitRanges     []corev1.LimitRange    // of the system namespace
	Definitions     []Definition           // of those in Wanted
	Cilium          map[string]string      // its ConfigMap, nil when there is none
	// Settings are the ConfigMaps of the mesh's settings by their namespace, of
	// those in Options.Roots.
	Settings map[string]*corev1.ConfigMap
	Calico   map[string]any // spec of its FelixConfiguration "default"
	Owned    []string       // objects that carry Ambit's label and name
	Denied   []string       // what the caller may not do, of InstallRights
	Unread   []string       // what could not be asked, and why
}

// Definition is a custom resource definition as far as it matters here.
type Definition struct {
	Name           string
	Served         []string // versions
	Status         bool     // v1 has the status subresource
	BundleVersion  string   // Gateway API's annotations
	Channel        string
	ManagedByOther string // field manager of somebody who is not us, if any
}

// Options are how the caller means to install.
type Options struct {
	System      string   // namespace of Ambit
	BesideIstio bool     // another control plane is there on purpose
	Namespaces  []string // to be labelled soon
}

// has says whether the API server serves a resource; nil APIs means that it
// was not asked.
func (c *Cluster) has(api string) bool { return c.APIs == nil || c.APIs[api] }

// installed is the node agent's DaemonSet, nil before installation.
func (c *Cluster) installed(o Options) *appsv1.DaemonSet {
	for i := range c.DaemonSets {
		if d := &c.DaemonSets[i]; d.Namespace == o.System && d.Name == "ambit-cni-node" {
			return d
		}
	}
	return nil
}

func (c *Cluster) namespace(name string) *corev1.Namespace {
	for i := range c.Namespaces {
		if c.Namespaces[i].Name == name {
			return &c.Namespaces[i]
		}
	}
	return nil
}
