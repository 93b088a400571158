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

// enrolment is what should become of a pod.
type enrolment int

const (
	outside  enrolment = iota // no label asks for it
	refused                   // a label asks, and it cannot or may not be
	enrolled                  // it should be captured
)

// enrol says whether a pod should be captured, and in one phrase why. It is the
// node agent's decision seen from its inputs: first hit wins.
func enrol(pod *corev1.Pod, f facts) (enrolment, string) {
	asked, why := asks(pod.Labels[labelMode], f.Namespaces[pod.Namespace][labelMode])
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return outside, "has ended"
	}
	if !asked {
		return outside, why
	}
	switch {
	case pod.Spec.HostNetwork:
		return refused, "uses the node's network namespace, which has nothing private to capture"
	case pod.Annotations[annotationSidecar] != "":
		return refused, "has a sidecar, which captures for itself"
	case f.Excluded[pod.Namespace]:
		return refused, "namespace " + pod.Namespace + " is excluded in the node agent's settings"
	case pod.Namespace == f.System:
		return refused, "namespace " + pod.Namespace + " is the mesh's own"
	}
	return enrolled, why
}

// asks is the rule for labels: the pod's own wins over its namespace's.
func asks(pod, namespace string) (bool, string) {
	switch {
	case pod == modeAmbient:
		return true, "label on the pod"
	case pod == modeNone:
		return false, "opted out by its own label"
	case namespace == modeAmbient:
		return true, "label on the namespace"
	}
	return false, "neither the pod nor its namespace has the label " + labelMode + "=" + modeAmbient
}
