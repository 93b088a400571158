package kube

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// Lacking are those that may meet a certificate of a new root and do not have
// the root yet, given the UIDs of the pods that have it: ztunnels that run,
// nodes with captured pods where no ztunnel says anything, and namespaces whose
// ConfigMap is behind. A ztunnel that does not run yet gets the roots before it
// serves anybody.
func (c *Controller) Lacking(has func(podUID string) bool) []string {
	pods := c.caches.pods.GetIndexer().List()
	list := make([]*corev1.Pod, len(pods))
	for i, p := range pods {
		list[i] = p.(*corev1.Pod)
	}
	return append(lackingNodes(list, c.cfg.Enrolment, has), c.writer.lacking()...)
}

func lackingNodes(pods []*corev1.Pod, e translate.Enrolment, has func(podUID string) bool) []string {
	var out []string
	reported, captured := map[string]bool{}, map[string]bool{}
	for _, p := range pods {
		switch {
		case translate.Ended(p) || p.Spec.NodeName == "":
		case e.Ztunnel(p):
			switch {
			case has(string(p.UID)):
				reported[p.Spec.NodeName] = true
			case p.Status.Phase == corev1.PodRunning:
				reported[p.Spec.NodeName] = true // the line below says more than the node's
				out = append(out, "ztunnel "+p.Name+" on "+p.Spec.NodeName)
			}
		case p.Annotations[translate.RedirectionAnnotation] == translate.RedirectionEnabled:
			captured[p.Spec.NodeName] = true
		}
	}
	for node := range captured {
		if !reported[node] {
			out = append(out, "node "+node)
		}
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out
}
