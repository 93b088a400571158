package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/ca/rotation"
	"github.com/ambitmesh/ambit/controller/diagnose"
)

// facts are what was asked of the cluster; judge needs nothing else.
type facts struct {
	System     string // namespace Ambit runs in
	Leaving    string // since when the agents are asked to release their nodes
	Installed  map[string]expected
	Components []component
	CA         *rotation.Status             // nil: unknown
	Namespaces map[string]map[string]string // labels
	Excluded   map[string]bool              // namespaces the agent leaves alone
	Pods       []corev1.Pod
	Policies   []networkingv1.NetworkPolicy
}

// expected is how many pods a Deployment or DaemonSet should have. A component
// without an entry is not installed.
type expected struct{ Want, Ready int }

// The three things that make a mesh.
const (
	partController = "controller"
	partZtunnel    = "ztunnel"
	partAgent      = "node agent"
)

var parts = []string{partController, partZtunnel, partAgent}

// component is one pod of Ambit itself.
type component struct {
	Part    string `json:"part"`
	Pod     string `json:"pod"`
	Node    string `json:"node"`
	Ready   bool   `json:"ready"`
	Version string `json:"version,omitempty"`
	// Problem says why it is not ready, or did not answer although it is.
	Problem string `json:"problem,omitempty"`
	// Overdue is how many certificates a ztunnel could not have or renew.
	Overdue int `json:"certificatesOverdue,omitempty"`
	// Unasked says why nobody could ask, which is the caller's trouble and not
	// the component's.
	Unasked string `json:"unasked,omitempty"`
	// Findings are a node agent's about its node.
	Findings []finding `json:"findings,omitempty"`
}

// state is what can be said of one pod.
type state string

const (
	stateCaptured state = "captured"
	stateMissing  state = "missing"  // should be captured and is not
	stateStarting state = "starting" // should be, has no address yet
	stateLeaving  state = "leaving"  // is captured and should not be any more
	stateRefused  state = "refused"  // a label asks for it, and it cannot be
	stateOutside  state = "outside"  // is not and should not be
)

// podReport is one pod's line.
type podReport struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Node      string `json:"node,omitempty"`
	State     state  `json:"state"`
	Reason    string `json:"reason"`
	// Limits is what capture does not promise to the pod.
	Limits string `json:"limits,omitempty"`
}

// report is the whole answer.
type report struct {
	Healthy    bool                `json:"healthy"`
	Problems   []string            `json:"problems,omitempty"`
	Notes      []string            `json:"notes,omitempty"`
	Counts     map[state]int       `json:"counts"`
	Installed  map[string]expected `json:"installed"`
	Components []component         `json:"components"`
	Pods       []podReport         `json:"pods"`
}

// judge turns facts into a verdict.
func judge(f facts) report {
	r := report{Counts: map[state]int{}, Installed: f.Installed, Components: f.Components}
	if f.Leaving != "" {
		r.Problems = append(r.Problems, fmt.Sprintf("an uninstall was begun at %s, no pod is captured: ambit uninstall --yes goes on, "+
			"kubectl annotate namespace %s %s- takes it back", f.Leaving, f.System, annotationUninstall))
	}
	agents := map[string]component{}
	for _, part := range parts {
		e, ok := f.Installed[part]
		switch {
		case !ok:
			r.Problems = append(r.Problems, fmt.Sprintf("%s is not installed in namespace %s", part, f.System))
		case e.Want == 0:
			r.Problems = append(r.Problems, fmt.Sprintf("%s is scaled to nothing", part))
		case e.Ready < e.Want:
			r.Problems = append(r.Problems, fmt.Sprintf("%s: %d of %d ready", part, e.Ready, e.Want))
		}
	}
	for _, c := range f.Components {
		if c.Part == partAgent && (!agents[c.Node].Ready) {
			agents[c.Node] = c
		}
		if c.Problem != "" {
			r.Problems = append(r.Problems, fmt.Sprintf("%s %s on %s: %s", c.Part, c.Pod, cmp.Or(c.Node, "no node"), c.Problem))
		}
	}
	if n := unasked(f.Components); n != "" {
		r.Notes = append(r.Notes, n)
	}
	judgeCA(f.CA, &r)
	if n := overdue(f.Components); n != "" {
		r.Notes = append(r.Notes, n)
	}
	r.Notes = append(r.Notes, nodeNotes(f.Components)...)
	for i := range f.Pods {
		p := judgePod(&f.Pods[i], f, agents)
		r.Counts[p.State]++
		r.Pods = append(r.Pods, p)
	}
	if n := r.Counts[stateMissing]; n > 0 {
		r.Problems = append(r.Problems, count(n, "pod that should be captured is not", "pods that should be captured are not"))
	}
	slices.SortFunc(r.Pods, func(a, b podReport) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod))
	})
	r.Notes = append(r.Notes, podNotes(r.Pods)...)
	r.Notes = append(r.Notes, policyNotes(f)...)
	r.Healthy = len(r.Problems) == 0
	return r
}

