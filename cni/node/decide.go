package node

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/enablement"
	"github.com/ambitmesh/ambit/cni/enroll"
)

// Names that users and other components know.
const (
	labelMode           = enablement.Label
	modeAmbient         = enablement.Ambient
	modeNone            = enablement.None
	annotationSidecar   = "sidecar.istio.io/status"
	annotationRedirect  = "ambient.istio.io/redirection"
	annotationReason    = "ambitmesh.io/redirection-reason"
	annotationOlder     = "ambitmesh.io/older-connections"
	annotationLimits    = "ambitmesh.io/capture-limits"
	redirectionEnabled  = "enabled"
	redirectionPending  = "pending"
	labelApp            = "app"
	appZtunnel          = "ztunnel"
	annotationStaticUID = "kubernetes.io/config.hash"
)

// Rules are the settings that decide about enrolment.
type Rules struct {
	ExcludeNamespaces []string // never enrolled
	OwnNamespace      string   // where our components run
	// Selectors say which pods ask for the mesh; nil is the default.
	Selectors enablement.Selectors
}

// Decision is what is to be done with a pod.
type Decision struct {
	Enrol bool
	// Asked says that labels ask for the pod although it is not enrolled;
	// Reason then belongs on the pod.
	Asked  bool
	Reason string
}

// Decide says whether a pod is to be captured. The first rule that applies
// wins; they are ordered so that what makes capture impossible comes first.
func Decide(r Rules, pod *corev1.Pod, namespace map[string]string) Decision {
	asked := r.asks(pod.Labels, namespace)
	refuse := func(reason string) Decision { return Decision{Asked: asked, Reason: reason} }
	switch _, sidecar := pod.Annotations[annotationSidecar]; {
	case pod.Spec.HostNetwork:
		return refuse("uses the node's network namespace")
	case sidecar:
		return refuse("has a sidecar")
	case slices.Contains(r.ExcludeNamespaces, pod.Namespace):
		return refuse(fmt.Sprintf("namespace %s is excluded", pod.Namespace))
	case r.OwnNamespace == pod.Namespace:
		return refuse(fmt.Sprintf("namespace %s is the mesh's own", pod.Namespace))
	case pod.Labels[labelApp] == appZtunnel && pod.Labels[labelMode] == modeNone:
		return refuse("is a ztunnel")
	case terminal(pod):
		return Decision{Reason: "has ended"}
	case !asked:
		return Decision{Reason: "not labelled"}
	}
	return Decision{Enrol: true, Asked: true}
}

// asks is the enablement rule.
func (r Rules) asks(pod, namespace map[string]string) bool {
	if r.Selectors == nil {
		return enablement.Default().Match(pod, namespace)
	}
	return r.Selectors.Match(pod, namespace)
}

// terminal pods have no process left that could send.
func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// NamespaceEnrolment is what the plugin may assume about a pod of the
// namespace when it cannot ask. pods are those of the namespace on this node.
func NamespaceEnrolment(r Rules, name string, labels map[string]string, pods []*corev1.Pod) enroll.Enrolment {
	if slices.Contains(r.ExcludeNamespaces, name) || r.OwnNamespace == name {
		return enroll.Outside
	}
	if r.asks(nil, labels) {
		return enroll.Enrolled
	}
	for _, p := range pods {
		if r.asks(p.Labels, labels) {
			return enroll.Mixed
		}
	}
	return enroll.Outside
}

// runtimeUID is the uid under which the container runtime knows the pod: that
// of a static pod is the hash of its manifest, not the mirror object's.
func runtimeUID(pod *corev1.Pod) string {
	if h := pod.Annotations[annotationStaticUID]; h != "" {
		return h
	}
	return string(pod.UID)
}
