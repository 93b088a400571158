package kube

import (
	"fmt"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// TestTrimKeepsMeaning: what is dropped from the caches changes no translation.
func TestTrimKeepsMeaning(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := func() *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "p", Labels: map[string]string{"app": "x"},
				Annotations: map[string]string{translate.RedirectionAnnotation: "enabled"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}},
			Spec: corev1.PodSpec{NodeName: "n", ServiceAccountName: "sa", HostNetwork: true,
				InitContainers: []corev1.Container{{Name: "i", Image: "x", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "main", ContainerPort: 8080}}}},
				Containers:     []corev1.Container{{Name: "c", Env: []corev1.EnvVar{{Name: "A"}}}},
				Volumes:        []corev1.Volume{{Name: "v"}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", HostIP: "192.168.0.1",
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		}
	}
	set := &translate.Set{
		NodeList:    []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z"}}}},
		ServiceList: []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "s"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "x"}, Ports: []corev1.ServicePort{{Port: 80}}}}},
	}
	cfg := translate.Config{ClusterID: "c", ClusterDomain: "d", TrustDomain: "t", RootNamespace: "r"}
	want, err := cfg.Pod(pod(), set)
	if err != nil {
		t.Fatal(err)
	}
	trimmed, err := trim(pod())
	if err != nil {
		t.Fatal(err)
	}
	got, err := cfg.Pod(trimmed.(*corev1.Pod), set)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	if p := trimmed.(*corev1.Pod); p.Spec.Volumes != nil || p.Spec.Containers[0].Env != nil || p.ManagedFields != nil {
		t.Errorf("nothing is trimmed: %s", fmt.Sprint(p))
	}
}

// TestTrimKeepsOfNodes what decides about pods: labels, whether they answer,
// and their ranges.
func TestTrimKeepsOfNodes(t *testing.T) {
	node := func() *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z"}, Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: "{}", "a": "b"}},
			Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.0.0.0/24"}, ProviderID: "x"},
			Status: corev1.NodeStatus{Images: []corev1.ContainerImage{{SizeBytes: 1}}, Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse}, {Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Message: "m"}}},
		}
	}
	trimmed, err := trim(node())
	if err != nil {
		t.Fatal(err)
	}
	want := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: node().Labels, Annotations: map[string]string{"a": "b"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.0.0.0/24"}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}},
	}
	if !reflect.DeepEqual(trimmed, want) {
		t.Errorf("got %+v\nwant %+v", trimmed, want)
	}
}
