package translate

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestEnrolled(t *testing.T) {
	const mode = DataplaneModeLabel
	none := map[string]string{}
	ambient := map[string]string{mode: DataplaneAmbient}
	for _, c := range []struct {
		name string
		ns   map[string]string
		pod  corev1.Pod
		want bool
		why  string
	}{
		{"nothing", none, corev1.Pod{}, false, "neither pod nor namespace has label istio.io/dataplane-mode=ambient"},
		{"pod alone", none, labelled(ambient), true, "pod label istio.io/dataplane-mode=ambient"},
		{"namespace alone", ambient, corev1.Pod{}, true, "namespace label istio.io/dataplane-mode=ambient"},
		{"pod opts out", ambient, labelled(map[string]string{mode: "none"}), false, "pod label istio.io/dataplane-mode=none"},
		{"pod wins over namespace none", map[string]string{mode: "none"}, labelled(ambient), true, "pod label istio.io/dataplane-mode=ambient"},
		{"other value is no value", ambient, labelled(map[string]string{mode: "sidecar"}), true, "namespace label istio.io/dataplane-mode=ambient"},
		{"namespace other value", map[string]string{mode: "Ambient"}, corev1.Pod{}, false, "neither pod nor namespace has label istio.io/dataplane-mode=ambient"},
		{"injection label without a sidecar", map[string]string{mode: DataplaneAmbient, "istio-injection": "enabled"}, corev1.Pod{}, true, "namespace label istio.io/dataplane-mode=ambient"},
		{"sidecar", ambient, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"sidecar.istio.io/status": ""}}}, false,
			"the pod has a sidecar (annotation sidecar.istio.io/status)"},
		{"host network first", ambient, corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"sidecar.istio.io/status": ""}},
			Spec:       corev1.PodSpec{HostNetwork: true},
		}, false, "the pod uses the host's network namespace"},
		{"excluded namespace", ambient, in("kube-system", ambient), false, "namespace kube-system is excluded"},
		{"ztunnel", ambient, in("ambit-system", map[string]string{"app": "ztunnel", mode: DataplaneAmbient}), false, "the pod is a ztunnel"},
		{"app ztunnel elsewhere", ambient, in("prod", map[string]string{"app": "ztunnel"}), true, "namespace label istio.io/dataplane-mode=ambient"},
		{"succeeded", ambient, corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}, false, "the pod has ended (Succeeded)"},
		{"failed", ambient, corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed}}, false, "the pod has ended (Failed)"},
		{"pending", ambient, corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending}}, true, "namespace label istio.io/dataplane-mode=ambient"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, why := Enrolled(c.ns, &c.pod)
			if got != c.want || why != c.why {
				t.Errorf("got %t, %q; want %t, %q", got, why, c.want, c.why)
			}
		})
	}
}

func labelled(l map[string]string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Labels: l}}
}

func in(namespace string, l map[string]string) corev1.Pod {
	p := labelled(l)
	p.Namespace = namespace
	return p
}
