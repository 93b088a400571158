package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// How the CLI and the node agents speak about an end: the first on Ambit's
// namespace asks every agent to release its node, the second on an agent's pod
// gives the value back when nothing of Ambit is left on that node.
const (
	annotationUninstall = "ambitmesh.io/uninstall"
	annotationReleased  = "ambitmesh.io/released"
)

type uninstallOptions struct {
	yes, wait, force, nodesOnly, removeLabels bool
	timeout                                   time.Duration
}

func uninstallCommand(conn *connection) *cobra.Command {
	var o uninstallOptions
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take Ambit out of the cluster, pods first",
		Long: `Take Ambit out of the cluster, pods first.

Without --yes it says what would be done and changes nothing. With --yes:

  1. every node agent lets its pods go: new connections go direct, open ones get
     their time to end; then it removes the plugin and its entry from the node's
     CNI configuration, and says so on its own pod;
  2. only when every node has said so, Ambit's own objects are deleted, and its
     namespace unless something in it is not Ambit's.

Custom resource definitions, your policies, the namespace istio-system and the
labels that enrol stay, so installing again brings the mesh back as it was;
--remove-labels takes the labels away too.

A node whose agent is not ready keeps its plugin, and would start no pod of an
enrolled namespace any more: such nodes stop the uninstall before it begins,
unless --force. It can be called again after it was interrupted.

Exit code: 0 done, 1 not done or not wholly, 2 could not tell.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			return (&uninstall{cluster: c, opts: o, out: cmd.OutOrStdout()}).run(ctx)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.yes, "yes", false, "do it; otherwise only say what would be done")
	f.BoolVar(&o.force, "force", false, "go on without nodes whose agent is not ready; what stays on them is named")
	f.BoolVar(&o.nodesOnly, "nodes-only", false, "release the nodes and stop there; for installations that Helm or another tool removes")
	f.BoolVar(&o.removeLabels, "remove-labels", false, "take "+labelMode+"=ambient off namespaces and pods too")
	f.BoolVar(&o.wait, "wait", true, "wait until the deleted objects are gone")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long all of it may take")
	return cmd
}

// uninstall is one call of the command.
type uninstall struct {
	*cluster
	opts uninstallOptions
	out  io.Writer
}

func (u *uninstall) say(format string, args ...any) { fmt.Fprintf(u.out, format+"\n", args...) }

func (u *uninstall) run(ctx context.Context) error {
	in, err := u.look(ctx)
	if err != nil {
		return err
	}
	p := plan(in, u.opts)
	for _, l := range p.lines {
		u.say("%s", l)
	}
	for _, r := range p.refusals {
		u.say("refused: %s", r)
	}
	switch {
	case len(p.refusals) > 0:
		return errUnhealthy
	case !u.opts.yes:
		u.say("\nNothing was changed. To do it, add --yes.")
		return errUnhealthy
	}
	if in.agentInstalled {
		if err := u.releaseNodes(ctx, p.nodes); err != nil {
			return u.interrupted(err)
		}
	}
	if u.opts.removeLabels {
		if err := u.unlabel(ctx, in); err != nil {
			return err
		}
	}
	if u.opts.nodesOnly {
		u.say("Every node is released. Ambit's objects are left to whatever installed them; delete them now:\n" +
			"an agent that is restarted does not enrol again while namespace " + u.system + " has the annotation " + annotationUninstall + ".")
		return nil
	}
	if err := u.deleteObjects(ctx, in); err != nil {
		return fmt.Errorf("%w\nno pod is captured any more; the same command goes on where this one stopped", err)
	}
	for _, n := range p.skipped {
		u.say("left: Ambit on node %s. When it is back, its enrolled pods are cut off and none starts until:\n"+
			"  kubectl debug node/%s --profile=sysadmin --image=%s -- /usr/local/bin/ambit-cni-node --uninstall", n, n, cmp.Or(in.image, "IMAGE"))
	}
	if u.opts.wait {
		u.say("Ambit is uninstalled.")
	} else {
		u.say("Ambit is being deleted; no pod is captured any more.")
	}
	if !u.opts.removeLabels && len(in.labelled) > 0 {
		u.say("The label %s=ambient stays on: %s.", labelMode, strings.Join(in.labelled, ", "))
	}
	if len(p.skipped) > 0 {
		return errUnhealthy
	}
	return nil
}

// interrupted says what state the cluster is in when the nodes were not all
// released.
func (u *uninstall) interrupted(err error) error {
	return fmt.Errorf("%w\nnothing was deleted. The same command goes on where this one stopped; to take it back:\n"+
		"  kubectl annotate namespace %s %s-", err, u.system, annotationUninstall)
}

// releaseNodes asks every agent to release its node and waits for all of them.
func (u *uninstall) releaseNodes(ctx context.Context, nodes []string) error {
	token, err := u.announce(ctx)
	if err != nil {
		return err
	}
	u.say("asked %s to let pods go and to remove the plugin", count(len(nodes), "node", "nodes"))
	done := map[string]bool{}
	for {
		agents, err := u.core.Pods(u.system).List(ctx, metav1.ListOptions{LabelSelector: "app=ambit-cni-node"})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("list node agents: %w", err)
		}
		if err == nil {
			for _, n := range released(agents.Items, token) {
				if !done[n] {
					done[n] = true
					u.say("node %s: nothing of Ambit is left on it", n)
				}
			}
		}
		var missing []string
		for _, n := range nodes {
			if !done[n] {
				missing = append(missing, n)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nodes that have not released their pods in time: %s (kubectl logs -n %s -l app=ambit-cni-node)",
				strings.Join(missing, ", "), u.system)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// announce puts the request on the namespace, or finds the one of an earlier
// call.
func (u *uninstall) announce(ctx context.Context) (string, error) {
	ns, err := u.core.Namespaces().Get(ctx, u.system, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if t := ns.Annotations[annotationUninstall]; t != "" {
		return t, nil
	}
	token := time.Now().UTC().Format(time.RFC3339)
	return token, u.annotateSystem(ctx, &token)
}

func (u *uninstall) annotateSystem(ctx context.Context, value *string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotationUninstall: value}}})
	if err != nil {
		return err
	}
	_, err = u.core.Namespaces().Patch(ctx, u.system, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "ambit-cli"})
	if err != nil {
		return fmt.Errorf("annotate namespace %s: %w", u.system, err)
	}
	return nil
}

// released lists the nodes whose agent has given the token back.
func released(agents []corev1.Pod, token string) []string {
	var nodes []string
	for i := range agents {
		if p := &agents[i]; p.Annotations[annotationReleased] == token && p.DeletionTimestamp == nil {
			nodes = append(nodes, p.Spec.NodeName)
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// unlabel takes the labels away, for those who do not want the mesh back.
func (u *uninstall) unlabel(ctx context.Context, in installation) error {
	patch := []byte(`{"metadata":{"labels":{"` + labelMode + `":null}}}`)
	var errs []error
	for _, n := range in.labelled {
		var err error
		if ns, pod, ok := strings.Cut(n, "/"); ok {
			_, err = u.core.Pods(ns).Patch(ctx, pod, types.MergePatchType, patch, metav1.PatchOptions{})
		} else {
			_, err = u.core.Namespaces().Patch(ctx, n, types.MergePatchType, patch, metav1.PatchOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("label of %s: %w", n, err))
			continue
		}
		u.say("label %s taken off %s", labelMode, n)
	}
	return errors.Join(errs...)
}
