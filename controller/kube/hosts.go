package kube

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/controller/translate"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// PodNode is the node pod namespace/name runs on. It reports false for a pod
// that is unknown, not bound to a node, of another UID or account, or has ended.
func (c *Controller) PodNode(namespace, name, uid, serviceAccount string) (string, bool) {
	pod := get[*corev1.Pod](c.caches.pods, namespace+"/"+name)
	if pod == nil || string(pod.UID) != uid || account(pod) != serviceAccount || pod.Spec.NodeName == "" || translate.Ended(pod) {
		return "", false
	}
	return pod.Spec.NodeName, true
}

// Hosts reports whether node has a reason to speak as id: an enrolled pod that
// has not ended runs there under that service account, or id is that node's
// ztunnel itself.
func (c *Controller) Hosts(node string, id identity.ID) bool {
	if node == "" || id.TrustDomain != c.cfg.Translate.TrustDomain {
		return false
	}
	var labels map[string]string
	if ns := get[*corev1.Namespace](c.caches.namespaces, id.Namespace); ns != nil {
		labels = ns.Labels
	}
	for _, pod := range list[*corev1.Pod](c.caches.pods, byAccount, accountKey(node, id.Namespace, id.ServiceAccount)) {
		if enrolled, _ := c.cfg.Enrolment.Enrolled(labels, pod); enrolled || c.ztunnel(pod) {
			return true
		}
	}
	return false
}

func (c *Controller) ztunnel(pod *corev1.Pod) bool {
	return c.cfg.Enrolment.Ztunnel(pod) && !translate.Ended(pod)
}
