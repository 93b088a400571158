package node

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambitmesh/ambit/cni/enablement"
	"github.com/ambitmesh/ambit/cni/enroll"
)

var rules = Rules{ExcludeNamespaces: []string{"kube-system"}, OwnNamespace: "ambit-system"}

// TestDecide is the documented order: the first rule that applies wins.
//
//ambit:feature enrol-order enrol-labels enrol-init
func TestDecide(t *testing.T) {
	ambient := map[string]string{labelMode: modeAmbient}
	for _, c := range []struct {
		name      string
		pod       corev1.Pod
		namespace map[string]string
		want      Decision
	}{
		{"nothing", pod("a", nil), nil, Decision{Reason: "not labelled"}},
		{"namespace", pod("a", nil), ambient, Decision{Enrol: true, Asked: true}},
		{"pod", pod("a", ambient), nil, Decision{Enrol: true, Asked: true}},
		{"opt out", pod("a", map[string]string{labelMode: modeNone}), ambient, Decision{Reason: "not labelled"}},
		{"pod wins over none", pod("a", ambient), map[string]string{labelMode: modeNone}, Decision{Enrol: true, Asked: true}},
		{"another value has no effect", pod("a", map[string]string{labelMode: "x"}), ambient, Decision{Enrol: true, Asked: true}},
		{"host network", edit(pod("a", nil), func(p *corev1.Pod) { p.Spec.HostNetwork = true }), ambient, Decision{Asked: true, Reason: "uses the node's network namespace"}},
		{"host network, not asked", edit(pod("a", nil), func(p *corev1.Pod) { p.Spec.HostNetwork = true }), nil, Decision{Reason: "uses the node's network namespace"}},
		{"sidecar", edit(pod("a", nil), func(p *corev1.Pod) { p.Annotations = map[string]string{annotationSidecar: "{}"} }), ambient, Decision{Asked: true, Reason: "has a sidecar"}},
		{"a sidecar that was to be injected and was not", pod("a", nil), map[string]string{labelMode: modeAmbient, "istio-injection": "enabled"}, Decision{Enrol: true, Asked: true}},
		{"a sidecar with an empty status", edit(pod("a", nil), func(p *corev1.Pod) { p.Annotations = map[string]string{annotationSidecar: ""} }), ambient, Decision{Asked: true, Reason: "has a sidecar"}},
		{"a native sidecar of its own", edit(pod("a", nil), func(p *corev1.Pod) {
			always := corev1.ContainerRestartPolicyAlways
			p.Spec.InitContainers = []corev1.Container{{Name: "logs", RestartPolicy: &always}}
		}), ambient, Decision{Enrol: true, Asked: true}},
		{"a native sidecar of Istio's", edit(pod("a", nil), func(p *corev1.Pod) {
			always := corev1.ContainerRestartPolicyAlways
			p.Spec.InitContainers = []corev1.Container{{Name: "istio-proxy", RestartPolicy: &always}}
			p.Annotations = map[string]string{annotationSidecar: "{}"}
		}), ambient, Decision{Asked: true, Reason: "has a sidecar"}},
		{"a namespace that says none", pod("a", nil), map[string]string{labelMode: modeNone}, Decision{Reason: "not labelled"}},
		{"waits for its first container", edit(pod("a", nil), func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }), ambient, Decision{Enrol: true, Asked: true}},
		{"excluded", pod("kube-system", ambient), ambient, Decision{Asked: true, Reason: "namespace kube-system is excluded"}},
		{"own", pod("ambit-system", nil), ambient, Decision{Asked: true, Reason: "namespace ambit-system is the mesh's own"}},
		{"ended", edit(pod("a", nil), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), ambient, Decision{Reason: "has ended"}},
		{"failed", edit(pod("a", nil), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), ambient, Decision{Reason: "has ended"}},
		{"ztunnel elsewhere", pod("mesh", map[string]string{labelApp: appZtunnel, labelMode: modeNone}), ambient, Decision{Reason: "is a ztunnel"}},
		{"an application called ztunnel", pod("a", map[string]string{labelApp: appZtunnel}), ambient, Decision{Enrol: true, Asked: true}},
	} {
		if got := Decide(rules, &c.pod, c.namespace); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func pod(namespace string, labels map[string]string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p", Labels: labels}}
}

func edit(p corev1.Pod, f func(*corev1.Pod)) corev1.Pod { f(&p); return p }

func TestNamespaceEnrolment(t *testing.T) {
	asking, plain := pod("a", map[string]string{labelMode: modeAmbient}), pod("a", nil)
	for _, c := range []struct {
		name   string
		labels map[string]string
		pods   []*corev1.Pod
		want   enroll.Enrolment
	}{
		{"a", nil, nil, enroll.Outside},
		{"a", nil, []*corev1.Pod{&plain}, enroll.Outside},
		{"a", nil, []*corev1.Pod{&plain, &asking}, enroll.Mixed},
		{"a", map[string]string{labelMode: modeNone}, nil, enroll.Outside},
		{"a", map[string]string{labelMode: modeAmbient}, nil, enroll.Enrolled},
		{"kube-system", map[string]string{labelMode: modeAmbient}, nil, enroll.Outside},
		{"ambit-system", map[string]string{labelMode: modeAmbient}, nil, enroll.Outside},
	} {
		if got := NamespaceEnrolment(rules, c.name, c.labels, c.pods); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.name, c.labels, got, c.want)
		}
	}
}

