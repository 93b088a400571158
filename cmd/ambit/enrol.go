package main

import corev1 "k8s.io/api/core/v1"

// Names users see; all but the last are Istio's.
const (
	labelMode             = "istio.io/dataplane-mode"
	annotationRedirection = "ambient.istio.io/redirection"
	annotationSidecar     = "sidecar.istio.io/status"
	annotationReason      = "ambitmesh.io/redirection-reason"

	modeAmbient = "ambient"
	modeNone    = "none"
)

// wanted says whether a pod should be captured, and in one phrase why. It is
// the node agent's decision seen from its inputs: first hit wins.
func wanted(pod *corev1.Pod, namespaceLabels map[string]string, excluded map[string]bool) (bool, string) {
	switch mode := pod.Labels[labelMode]; {
	case pod.Spec.HostNetwork:
		return false, "shares the node's network, which has nothing private to capture"
	case pod.Annotations[annotationSidecar] != "":
		return false, "has a sidecar, which captures for itself"
	case excluded[pod.Namespace]:
		return false, "namespace is excluded in the node agent's settings"
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return false, "has ended"
	case mode == modeAmbient:
		return true, "label on the pod"
	case mode == modeNone:
		return false, "opted out by its own label"
	case namespaceLabels[labelMode] == modeAmbient:
		return true, "label on the namespace"
	}
	return false, "neither the pod nor its namespace has the label " + labelMode + "=" + modeAmbient
}