// policyNotes name the NetworkPolicies that keep calls in the mesh from pods
// they admit callers to, with what to add.
func policyNotes(f facts) (notes []string) {
	c := &diagnose.Cluster{Pods: f.Pods, NetworkPolicies: f.Policies}
	for name, labels := range f.Namespaces {
		c.Namespaces = append(c.Namespaces, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	slices.SortFunc(c.Namespaces, func(a, b corev1.Namespace) int { return strings.Compare(a.Name, b.Name) })
	for _, n := range diagnose.NetworkPolicies(c, diagnose.Options{System: f.System}) {
		notes = append(notes, n.Object+": "+n.What+"; "+n.Do)
	}
	return notes
}

// judgePod compares what should be with what the node agent wrote.
func judgePod(pod *corev1.Pod, f facts, agents map[string]component) podReport {
	p := podReport{Namespace: pod.Namespace, Pod: pod.Name, Node: pod.Spec.NodeName, Limits: pod.Annotations[annotationLimits]}
	should, why := enrol(pod, f)
	want := should == enrolled
	got := pod.Annotations[annotationRedirection]
	switch {
	case want && got == "enabled" && pod.Annotations[annotationReason] == "":
		p.State, p.Reason = stateCaptured, why
	case want && pod.Status.PodIP == "":
		p.State, p.Reason = stateStarting, cmp.Or(pod.Annotations[annotationReason], agentTrouble(pod.Spec.NodeName, agents), "has no address yet")
	case want:
		p.State = stateMissing
		p.Reason = cmp.Or(pod.Annotations[annotationReason], agentTrouble(pod.Spec.NodeName, agents))
		if p.Reason == "" && got == "pending" {
			p.Reason = "capture is in place, but no ztunnel serves the pod yet: its connections wait"
		}
		p.Reason = cmp.Or(p.Reason, "the node agent has not reached it yet")
	case got != "":
		p.State, p.Reason = stateLeaving, why
	case should == refused:
		p.State, p.Reason = stateRefused, why
	default:
		p.State, p.Reason = stateOutside, why
	}
	return p
}

// agentTrouble says why a node's agent cannot have done anything, or "".
func agentTrouble(node string, agents map[string]component) string {
	if node == "" {
		return "is not scheduled"
	}
	a, ok := agents[node]
	switch {
	case !ok:
		return "no node agent runs on " + node
	case !a.Ready:
		return "the node agent on " + node + " is not ready: " + cmp.Or(a.Problem, "starting")
	}
	return ""
}

// unasked folds what could not be asked into one note.
func unasked(cs []component) string {
	n, why := 0, ""
	for _, c := range cs {
		if c.Unasked != "" {
			n++
			why = c.Unasked
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("version of %s unknown: %s", count(n, "component", "components"), why)
}

// versions lists the different versions a part answers with.
func versions(part string, cs []component) string {
	var vs []string
	for _, c := range cs {
		if c.Part == part && c.Version != "" && !slices.Contains(vs, c.Version) {
			vs = append(vs, c.Version)
		}
	}
	slices.Sort(vs)
	return strings.Join(vs, ", ")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
