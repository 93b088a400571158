package diagnose

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Names users see.
const (
	labelMode         = "istio.io/dataplane-mode"
	modeAmbient       = "ambient"
	modeNone          = "none"
	annotationSidecar = "sidecar.istio.io/status"
)

// enrols says whether a namespace is in the mesh, or is to be soon.
func enrols(n *corev1.Namespace, o Options) bool {
	return n.Labels[labelMode] == modeAmbient || slices.Contains(o.Namespaces, n.Name)
}

// enrolled says whether labels ask for a pod to be in the mesh.
func enrolled(p *corev1.Pod, namespace bool) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return false
	}
	switch p.Labels[labelMode] {
	case modeAmbient:
		return true
	case modeNone:
		return false
	}
	return namespace
}

// enrolledPods looks for pods that the label asks for and that capture cannot
// have.
func enrolledPods(c *Cluster, o Options, f *findings) {
	inMesh := map[string]bool{}
	for i := range c.Namespaces {
		n := &c.Namespaces[i]
		if inMesh[n.Name] = enrols(n, o); !inMesh[n.Name] {
			continue
		}
		object := "namespace " + n.Name
		switch {
		case excluded(c, o)[n.Name]:
			f.add(Warning, object, "is labelled, and is excluded in the node agent's settings (EXCLUDE_NAMESPACES): the label has no effect", "")
		case n.Labels["istio-injection"] == "enabled" || n.Labels["istio.io/rev"] != "":
			f.add(Warning, object, "asks for Istio's sidecars too; pods that have one stay outside the mesh", "take the label istio-injection or istio.io/rev off and restart the pods")
		case n.Annotations["linkerd.io/inject"] == "enabled":
			f.add(Warning, object, "asks for Linkerd's sidecars too; both would capture", "take the annotation linkerd.io/inject off and restart the pods")
		}
	}
	for _, name := range o.Namespaces {
		if c.namespace(name) == nil {
			f.add(Error, "namespace "+name, "there is none", "")
		}
	}
	handlers := map[string]string{}
	for i := range c.RuntimeClasses {
		handlers[c.RuntimeClasses[i].Name] = c.RuntimeClasses[i].Handler
	}
	fargate := map[string]bool{}
	for i := range c.Nodes {
		fargate[c.Nodes[i].Name], _ = noAgents(&c.Nodes[i])
	}
	type kind struct {
		level    Level
		what, do string
	}
	groups := map[string]map[kind][]string{}
	for i := range c.Pods {
		p := &c.Pods[i]
		if !enrolled(p, inMesh[p.Namespace]) {
			continue
		}
		var k kind
		switch {
		case p.Spec.HostNetwork:
			k = kind{Info, "use the node's network and stay outside the mesh", ""}
		case p.Annotations[annotationSidecar] != "":
			k = kind{Info, "have a sidecar and stay outside the mesh", ""}
		case hasContainer(p, "linkerd-proxy"):
			k = kind{Warning, "have Linkerd's proxy, whose rules capture too", "take linkerd.io/inject off and restart them, or label them " + labelMode + "=none"}
		case p.Spec.RuntimeClassName != nil && ownStack(*p.Spec.RuntimeClassName, handlers[*p.Spec.RuntimeClassName]):
			k = kind{Error, "run in runtime class " + *p.Spec.RuntimeClassName + ", with a network stack of their own that this kernel does not see: they are refused, and new ones do not start",
				"label them " + labelMode + "=none"}
		case fargate[p.Spec.NodeName]:
			k = kind{Warning, "are on nodes that run no DaemonSets and stay outside the mesh", ""}
		default:
			continue
		}
		if groups[p.Namespace] == nil {
			groups[p.Namespace] = map[kind][]string{}
		}
		groups[p.Namespace][k] = append(groups[p.Namespace][k], p.Name)
	}
	for namespace, kinds := range groups {
		for k, names := range kinds {
			f.add(k.level, "pods of "+namespace, few(names)+": "+k.what, k.do)
		}
	}
}

// excluded are the namespaces the agent leaves alone: as it is installed, or as
// it would be.
func excluded(c *Cluster, o Options) map[string]bool {
	list := "kube-system"
	if d := c.installed(o); d != nil {
		if v, ok := environment(d.Spec.Template.Spec)["EXCLUDE_NAMESPACES"]; ok {
			list = v
		}
	}
	m := map[string]bool{o.System: true}
	for n := range strings.SplitSeq(list, ",") {
		m[strings.TrimSpace(n)] = true
	}
	return m
}

func hasContainer(p *corev1.Pod, name string) bool {
	return slices.ContainsFunc(slices.Concat(p.Spec.InitContainers, p.Spec.Containers), func(c corev1.Container) bool { return c.Name == name })
}

// ownStack recognises runtimes whose applications do not use this kernel's
// network stack. The node agent has the same list (cni/cri) and the last word:
// it asks the runtime.
func ownStack(names ...string) bool {
	for _, n := range names {
		for _, word := range []string{"runsc", "gvisor", "kata", "firecracker", "krun", "quark"} {
			if strings.Contains(strings.ToLower(n), word) {
				return true
			}
		}
	}
	return false
}
