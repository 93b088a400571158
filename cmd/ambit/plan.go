package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Labels by which objects say whose they are.
const (
	labelPartOf    = "app.kubernetes.io/part-of"
	partOfAmbit    = "ambit"
	labelManagedBy = "app.kubernetes.io/managed-by"
)

// installation is what an uninstall finds; plan needs nothing else.
type installation struct {
	system         string
	namespace      *corev1.Namespace // nil when there is none
	agentInstalled bool
	image          string          // the agent's
	managedBy      string          // who says to have installed the agent
	nodes          map[string]bool // where an agent should run: is a ready one there?
	silent         []string        // nodes whose kubelet does not answer
	captured       []string        // pods an agent captures, namespace/name
	labelled       []string        // namespaces, and pods as namespace/name
	objects        []object
	foreign        []string // what else is in the namespace
}

// steps is what an uninstall is going to do.
type steps struct {
	lines    []string // for the reader
	refusals []string
	nodes    []string // to be released
	skipped  []string // forced: keep their plugin
}

// plan decides what is done and what stands against it.
func plan(in installation, o uninstallOptions) steps {
	var s steps
	if in.namespace == nil && len(in.objects) == 0 {
		s.refusals = append(s.refusals, fmt.Sprintf("nothing of Ambit is in this cluster (namespace %s)", in.system))
		return s
	}
	if in.namespace != nil && in.namespace.Labels[labelPartOf] != partOfAmbit {
		s.refusals = append(s.refusals, fmt.Sprintf("namespace %s has no label %s=%s: is it Ambit's?", in.system, labelPartOf, partOfAmbit))
	}
	if in.managedBy == "Helm" && !o.nodesOnly {
		s.refusals = append(s.refusals, "Helm installed it and would believe it is still there: ambit uninstall --nodes-only --yes, then helm uninstall")
	}
	var away []string
	for _, n := range slices.Sorted(maps.Keys(in.nodes)) {
		if in.nodes[n] {
			s.nodes = append(s.nodes, n)
		} else {
			away = append(away, n)
		}
	}
	switch {
	case !in.agentInstalled && len(in.captured) > 0:
		s.refusals = append(s.refusals, fmt.Sprintf("%s captured and no node agent is installed that could let them go: apply deploy/ambit again first",
			count(len(in.captured), "pod is", "pods are")))
	case in.agentInstalled && len(away) > 0 && !o.force:
		s.refusals = append(s.refusals, fmt.Sprintf("no node agent is ready on %s; its pods would stay captured, and it would start no enrolled pod any more. "+
			"Mend that, or leave it so with --force", strings.Join(away, ", ")))
	case len(away) > 0:
		s.skipped = away
	}
	s.lines = append(s.lines, "nodes to release: "+list(s.nodes))
	if len(away) > 0 {
		s.lines = append(s.lines, "nodes without a ready agent: "+list(away))
	}
	s.lines = append(s.lines, "pods to let go: "+list(in.captured), "labelled: "+list(in.labelled))
	if o.nodesOnly {
		return s
	}
	s.lines = append(s.lines, "objects to delete:")
	for _, obj := range in.objects {
		s.lines = append(s.lines, "  "+obj.String())
	}
	switch {
	case in.namespace == nil:
	case len(in.foreign) > 0:
		s.lines = append(s.lines, fmt.Sprintf("namespace %s stays, not all in it is Ambit's: %s", in.system, list(in.foreign)))
	default:
		s.lines = append(s.lines, "  namespace "+in.system+", with the CA's key")
	}
	return s
}

// list shows a few names.
func list(names []string) string {
	const most = 20
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// look finds the installation.
func (u *uninstall) look(ctx context.Context) (in installation, err error) {
	in = installation{system: u.system, nodes: map[string]bool{}}
	if in.namespace, err = u.core.Namespaces().Get(ctx, u.system, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		in.namespace = nil
	} else if err != nil {
		return in, err
	}
	if err := u.lookNodes(ctx, &in); err != nil {
		return in, err
	}
	if err := u.lookPods(ctx, &in); err != nil {
		return in, err
	}
	if in.objects, err = u.owned(ctx); err != nil {
		return in, err
	}
	in.foreign, err = u.notOurs(ctx)
	return in, err
}

func (u *uninstall) lookNodes(ctx context.Context, in *installation) error {
	ds, err := u.apps.DaemonSets(u.system).Get(ctx, "ambit-cni-node", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("daemonset %s/ambit-cni-node: %w", u.system, err)
	}
	in.agentInstalled = true
	in.managedBy = ds.Labels[labelManagedBy]
	for _, c := range ds.Spec.Template.Spec.Containers {
		in.image = c.Image
	}
	nodes, err := u.core.Nodes().List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(
		&metav1.LabelSelector{MatchLabels: ds.Spec.Template.Spec.NodeSelector})})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		in.nodes[n.Name] = false
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				in.silent = append(in.silent, n.Name)
			}
		}
	}
	agents, err := u.core.Pods(u.system).List(ctx, metav1.ListOptions{LabelSelector: "app=ambit-cni-node"})
	if err != nil {
		return fmt.Errorf("list node agents: %w", err)
	}
	for i := range agents.Items {
		if p := &agents.Items[i]; p.DeletionTimestamp == nil {
			// A released agent has nothing installed and is not ready.
			ok, _ := readiness(p)
			ok = ok || in.namespace != nil && in.namespace.Annotations[annotationUninstall] != "" &&
				p.Annotations[annotationReleased] == in.namespace.Annotations[annotationUninstall]
			in.nodes[p.Spec.NodeName] = in.nodes[p.Spec.NodeName] || ok
		}
	}
	return nil
}

func (u *uninstall) lookPods(ctx context.Context, in *installation) error {
	namespaces, err := u.core.Namespaces().List(ctx, metav1.ListOptions{LabelSelector: labelMode + "=" + modeAmbient})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for i := range namespaces.Items {
		in.labelled = append(in.labelled, namespaces.Items[i].Name)
	}
	o := metav1.ListOptions{Limit: 500}
	for {
		pods, err := u.core.Pods("").List(ctx, o)
		if err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if p.Labels[labelMode] == modeAmbient {
				in.labelled = append(in.labelled, p.Namespace+"/"+p.Name)
			}
			if p.Annotations[annotationRedirection] != "" && p.Status.Phase == corev1.PodRunning {
				in.captured = append(in.captured, p.Namespace+"/"+p.Name)
				if _, known := in.nodes[p.Spec.NodeName]; in.agentInstalled && !known {
					in.nodes[p.Spec.NodeName] = false // the agents are kept off it since
				}
			}
		}
		if o.Continue = pods.Continue; o.Continue == "" {
			return nil
		}
	}
}
