package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambitmesh/ambit/controller/diagnose"
	"github.com/ambitmesh/ambit/controller/translate"
)

// survey reads everything precheck looks at. What this account may not read, or
// the cluster does not have, does not stop it; what the API server cannot
// answer does.
func (c *cluster) survey(ctx context.Context) (*diagnose.Cluster, error) {
	var all diagnose.Cluster
	raw, err := c.core.RESTClient().Get().AbsPath("/version").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	var v struct{ GitVersion string }
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, fmt.Errorf("API server: version: %w", err)
	}
	all.Version = v.GitVersion
	for _, read := range []struct {
		what string
		read func(context.Context, *diagnose.Cluster) error
	}{
		{"which APIs are served", c.readAPIs},
		{"nodes", c.readNodes},
		{"namespaces", c.readNamespaces},
		{"pods", c.readPods},
		{"daemonsets", c.readDaemonSets},
		{"deployments", c.readDeployments},
		{"services of kube-system", c.readServices},
		{"networkpolicies", c.readPolicies},
		{"runtimeclasses", c.readRuntimeClasses},
		{"resourcequotas and limitranges of " + c.system, c.readQuotas},
		{"customresourcedefinitions", c.readDefinitions},
		{"the mesh's settings", c.readSettings},
		{"Cilium's configuration", c.readCilium},
		{"Calico's configuration", c.readCalico},
		{"objects of an earlier installation", c.readOwned},
		{"what this account may do", c.readRights},
	} {
		err := read.read(ctx, &all)
		switch {
		case err == nil || absent(err):
		case apierrors.IsForbidden(err):
			all.Unread = append(all.Unread, read.what+": this account may not")
		default:
			return nil, fmt.Errorf("%s: %w", read.what, err)
		}
	}
	return &all, nil
}

// absent: the object is not there, or the kind is not.
func absent(err error) bool { return apierrors.IsNotFound(err) || meta.IsNoMatchError(err) }

func (c *cluster) readAPIs(ctx context.Context, to *diagnose.Cluster) error {
	served := map[string]bool{}
	for _, api := range diagnose.APIs() {
		group, resource, _ := strings.Cut(api, " ")
		raw, err := c.core.RESTClient().Get().AbsPath("/apis/" + group).DoRaw(ctx)
		if absent(err) {
			continue
		}
		if err != nil {
			return err
		}
		var list metav1.APIResourceList
		if err := json.Unmarshal(raw, &list); err != nil {
			return err
		}
		served[api] = slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource })
	}
	to.APIs = served // only as a whole: what was not asked is not missing
	return nil
}

