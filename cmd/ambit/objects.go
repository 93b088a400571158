package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// kind is a sort of object an installation consists of.
type kind struct {
	schema.GroupVersionResource
	namespaced bool
}

func core(resource string) kind {
	return kind{schema.GroupVersionResource{Version: "v1", Resource: resource}, true}
}

func group(group, resource string, namespaced bool) kind {
	return kind{schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource}, namespaced}
}

const rbacGroup, admissionGroup = "rbac.authorization.k8s.io", "admissionregistration.k8s.io"

// kinds are deleted in this order: what runs first, what it is allowed last.
// Custom resource definitions are not among them: with one goes every object
// of its kind, whoever made it.
var kinds = []kind{
	group("apps", "daemonsets", true),
	group("apps", "deployments", true),
	group("policy", "poddisruptionbudgets", true),
	core("services"),
	core("resourcequotas"),
	group(rbacGroup, "rolebindings", true),
	group(rbacGroup, "roles", true),
	core("serviceaccounts"),
	group(rbacGroup, "clusterrolebindings", false),
	group(rbacGroup, "clusterroles", false),
	group(admissionGroup, "validatingadmissionpolicybindings", false),
	group(admissionGroup, "validatingadmissionpolicies", false),
}

// object is one that is ours.
type object struct {
	kind            kind
	namespace, name string
	uid             types.UID
}

func (o object) String() string {
	if o.namespace == "" {
		return o.kind.Resource + " " + o.name
	}
	return o.kind.Resource + " " + o.namespace + "/" + o.name
}

// owned lists Ambit's objects: those with our label in our namespace, and
// cluster-wide ones that have our label and our name too, so that a label set
// by mistake costs nobody anything.
func (c *cluster) owned(ctx context.Context) ([]object, error) {
	var all []object
	for _, k := range kinds {
		namespace := ""
		if k.namespaced {
			namespace = c.system
		}
		l, err := c.dynamic.Resource(k.GroupVersionResource).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: labelPartOf + "=" + partOfAmbit})
		if apierrors.IsNotFound(err) {
			continue // this API server does not have the kind
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", k.Resource, err)
		}
		for i := range l.Items {
			o := object{k, l.Items[i].GetNamespace(), l.Items[i].GetName(), l.Items[i].GetUID()}
			if k.namespaced || strings.HasPrefix(o.name, "ambit-") {
				all = append(all, o)
			}
		}
	}
	return all, nil
}

// made are the names of what Kubernetes or the controller itself puts into our
// namespace.
var made = map[string][]string{
	"configmaps":      {"kube-root-ca.crt", "ambit-ca-root-cert", "istio-ca-root-cert", "ambit-ca-rotation"},
	"secrets":         {"ambit-ca-secret", "ambit-ca-state"},
	"serviceaccounts": {"default"},
}

// notOurs lists what would be lost with the namespace and is not Ambit's: a CA
// key of the user's own, for example.
func (c *cluster) notOurs(ctx context.Context) ([]string, error) {
	var found []string
	for _, k := range []kind{
		core("secrets"), core("configmaps"), core("serviceaccounts"), core("services"), core("pods"), core("persistentvolumeclaims"),
		group("apps", "deployments", true), group("apps", "statefulsets", true), group("apps", "daemonsets", true), group("batch", "jobs", true),
	} {
		l, err := c.dynamic.Resource(k.GroupVersionResource).Namespace(c.system).List(ctx, metav1.ListOptions{LabelSelector: labelPartOf + "!=" + partOfAmbit})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s in %s: %w", k.Resource, c.system, err)
		}
		for i := range l.Items {
			name := l.Items[i].GetName()
			if !slices.Contains(made[k.Resource], name) && len(l.Items[i].GetOwnerReferences()) == 0 {
				found = append(found, k.Resource+"/"+name)
			}
		}
	}
	return found, nil
}

