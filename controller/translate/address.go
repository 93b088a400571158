package translate

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// OwnAddresses are the addresses of a live pod that belong to nobody else: none
// for one that uses its node's. What is no address is left out.
func OwnAddresses(pod *corev1.Pod) []netip.Addr {
	if pod.Spec.HostNetwork || Ended(pod) {
		return nil
	}
	var out []netip.Addr
	for _, text := range addressTexts(pod) {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func addressTexts(pod *corev1.Pod) []string {
	if len(pod.Status.PodIPs) == 0 && pod.Status.PodIP != "" {
		return []string{pod.Status.PodIP}
	}
	texts := make([]string, len(pod.Status.PodIPs))
	for i, ip := range pod.Status.PodIPs {
		texts[i] = ip.IP
	}
	return texts
}

// held leaves out of a pod's addresses those that a newer pod has. The API
// server may not have heard yet that a pod is gone when its address is another's
// already; and on a node that is cut off it hears nothing for minutes.
func held(pod *corev1.Pod, addrs []netip.Addr, objs Objects) []netip.Addr {
	if pod.Spec.HostNetwork {
		return addrs
	}
	lost := func(a netip.Addr) bool {
		return slices.ContainsFunc(objs.PodsAt(a), func(other *corev1.Pod) bool { return newer(other, pod) > 0 })
	}
	if !slices.ContainsFunc(addrs, lost) {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), lost)
}

// newer orders pods by age; those of one second by name, so that there is one
// of them.
func newer(a, b *corev1.Pod) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// nodeReady: what a node that does not answer last
// said of its pods is no longer known to be so. The node controller marks the
// pods too, one after the other.
func nodeReady(node *corev1.Node) bool {
	if node == nil {
		return true // not known, or of a cluster without a record of its nodes
	}
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return true
}
