package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(ns, name, node string, change ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{PodIP: "10.244.1.5", Phase: corev1.PodRunning},
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

func mode(v string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Labels[labelMode] = v } }
func note(k, v string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[k] = v }
}
func redirected(p *corev1.Pod) { p.Annotations[annotationRedirection] = "enabled" }
func noAddress(p *corev1.Pod)  { p.Status.PodIP = "" }

func TestEnrol(t *testing.T) {
	for _, c := range []struct {
		name      string
		pod       corev1.Pod
		namespace string // value of the namespace's label
		want      enrolment
	}{
		{"nothing labelled", pod("a", "p", "n"), "", outside},
		{"pod labelled", pod("a", "p", "n", mode("ambient")), "", enrolled},
		{"namespace labelled", pod("a", "p", "n"), "ambient", enrolled},
		{"pod opts out", pod("a", "p", "n", mode("none")), "ambient", outside},
		{"pod wins over namespace", pod("a", "p", "n", mode("ambient")), "none", enrolled},
		{"unknown value has no effect", pod("a", "p", "n", mode("sidecar")), "ambient", enrolled},
		{"unknown value on the namespace", pod("a", "p", "n"), "sidecar", outside},
		{"sidecar", pod("a", "p", "n", note(annotationSidecar, "{}")), "ambient", refused},
		{"host network", pod("a", "p", "n", mode("ambient"), func(p *corev1.Pod) { p.Spec.HostNetwork = true }), "ambient", refused},
		{"excluded", pod("kube-system", "p", "n", mode("ambient")), "ambient", refused},
		{"ended", pod("a", "p", "n", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), "ambient", outside},
		{"the mesh's own", pod("ambit-system", "p", "n", mode("ambient")), "", refused},
	} {
		f := facts{System: "ambit-system", Excluded: map[string]bool{"kube-system": true},
			Namespaces: map[string]map[string]string{c.pod.Namespace: {labelMode: c.namespace}}}
		got, why := enrol(&c.pod, f)
		if got != c.want || why == "" {
			t.Errorf("%s: enrol = %v (%s), want %v", c.name, got, why, c.want)
		}
	}
}

// sound is a healthy two-node mesh.
func sound(pods ...corev1.Pod) facts {
	return facts{
		System:    "ambit-system",
		Installed: map[string]expected{partController: {2, 2}, partZtunnel: {2, 2}, partAgent: {2, 2}},
		Components: []component{
			{Part: partController, Pod: "c-1", Node: "node1", Ready: true, Version: "v1"},
			{Part: partController, Pod: "c-2", Node: "node2", Ready: true, Version: "v1"},
			{Part: partZtunnel, Pod: "z-1", Node: "node1", Ready: true, Version: "v1"},
			{Part: partZtunnel, Pod: "z-2", Node: "node2", Ready: true, Version: "v2"},
			{Part: partAgent, Pod: "a-1", Node: "node1", Ready: true},
			{Part: partAgent, Pod: "a-2", Node: "node2", Ready: true},
		},
		Namespaces: map[string]map[string]string{"shop": {labelMode: "ambient"}, "plain": nil},
		Pods:       pods,
	}
}

// TestJudge: what is asked of a cluster leads to the verdict, and the words, of
// status.
//
//ambit:feature networkpolicy-status
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name    string
		facts   func() facts
		healthy bool
		state   state  // of the first pod
		says    string // somewhere in problems, notes or the first pod's reason
	}{
		{"captured", func() facts { return sound(pod("shop", "p", "node1", redirected)) }, true, stateCaptured, "label on the namespace"},
		{"outside", func() facts { return sound(pod("plain", "p", "node1")) }, true, stateOutside, "neither the pod"},
		{"leaving is not ill", func() facts { return sound(pod("plain", "p", "node1", redirected)) }, true, stateLeaving, "neither the pod"},
		{"asked to leave", func() facts {
			f := sound(pod("shop", "p", "node1"))
			f.Leaving = "2026-01-01T00:00:00Z"
			return f
		}, false, stateMissing, "an uninstall was begun at 2026-01-01"},
		{"refused is not ill", func() facts {
			return sound(pod("shop", "p", "node1", func(p *corev1.Pod) { p.Spec.HostNetwork = true }))
		}, true, stateRefused, "node's network namespace"},
		{"a NetworkPolicy is in the way", func() facts {
			f := sound(pod("shop", "p", "node1", redirected))
			port := intstr.FromInt32(8080)
			f.Policies = []networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "np"}, Spec: networkingv1.NetworkPolicySpec{
				Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}}}}}
			return f
		}, true, stateCaptured, "networkpolicy shop/np: ingress rule 1 admits TCP 8080, and not 15008, by which calls in the mesh come: they would not pass (pods p); add to the ports of that rule: - {protocol: TCP, port: 15008}"},
		{"missing", func() facts { return sound(pod("shop", "p", "node1")) }, false, stateMissing, "has not reached it yet"},
		{"missing with the agent's own reason", func() facts {
			return sound(pod("shop", "p", "node1", note(annotationReason, "runtime is gVisor")))
		}, false, stateMissing, "runtime is gVisor"},
		{"enabled once, and in trouble now", func() facts {
			return sound(pod("shop", "p", "node1", redirected, note(annotationReason, "no ztunnel is connected")))
		}, false, stateMissing, "no ztunnel is connected"},
		{"pending", func() facts { return sound(pod("shop", "p", "node1", note(annotationRedirection, "pending"))) },
			false, stateMissing, "no ztunnel serves"},
		{"starting is not ill", func() facts { return sound(pod("shop", "p", "node1", noAddress)) }, true, stateStarting, "no address"},
		{"no agent on the node", func() facts { return sound(pod("shop", "p", "node3")) }, false, stateMissing, "no node agent runs on node3"},
		{"agent crashes", func() facts {
			f := sound(pod("shop", "p", "node1"))
			f.Components[4].Ready, f.Components[4].Problem = false, "CrashLoopBackOff"
			f.Installed[partAgent] = expected{2, 1}
			return f
		}, false, stateMissing, "the node agent on node1 is not ready: CrashLoopBackOff"},
		{"new agent beside an old one", func() facts {
			f := sound(pod("shop", "p", "node1", redirected))
			f.Components = append(f.Components, component{Part: partAgent, Pod: "a-3", Node: "node1"})
			return f
		}, true, stateCaptured, ""},
		{"not installed", func() facts {
			f := sound()
			f.Installed = nil
			return f
		}, false, "", "controller is not installed in namespace ambit-system"},
		{"no node matches", func() facts {
			f := sound()
			f.Installed[partZtunnel] = expected{}
			return f
		}, false, "", "ztunnel is scaled to nothing"},
		{"one ztunnel down", func() facts {
			f := sound()
			f.Installed[partZtunnel] = expected{2, 1}
			return f
		}, false, "", "ztunnel: 1 of 2 ready"},
		{"ready and silent", func() facts {
			f := sound()
			f.Components[2].Problem = "ready, but does not answer"
			return f
		}, false, "", "ztunnel z-1 on node1: ready, but does not answer"},
		{"not allowed to ask", func() facts {
			f := sound()
			f.Components[2].Unasked = "forbidden"
			return f
		}, true, "", "version of 1 component unknown: forbidden"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := judge(c.facts())
			text := strings.Join(append(r.Problems, r.Notes...), "\n")
			if len(r.Pods) > 0 {
				text += "\n" + r.Pods[0].Reason
				if r.Pods[0].State != c.state {
					t.Errorf("state %s, want %s", r.Pods[0].State, c.state)
				}
			}
			if r.Healthy != c.healthy {
				t.Errorf("healthy %v, want %v: %s", r.Healthy, c.healthy, text)
			}
			if !strings.Contains(text, c.says) {
				t.Errorf("should say %q, says %q", c.says, text)
			}
		})
	}
}

