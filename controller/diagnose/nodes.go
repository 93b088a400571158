package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

type coreService = corev1.Service

// nodes looks at what each node says of itself. Nodes with the same trouble
// are named together.
func nodes(c *Cluster, _ Options, f *findings) {
	if len(c.Nodes) == 0 {
		return
	}
	groups := map[Finding][]string{}
	for i := range c.Nodes {
		for _, g := range node(&c.Nodes[i]) {
			groups[g] = append(groups[g], c.Nodes[i].Name)
		}
	}
	for g, names := range groups {
		f.add(g.Level, "nodes "+few(names), g.What, g.Do)
	}
	kinds := map[string]int{}
	for i := range c.Nodes {
		n := &c.Nodes[i].Status.NodeInfo
		kinds[fmt.Sprintf("Linux %s, %s, %s", n.KernelVersion, n.ContainerRuntimeVersion, n.OSImage)]++
	}
	for k, n := range kinds {
		f.add(Info, "nodes", fmt.Sprintf("%d with %s", n, k), "")
	}
}

// node is what one node gives to say; the finding's object is left out.
func node(n *corev1.Node) (out []Finding) {
	say := func(l Level, what, do string) { out = append(out, Finding{Level: l, What: what, Do: do}) }
	info := &n.Status.NodeInfo
	if outside, why := noAgents(n); outside {
		say(Info, "outside the mesh: "+why, "")
		return out
	}
	if !ready(n) {
		say(Warning, "not ready", "the agent does not start there; its pods are not in the mesh until then")
	}
	switch k, ok := parseRelease(info.KernelVersion); {
	case !ok:
		say(Warning, fmt.Sprintf("kernel version %q cannot be read", info.KernelVersion), "it must be Linux "+kernelFloor.String()+" or newer")
	case k.before(kernelFloor):
		say(Error, fmt.Sprintf("Linux %s is older than %s: it cannot capture", info.KernelVersion, kernelFloor), "use a newer node image")
	case k.before(kernelTCX):
		say(Warning, fmt.Sprintf("Linux %s is older than %s by its number: programs are attached by clsact", info.KernelVersion, kernelTCX),
			"it works; a pod with CAP_NET_ADMIN can take capture off for up to 30 s, and another program on the same device may come first. A newer node image has neither")
	}
	if a := info.Architecture; a != "" && a != "amd64" && a != "arm64" {
		say(Error, "architecture "+a+" is not supported", "keep these nodes out with a taint, and their pods out of enrolled namespaces")
	}
	switch name, version, _ := strings.Cut(info.ContainerRuntimeVersion, "://"); name {
	case "containerd":
		if v, ok := parseRelease(version); ok && v.before(release{1, 6}) {
			say(Warning, "containerd "+version+" is older than 1.6, the oldest tested", "")
		}
	case "cri-o", "":
	case "docker":
		say(Error, "the container runtime is Docker: cri-dockerd does not say in which network namespace a running pod is",
			"use containerd or CRI-O")
	default:
		say(Warning, "container runtime "+info.ContainerRuntimeVersion+" is unknown", "give the agent its socket (CRI_SOCKET); it must answer PodSandboxStatus with the runtime's specification")
	}
	return out
}

// noAgents says whether DaemonSets do not run on a node at all.
func noAgents(n *corev1.Node) (bool, string) {
	switch {
	case n.Status.NodeInfo.OperatingSystem == "windows" || n.Labels["kubernetes.io/os"] == "windows":
		return true, "Windows"
	case n.Labels["eks.amazonaws.com/compute-type"] == "fargate":
		return true, "Fargate runs no DaemonSets"
	case n.Labels["type"] == "virtual-kubelet":
		return true, "a virtual kubelet runs no DaemonSets"
	}
	return false, ""
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// families are told by what pods have, or by what nodes have to give to them.
func families(c *Cluster, _ Options, f *findings) {
	var four, six bool
	see := func(a netip.Addr) {
		four, six = four || a.Unmap().Is4(), six || a.Unmap().Is6()
	}
	for i := range c.Nodes {
		for _, s := range c.Nodes[i].Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(s); err == nil {
				see(p.Addr())
			}
		}
	}
	for i := range c.Pods {
		if c.Pods[i].Spec.HostNetwork {
			continue
		}
		for _, ip := range c.Pods[i].Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				see(a)
			}
		}
	}
	switch {
	case four && six:
		f.add(Info, "pod network", "IPv4 and IPv6; both are captured", "")
	case six:
		f.add(Info, "pod network", "IPv6", "")
	case four:
		f.add(Info, "pod network", "IPv4", "")
	}
}
