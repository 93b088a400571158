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

// held leaves out of a pod's addresses those that another pod has with more
// right. The API server may not have heard yet that a pod is gone when its
// address is another's already; and on a node that is cut off it hears nothing
// for minutes.
func held(pod *corev1.Pod, addrs []netip.Addr, objs Objects) []netip.Addr {
	if pod.Spec.HostNetwork {
		return addrs
	}
	lost := func(a netip.Addr) bool {
		return slices.ContainsFunc(objs.PodsAt(a), func(other *corev1.Pod) bool {
			same := other.Name == pod.Name && other.Namespace == pod.Namespace
			return !same && claim(other, pod, a, objs) > 0
		})
	}
	if !slices.ContainsFunc(addrs, lost) {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), lost)
}

// claim orders pods that say they have address a: the newest has it, of those of
// one second the last by name. But a kubelet writes what it likes about its own
// pods, so one whose node the address was handed to goes before others, as long
// as it is there.
func claim(p, q *corev1.Pod, a netip.Addr, objs Objects) int {
	return cmp.Or(cmp.Compare(rightful(p, a, objs), rightful(q, a, objs)),
		p.CreationTimestamp.Compare(q.CreationTimestamp.Time),
		cmp.Compare(p.Namespace, q.Namespace), cmp.Compare(p.Name, q.Name))
}

// rightful is 1 for a pod that is not going, on a node that answers and whose
// range a is of, else 0.
func rightful(pod *corev1.Pod, a netip.Addr, objs Objects) int {
	node := objs.Node(pod.Spec.NodeName)
	if pod.DeletionTimestamp != nil || node == nil || !nodeReady(node) {
		return 0
	}
	for _, text := range node.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil && p.Contains(a) {
			return 1
		}
	}
	return 0
}

// nodeReady: what a node that does not answer last said of its pods is no longer
// known to be so. The node controller marks the pods too, one after the other.
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