// everything lists page by page: 50 000 pods are not one answer.
func everything(ctx context.Context, list func(metav1.ListOptions) (string, error)) error {
	o := metav1.ListOptions{Limit: 500}
	for {
		next, err := list(o)
		if err != nil || next == "" {
			return err
		}
		if o.Continue = next; ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (c *cluster) readNodes(ctx context.Context, to *diagnose.Cluster) error {
	return everything(ctx, func(o metav1.ListOptions) (string, error) {
		l, err := c.core.Nodes().List(ctx, o)
		if err != nil {
			return "", err
		}
		to.Nodes = append(to.Nodes, l.Items...)
		return l.Continue, nil
	})
}

func (c *cluster) readNamespaces(ctx context.Context, to *diagnose.Cluster) error {
	return everything(ctx, func(o metav1.ListOptions) (string, error) {
		l, err := c.core.Namespaces().List(ctx, o)
		if err != nil {
			return "", err
		}
		to.Namespaces = append(to.Namespaces, l.Items...)
		return l.Continue, nil
	})
}

func (c *cluster) readPods(ctx context.Context, to *diagnose.Cluster) error {
	return everything(ctx, func(o metav1.ListOptions) (string, error) {
		l, err := c.core.Pods("").List(ctx, o)
		if err != nil {
			return "", err
		}
		to.Pods = append(to.Pods, l.Items...)
		return l.Continue, nil
	})
}

func (c *cluster) readDaemonSets(ctx context.Context, to *diagnose.Cluster) error {
	l, err := c.apps.DaemonSets("").List(ctx, metav1.ListOptions{})
	if err == nil {
		to.DaemonSets = l.Items
	}
	return err
}

func (c *cluster) readDeployments(ctx context.Context, to *diagnose.Cluster) error {
	return everything(ctx, func(o metav1.ListOptions) (string, error) {
		l, err := c.apps.Deployments("").List(ctx, o)
		if err != nil {
			return "", err
		}
		to.Deployments = append(to.Deployments, l.Items...)
		return l.Continue, nil
	})
}

func (c *cluster) readServices(ctx context.Context, to *diagnose.Cluster) error {
	l, err := c.core.Services("kube-system").List(ctx, metav1.ListOptions{})
	if err == nil {
		to.Services = append([]corev1.Service{}, l.Items...) // empty is an answer too
	}
	return err
}

// readQuotas are those that count pods of Ambit.
func (c *cluster) readQuotas(ctx context.Context, to *diagnose.Cluster) error {
	q, err := c.core.ResourceQuotas(c.system).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	to.Quotas = q.Items
	l, err := c.core.LimitRanges(c.system).List(ctx, metav1.ListOptions{})
	if err == nil {
		to.LimitRanges = l.Items
	}
	return err
}

// typed lists a kind that has no typed client here.
func typed[T any](ctx context.Context, c *cluster, r schema.GroupVersionResource) ([]T, error) {
	var out []T
	err := everything(ctx, func(o metav1.ListOptions) (string, error) {
		l, err := c.dynamic.Resource(r).List(ctx, o)
		if err != nil {
			return "", err
		}
		for i := range l.Items {
			var t T
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(l.Items[i].Object, &t); err != nil {
				return "", fmt.Errorf("%s: %w", l.Items[i].GetName(), err)
			}
			out = append(out, t)
		}
		return l.GetContinue(), nil
	})
	return out, err
}

func (c *cluster) readPolicies(ctx context.Context, to *diagnose.Cluster) (err error) {
	to.NetworkPolicies, err = typed[networkingv1.NetworkPolicy](ctx, c, networkingv1.SchemeGroupVersion.WithResource("networkpolicies"))
	return err
}

func (c *cluster) readRuntimeClasses(ctx context.Context, to *diagnose.Cluster) (err error) {
	to.RuntimeClasses, err = typed[nodev1.RuntimeClass](ctx, c, nodev1.SchemeGroupVersion.WithResource("runtimeclasses"))
	return err
}

// readDefinitions asks for each by name: all of a cluster can be megabytes.
func (c *cluster) readDefinitions(ctx context.Context, to *diagnose.Cluster) error {
	crds := c.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for _, name := range diagnose.Wanted() {
		o, err := crds.Get(ctx, name, metav1.GetOptions{})
		if absent(err) {
			continue
		}
		if err != nil {
			return err
		}
		to.Definitions = append(to.Definitions, definition(o))
	}
	return nil
}

// ourManager is the field manager the documents give to kubectl for the
// definitions, so that one that somebody else brought is not taken over.
const ourManager = "ambit-crds"

func definition(o *unstructured.Unstructured) diagnose.Definition {
	const annotation = "gateway.networking.k8s.io/"
	d := diagnose.Definition{Name: o.GetName(), BundleVersion: o.GetAnnotations()[annotation+"bundle-version"], Channel: o.GetAnnotations()[annotation+"channel"]}
	versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions")
	for _, v := range versions {
		v, _ := v.(map[string]any)
		if served, _ := v["served"].(bool); !served {
			continue
		}
		name, _ := v["name"].(string)
		d.Served = append(d.Served, name)
		if _, status, _ := unstructured.NestedMap(v, "subresources", "status"); status && name == "v1" {
			d.Status = true
		}
	}
	for _, m := range o.GetManagedFields() {
		if m.Subresource == "" && m.Manager != ourManager && m.Manager != "kube-apiserver" {
			d.ManagedByOther = m.Manager
		}
	}
	return d
}

// readSettings looks in either namespace in which they may be.
func (c *cluster) readSettings(ctx context.Context, to *diagnose.Cluster) error {
	for _, n := range (diagnose.Options{System: c.system}).Roots() {
		m, err := c.core.ConfigMaps(n).Get(ctx, translate.MeshConfigMap, metav1.GetOptions{})
		switch {
		case err == nil:
			if to.Settings == nil {
				to.Settings = make(map[string]*corev1.ConfigMap)
			}
			to.Settings[n] = m
		case !absent(err):
			return err
		}
	}
	return nil
}

// readCilium looks where Cilium's agent is; the ConfigMap has one name.
func (c *cluster) readCilium(ctx context.Context, to *diagnose.Cluster) error {
	namespaces := map[string]bool{}
	for i := range to.DaemonSets {
		if d := &to.DaemonSets[i]; d.Labels["k8s-app"] == "cilium" || d.Name == "cilium" || d.Name == "anetd" {
			namespaces[d.Namespace] = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(namespaces)) {
		m, err := c.core.ConfigMaps(n).Get(ctx, "cilium-config", metav1.GetOptions{})
		if err == nil {
			to.Cilium = m.Data
		}
		if err != nil && !absent(err) {
			return err
		}
	}
	return nil
}

func (c *cluster) readCalico(ctx context.Context, to *diagnose.Cluster) error {
	felix := schema.GroupVersionResource{Group: "crd.projectcalico.org", Version: "v1", Resource: "felixconfigurations"}
	o, err := c.dynamic.Resource(felix).Get(ctx, "default", metav1.GetOptions{})
	if err != nil {
		return err
	}
	to.Calico, _, err = unstructured.NestedMap(o.Object, "spec")
	return err
}

func (c *cluster) readOwned(ctx context.Context, to *diagnose.Cluster) error {
	owned, err := c.owned(ctx)
	for _, o := range owned {
		to.Owned = append(to.Owned, o.String())
	}
	return err
}

// readRights asks for the caller's own sake; whoever may do all is asked about
// everything too, it is 26 short questions.
func (c *cluster) readRights(ctx context.Context, to *diagnose.Cluster) error {
	for _, r := range diagnose.InstallRights(c.system) {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Group: r.Group, Resource: r.Resource, Verb: r.Verb, Namespace: r.Namespace}}}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(review)
		if err != nil {
			return err
		}
		u := &unstructured.Unstructured{Object: object}
		u.SetGroupVersionKind(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"))
		got, err := c.dynamic.Resource(authorizationv1.SchemeGroupVersion.WithResource("selfsubjectaccessreviews")).Create(ctx, u, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		if allowed, _, _ := unstructured.NestedBool(got.Object, "status", "allowed"); !allowed {
			to.Denied = append(to.Denied, r.String())
		}
	}
	return nil
}