// TestProbePorts: everything the kubelet dials in a pod, and nothing else.
//
//ambit:feature probe-ports
func TestProbePorts(t *testing.T) {
	http := func(p intstr.IntOrString) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: p}}}
	}
	tcp := func(n int32) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(n)}}}
	}
	at := func(host string, n int32) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: host, Port: intstr.FromInt32(n)}}}
	}
	always := corev1.ContainerRestartPolicyAlways
	p := corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{RestartPolicy: &always, StartupProbe: tcp(7000)}, {}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
			Ports: []corev1.ContainerPort{{ContainerPort: 666}}}}},
		Containers: []corev1.Container{
			{
				Ports:         []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}, {Name: "unused", ContainerPort: 8081}},
				LivenessProbe: http(intstr.FromString("web")), ReadinessProbe: http(intstr.FromInt32(8080)),
				StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}},
				Lifecycle: &corev1.Lifecycle{
					PostStart: &corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9001)}}, // not carried out
					PreStop:   &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(9000)}}},
			},
			{
				LivenessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 50051}}},
				ReadinessProbe: http(intstr.FromString("web")), // another container's name is none
				StartupProbe:   at("example.com", 1234),        // not to the pod
				Lifecycle:      &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("9002")}}},
			},
			{LivenessProbe: at("10.0.0.9", 1235), ReadinessProbe: at("10.0.0.5", 1236), StartupProbe: at("fd00::5", 1237)},
			{LivenessProbe: at("127.0.0.1", 1238)}, // the node's own
			{LivenessProbe: http(intstr.FromInt32(0)), ReadinessProbe: http(intstr.FromInt32(65536)), StartupProbe: http(intstr.FromString("-1"))},
		},
	}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.5"}, {IP: "fd00::5"}}}}
	if got, want := fmt.Sprint(ProbePorts(&p)), "[1236 1237 7000 8080 9000 9002 50051]"; got != want {
		t.Errorf("ports %s, want %s", got, want)
	}
}