func TestReportAsTable(t *testing.T) {
	var b bytes.Buffer
	r := judge(sound(pod("shop", "good", "node1", redirected), pod("shop", "bad", "node3"), pod("plain", "p", "node1")))
	if err := printReport(&b, "table", r); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); !strings.Contains(got, "1 of 2 captured") || !strings.Contains(got, "v1, v2") || !strings.Contains(got, "1 pod that should") || !strings.Contains(got, "shop        bad   node3   missing   no node agent runs on node3") {
		t.Errorf("got\n%s", got)
	}
}

func TestLabel(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"# HELP istio_build x\nistio_build{component=\"ztunnel\",tag=\"v1.2\"} 1\n", "v1.2"},
		{"istio_build{tag=\"a\\\"b\\\\c\"} 1\n", `a"b\c`},
		{"istio_build_other{tag=\"x\"} 1\n", ""},
		{"istio_build{component=\"ztunnel\"} 1\n", ""},
		{"istio_build{tag=\"cut", ""},
		{"istio_build{", ""},
		{"", ""},
	} {
		if got, _ := label(c.text, "istio_build", "tag"); got != c.want {
			t.Errorf("label(%q) = %q, want %q", c.text, got, c.want)
		}
	}
}

func FuzzLabel(f *testing.F) {
	f.Add("istio_build{component=\"ztunnel\",tag=\"v1.2\"} 1\n")
	f.Add("istio_build{tag=\"\\")
	f.Fuzz(func(_ *testing.T, text string) { label(text, "istio_build", "tag") })
}

func TestExitCodes(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(context.Background(), []string{"version", "--client", "-o", "json"}, &out, &errs); code != exitHealthy || !strings.Contains(out.String(), `"client": "unknown"`) {
		t.Errorf("version --client: code %d, %s%s", code, out.String(), errs.String())
	}
	if code := run(context.Background(), []string{"status", "-o", "xml"}, &out, &errs); code != exitUnknown {
		t.Errorf("bad -o: code %d", code)
	}
	if code := run(context.Background(), []string{"status", "--kubeconfig", t.TempDir() + "/none"}, &out, &errs); code != exitUnknown {
		t.Errorf("no kubeconfig: code %d", code)
	}
}

func TestReadiness(t *testing.T) {
	status := func(s corev1.ContainerStatus) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{s} }
	}
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such host"}}
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2, Reason: "Error"}}
	ready := func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	for _, c := range []struct {
		name  string
		pod   corev1.Pod
		ready bool
		says  string
	}{
		{"ready", pod("a", "p", "n", ready), true, ""},
		{"not ready", pod("a", "p", "n"), false, "not ready"},
		{"no image", pod("a", "p", "n", status(corev1.ContainerStatus{State: waiting})), false, "ErrImagePull: no such host"},
		{"crashes", pod("a", "p", "n", status(corev1.ContainerStatus{State: waiting, LastTerminationState: ended, RestartCount: 3})),
			false, "3 restarts, last ended with code 2: kubectl logs -n a --previous p"},
		{"ended", pod("a", "p", "n", status(corev1.ContainerStatus{State: ended})), false, "ended with code 2: Error"},
		{"not scheduled", pod("a", "p", "", func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "no node fits"}}
		}), false, "no node fits"},
	} {
		if ok, why := readiness(&c.pod); ok != c.ready || !strings.Contains(why, c.says) || (why == "") != c.ready {
			t.Errorf("%s: %v, %q; want %v, %q", c.name, ok, why, c.ready, c.says)
		}
	}
}
