package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const ztunnelSelector = "app=ztunnel"

// podArgument reads NAMESPACE/NAME, NAME.NAMESPACE or NAME.
func podArgument(arg, namespace string) (podName, error) {
	p := podName{namespace, arg}
	if ns, name, ok := strings.Cut(arg, "/"); ok {
		p = podName{ns, name}
	} else if i := strings.LastIndexByte(arg, '.'); i >= 0 && namespace == "" {
		p = podName{arg[i+1:], arg[:i]}
	}
	if p.name == "" || p.namespace == "" && arg != p.name || strings.Contains(p.name, "/") {
		return p, fmt.Errorf("pod %q: want NAME, NAME.NAMESPACE or NAMESPACE/NAME", arg)
	}
	return p, nil
}

// ztunnelOf finds the ztunnel that pod or node has to do with. A pod that is
// not a ztunnel is returned too: it is what the caller wants to see.
func (c *cluster) ztunnelOf(ctx context.Context, pod podName, node string) (string, podName, error) {
	if pod.name == "" {
		z, err := c.ztunnelOn(ctx, node)
		return z, podName{}, err
	}
	namespaces := []string{pod.namespace}
	if pod.namespace == "" {
		namespaces = []string{c.system, metav1.NamespaceDefault}
	}
	for _, ns := range namespaces {
		p, err := c.core.Pods(ns).Get(ctx, pod.name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return "", pod, fmt.Errorf("pod %s/%s: %w", ns, pod.name, err)
		case ns == c.system && p.Labels["app"] == "ztunnel":
			return p.Name, podName{}, nil
		case p.Spec.NodeName == "":
			return "", pod, fmt.Errorf("pod %s/%s has no node yet: kubectl describe pod -n %s %s", ns, p.Name, ns, p.Name)
		}
		z, err := c.ztunnelOn(ctx, p.Spec.NodeName)
		return z, podName{ns, p.Name}, err
	}
	return "", pod, fmt.Errorf("no pod %s in namespace %s: NAMESPACE/NAME says another", pod.name, strings.Join(namespaces, " or "))
}

// ztunnelOn is the ztunnel of a node, or without one any that is ready.
func (c *cluster) ztunnelOn(ctx context.Context, node string) (string, error) {
	all, err := c.ztunnels(ctx)
	if err != nil {
		return "", err
	}
	z, err := pickZtunnel(all, node)
	if err != nil {
		return "", fmt.Errorf("%w: kubectl get pods -n %s -l %s -o wide", err, c.system, ztunnelSelector)
	}
	return z, nil
}

func (c *cluster) ztunnels(ctx context.Context) ([]corev1.Pod, error) {
	list, err := c.core.Pods(c.system).List(ctx, metav1.ListOptions{LabelSelector: ztunnelSelector})
	if err != nil {
		return nil, fmt.Errorf("list pods %s in %s: %w", ztunnelSelector, c.system, err)
	}
	return list.Items, nil
}

// pickZtunnel prefers one that is ready and stays: during a rollout a node has
// two.
func pickZtunnel(all []corev1.Pod, node string) (string, error) {
	var on []corev1.Pod
	for i := range all {
		if asked(node, all[i].Spec.NodeName) {
			on = append(on, all[i])
		}
	}
	if len(on) == 0 {
		if node != "" {
			return "", fmt.Errorf("no ztunnel on node %s: is the node excluded, or misspelt?", node)
		}
		return "", errors.New("no ztunnel anywhere: is Ambit installed?")
	}
	rank := func(p *corev1.Pod) int {
		ready, _ := readiness(p)
		switch {
		case ready && p.DeletionTimestamp == nil:
			return 0
		case p.Status.Phase == corev1.PodRunning:
			return 1 // it may well answer, and is worth a look
		}
		return 2
	}
	slices.SortStableFunc(on, func(a, b corev1.Pod) int { return rank(&a) - rank(&b) })
	best := &on[0]
	if rank(best) == 2 {
		_, why := readiness(best)
		return "", fmt.Errorf("ztunnel %s on node %s does not run: %s", best.Name, best.Spec.NodeName, why)
	}
	return best.Name, nil
}