func TestCgroupPod(t *testing.T) {
	const uid = "bf581564-6615-4275-9b6d-a4882b9cf5be"
	for _, c := range []struct{ content, want string }{
		{"0::/kubepods/besteffort/pod" + uid + "/abc\n", uid},
		{"0::/../../podbf581564-6615-4275-9b6d-a4882b9cf5be/abc\n", uid},
		{"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podbf581564_6615_4275_9b6d_a4882b9cf5be.slice/cri-containerd-abc.scope\n", uid},
		{"12:cpu:/x\n1:name=systemd:/kubepods/pod" + uid + "/c\n", uid},
		{"0::/system.slice/sshd.service\n", ""},
		{"", ""},
	} {
		if got, ok := cgroupPod(c.content); got != c.want || ok != (c.want != "") {
			t.Errorf("%q: %q, want %q", c.content, got, c.want)
		}
	}
}

func FuzzCgroupPod(f *testing.F) {
	f.Add("0::/kubepods/podbf581564-6615-4275-9b6d-a4882b9cf5be/abc")
	f.Fuzz(func(t *testing.T, s string) {
		if uid, ok := cgroupPod(s); ok && len(uid) != 36 {
			t.Fatalf("uid %q", uid)
		}
	})
}

// TestSelectors: an installation's own selectors take the place of the labels,
// for pods and for what the plugin may assume without an agent.
//
//ambit:feature enrol-selectors
func TestSelectors(t *testing.T) {
	s, err := enablement.Parse("- namespaceSelector: {matchLabels: {mesh: all}}\n- podSelector: {matchLabels: {mesh: me}}")
	if err != nil {
		t.Fatal(err)
	}
	r := rules
	r.Selectors = s
	all, mine, labelled := map[string]string{"mesh": "all"}, pod("a", map[string]string{"mesh": "me"}), pod("a", map[string]string{labelMode: modeAmbient})
	for _, c := range []struct {
		pod       corev1.Pod
		namespace map[string]string
		want      bool
	}{
		{mine, nil, true},
		{labelled, nil, false},
		{pod("a", nil), all, true},
		{pod("kube-system", nil), all, false},
	} {
		if got := Decide(r, &c.pod, c.namespace); got.Enrol != c.want {
			t.Errorf("%v in %v: %+v", c.pod.Labels, c.namespace, got)
		}
	}
	for want, got := range map[enroll.Enrolment]enroll.Enrolment{
		enroll.Enrolled: NamespaceEnrolment(r, "a", all, nil),
		enroll.Mixed:    NamespaceEnrolment(r, "a", nil, []*corev1.Pod{&labelled, &mine}),
		enroll.Outside:  NamespaceEnrolment(r, "a", map[string]string{labelMode: modeAmbient}, []*corev1.Pod{&labelled}),
	} {
		if got != want {
			t.Errorf("without an agent: %s, want %s", got, want)
		}
	}
}

// TestWishes: what a pod's annotations say, and that what cannot be read counts
// as not there and is named.
//
//ambit:feature enrol-annotations
func TestWishes(t *testing.T) {
	for _, c := range []struct {
		inbound, dns, reroute string
		def                   bool
		want                  wishes
		unread                int
	}{
		{"", "", "", true, wishes{dns: true}, 0},
		{"true", "false", "", true, wishes{inboundDirect: true}, 0},
		{"false", "true", "", false, wishes{dns: true}, 0},
		{"yes", "on", "", false, wishes{}, 2},
		{"1", "0", "", true, wishes{inboundDirect: true}, 0},
		{"", "", "br0, docker0,br0,", false, wishes{reroute: "br0,docker0"}, 0},
		{"", "", "a-name-of-16-char,eth/0,kvm1", false, wishes{reroute: "kvm1"}, 2},
		{"", "", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", false, wishes{reroute: "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"}, 1},
	} {
		notes := map[string]string{}
		for name, v := range map[string]string{annotationInboundDirect: c.inbound, annotationDNS: c.dns, annotationReroute: c.reroute} {
			if v != "" {
				notes[name] = v
			}
		}
		if got, unread := Wishes(notes, c.def); got != c.want || len(unread) != c.unread {
			t.Errorf("%v: %+v, unread %q; want %+v, %d unread", notes, got, unread, c.want, c.unread)
		}
	}
}
