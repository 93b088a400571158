package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// agentSelector finds the node agents among the pods of our namespace.
const agentSelector = "app=ambit-cni-node"

// untaintResync is how often a node is looked at whose agent has said nothing
// new: somebody may have put the taint on again.
const untaintResync = 5 * time.Minute

// untaint takes the taint off every node whose agent is ready, until term ends.
// Whoever makes nodes puts it on, so that no pod is scheduled to a node that
// could not capture it; nobody here ever does.
//
// It watches by itself, for as long as it writes: the mesh's own cache of nodes
// has nothing of taints, and the agents' pods are few.
func (c *Controller) untaint(term context.Context) {
	factory := informers.NewSharedInformerFactoryWithOptions(c.cfg.Client, untaintResync,
		informers.WithNamespace(c.cfg.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = agentSelector }))
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	pods := factory.Core().V1().Pods().Informer()
	look := func(obj any) {
		if p, ok := obj.(*corev1.Pod); ok && agentReady(p) {
			queue.Add(p.Spec.NodeName)
		}
	}
	_, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, obj any) { look(obj) }})
	if err != nil { // only for an informer that has been stopped
		c.cfg.Logger.Error("taints stay on nodes", "error", err)
		return
	}
	factory.Start(term.Done())
	defer factory.Shutdown()
	stop := context.AfterFunc(term, queue.ShutDown)
	defer stop()
	for {
		node, ended := queue.Get()
		if ended {
			return
		}
		if err := c.untaintNode(term, node); err != nil && term.Err() == nil {
			c.cfg.Logger.Warn("taint stays on a node, trying again", "node", node, "taint", c.cfg.Untaint, "error", err)
			queue.AddRateLimited(node)
		} else {
			queue.Forget(node)
		}
		queue.Done(node)
	}
}

// agentReady: it runs, is not about to end, and answers the plugin.
func agentReady(p *corev1.Pod) bool {
	if p.Spec.NodeName == "" || p.DeletionTimestamp != nil {
		return false
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (c *Controller) untaintNode(ctx context.Context, name string) error {
	nodes := c.cfg.Client.CoreV1().Nodes()
	node, err := nodes.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	patch, err := untaintPatch(node.Spec.Taints, c.cfg.Untaint)
	if err != nil || patch == nil {
		return err
	}
	if _, err := nodes.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: "ambit-untaint"}); err != nil {
		return fmt.Errorf("patch: %w", err)
	}
	c.cfg.Logger.Info("node can capture pods: taint taken off", "node", name, "taint", c.cfg.Untaint)
	return nil
}

// untaintPatch is nil when there is nothing to take off. The test makes the API
// server refuse it when somebody else has changed the taints meanwhile.
func untaintPatch(have []corev1.Taint, key string) ([]byte, error) {
	left := []corev1.Taint{}
	for _, t := range have {
		if t.Key != key {
			left = append(left, t)
		}
	}
	if len(left) == len(have) {
		return nil, nil
	}
	return json.Marshal([]map[string]any{
		{"op": "test", "path": "/spec/taints", "value": have},
		{"op": "replace", "path": "/spec/taints", "value": left},
	})
}
