package translate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/enablement"
)

// Labels and annotations that decide about a pod; values other than the two
// modes have no effect.
const (
	DataplaneModeLabel    = enablement.Label
	DataplaneAmbient      = enablement.Ambient
	DataplaneNone         = enablement.None
	RedirectionAnnotation = "ambient.istio.io/redirection"
	RedirectionEnabled    = "enabled"

	sidecarAnnotation = "sidecar.istio.io/status"
)

// Enrolment is the part of the enrolment decision that an installation sets.
type Enrolment struct {
	Excluded        []string // namespaces that are never enrolled
	SystemNamespace string   // where ztunnel pods run
	// Selectors say which pods ask for the mesh; nil is the default. They are
	// the node agents'.
	Selectors enablement.Selectors
}

// DefaultEnrolment is what the manifests install.
func DefaultEnrolment() Enrolment {
	return Enrolment{Excluded: []string{"kube-system"}, SystemNamespace: "ambit-system"}
}

// Enrolled decides with the default installation settings.
func Enrolled(nsLabels map[string]string, pod *corev1.Pod) (bool, string) {
	return DefaultEnrolment().Enrolled(nsLabels, pod)
}

// Enrolled decides whether pod belongs to the mesh and says why. The first
// test that hits decides; the order is part of the contract with users.
func (e Enrolment) Enrolled(nsLabels map[string]string, pod *corev1.Pod) (bool, string) {
	switch _, sidecar := pod.Annotations[sidecarAnnotation]; {
	case pod.Spec.HostNetwork:
		return false, "the pod uses the host's network namespace"
	case sidecar:
		return false, "the pod has a sidecar (annotation " + sidecarAnnotation + ")"
	case slices.Contains(e.Excluded, pod.Namespace):
		return false, "namespace " + pod.Namespace + " is excluded"
	case e.Ztunnel(pod):
		return false, "the pod is a ztunnel"
	case Ended(pod):
		return false, "the pod has ended (" + string(pod.Status.Phase) + ")"
	}
	if e.Selectors != nil {
		if e.Selectors.Match(pod.Labels, nsLabels) {
			return true, "an enablement selector matches"
		}
		return false, "no enablement selector matches"
	}
	switch mode := pod.Labels[DataplaneModeLabel]; {
	case mode == DataplaneAmbient:
		return true, "pod label " + DataplaneModeLabel + "=" + DataplaneAmbient
	case mode == DataplaneNone:
		return false, "pod label " + DataplaneModeLabel + "=" + DataplaneNone
	case nsLabels[DataplaneModeLabel] == DataplaneAmbient:
		return true, "namespace label " + DataplaneModeLabel + "=" + DataplaneAmbient
	}
	return false, "neither pod nor namespace has label " + DataplaneModeLabel + "=" + DataplaneAmbient
}

// Ztunnel reports whether pod is a ztunnel of this installation.
func (e Enrolment) Ztunnel(pod *corev1.Pod) bool {
	return pod.Namespace == e.SystemNamespace && pod.Labels["app"] == "ztunnel"
}

// Ended reports whether pod has reached a phase it never leaves.
func Ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