// deleteObjects takes Ambit's objects away, what runs before what it needs.
func (u *uninstall) deleteObjects(ctx context.Context, in installation) error {
	var errs []error
	for _, o := range in.objects {
		if err := u.delete(ctx, o); err != nil {
			errs = append(errs, err)
			continue
		}
		u.say("deleted %s", o)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := u.forgetPods(ctx, in); err != nil {
		return err
	}
	// The controller would put back what it makes: it has to be gone.
	if err := u.gone(ctx, in.objects); err != nil {
		return err
	}
	if err := u.deleteMade(ctx, in); err != nil {
		return err
	}
	switch {
	case in.namespace == nil:
		return nil
	case len(in.foreign) > 0:
		u.say("namespace %s stays: %s", u.system, list(in.foreign))
		return u.annotateSystem(ctx, nil) // or the next installation would leave at once
	}
	ns := object{kind: group("", "namespaces", false), name: u.system, uid: in.namespace.UID}
	if err := u.delete(ctx, ns); err != nil {
		return err
	}
	u.say("deleted namespace %s", u.system)
	if !u.opts.wait {
		return nil
	}
	return u.gone(ctx, []object{ns})
}

// forgetPods drops the pods of nodes whose kubelet does not answer, which
// nobody else would: everything that waits for their end would wait for ever.
func (u *uninstall) forgetPods(ctx context.Context, in installation) error {
	for _, node := range in.silent {
		pods, err := u.core.Pods(u.system).List(ctx, metav1.ListOptions{
			LabelSelector: labelPartOf + "=" + partOfAmbit, FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			return fmt.Errorf("list pods on %s: %w", node, err)
		}
		now := int64(0)
		for i := range pods.Items {
			p := &pods.Items[i]
			err := u.core.Pods(u.system).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &p.UID}})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete pod %s: %w", p.Name, err)
			}
			u.say("forgot pod %s: node %s does not answer", p.Name, node)
		}
	}
	return nil
}

// deleteMade removes what the controller made: the trust anchor in every
// namespace, and in ours the Lease and its own CA key.
func (u *uninstall) deleteMade(ctx context.Context, in installation) error {
	roots, err := u.dynamic.Resource(core("configmaps").GroupVersionResource).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=ambit-ca-root-cert"})
	if err != nil {
		return fmt.Errorf("list ConfigMaps: %w", err)
	}
	var gone []object
	for i := range roots.Items {
		gone = append(gone, object{core("configmaps"), roots.Items[i].GetNamespace(), roots.Items[i].GetName(), roots.Items[i].GetUID()})
	}
	for _, o := range gone {
		if err := u.delete(ctx, o); err != nil {
			return err
		}
	}
	u.say("deleted configmaps ambit-ca-root-cert in %s", count(len(gone), "namespace", "namespaces"))
	if in.namespace == nil || len(in.foreign) == 0 {
		return nil
	}
	for _, o := range []object{
		{kind: core("secrets"), namespace: u.system, name: "ambit-ca-secret"},
		{kind: core("secrets"), namespace: u.system, name: "ambit-ca-state"},
		{kind: core("configmaps"), namespace: u.system, name: "ambit-ca-rotation"},
		{kind: group("coordination.k8s.io", "leases", true), namespace: u.system, name: "ambit-controller-leader"},
	} {
		if err := u.delete(ctx, o); err != nil {
			return err
		}
		u.say("deleted %s", o)
	}
	return nil
}

// delete removes exactly the object that was seen, not a successor of its name.
func (c *cluster) delete(ctx context.Context, o object) error {
	foreground := metav1.DeletePropagationForeground
	opts := metav1.DeleteOptions{PropagationPolicy: &foreground}
	if o.uid != "" {
		opts.Preconditions = &metav1.Preconditions{UID: &o.uid}
	}
	err := c.dynamic.Resource(o.kind.GroupVersionResource).Namespace(o.namespace).Delete(ctx, o.name, opts)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s: %w", o, err)
	}
	return nil
}

// gone waits until none of the objects is there any more.
func (c *cluster) gone(ctx context.Context, objects []object) error {
	for _, o := range objects {
		for {
			got, err := c.dynamic.Resource(o.kind.GroupVersionResource).Namespace(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) || err == nil && got.GetUID() != o.uid {
				break
			}
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", o, err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s is deleted but not gone in time", o)
			case <-time.After(300 * time.Millisecond):
			}
		}
	}
	return nil
}
