package diagnose

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Annotation by which nodes are asked to let their pods go.
const annotationUninstall = "ambitmesh.io/uninstall"

// systemNamespace looks at where Ambit is to run.
func systemNamespace(c *Cluster, o Options, f *findings) {
	object := "namespace " + o.System
	n := c.namespace(o.System)
	if n == nil {
		if len(c.Owned) > 0 {
			f.add(Warning, "cluster", "objects of an earlier installation: "+few(slices.Clone(c.Owned)), "ambit uninstall --yes takes them away; installing goes over them too")
		}
		return
	}
	if n.Status.Phase == corev1.NamespaceTerminating || n.DeletionTimestamp != nil {
		f.add(Error, object, "is being deleted", "wait until it is gone")
		return
	}
	const enforce = "pod-security.kubernetes.io/enforce"
	switch l := n.Labels[enforce]; l {
	case "privileged":
	case "":
		f.add(Warning, object, "has no label "+enforce+": the cluster's default decides whether the node agent may start", "kubectl label namespace "+o.System+" "+enforce+"=privileged")
	default:
		f.add(Error, object, "admits pods of level "+l+" only: the node agent is privileged", "kubectl label --overwrite namespace "+o.System+" "+enforce+"=privileged")
	}
	if m := n.Labels[labelMode]; m == modeAmbient {
		f.add(Error, object, "is labelled "+labelMode+"=ambient: the mesh does not carry the traffic it is made of", "kubectl label --overwrite namespace "+o.System+" "+labelMode+"=none")
	}
	switch {
	case n.Annotations[annotationUninstall] != "":
		f.add(Error, object, "an uninstall was begun at "+n.Annotations[annotationUninstall]+", no pod is captured while that stands there", "ambit uninstall --yes goes on; kubectl annotate namespace "+o.System+" "+annotationUninstall+"- takes it back")
	case c.installed(o) == nil && len(c.Owned) > 0:
		f.add(Warning, object, "has objects of an earlier installation: "+few(slices.Clone(c.Owned)), "ambit uninstall --yes takes them away; installing goes over them too")
	case c.installed(o) != nil:
		f.add(Info, object, "Ambit is installed", "ambit status says how it is")
	}
}

// critical are the priority classes of our pods.
var critical = []string{"system-node-critical", "system-cluster-critical"}

// unlimited are limits that some pod of ours does not set, so that a quota on
// them refuses it.
var unlimited = map[corev1.ResourceName]corev1.ResourceName{
	corev1.ResourceLimitsCPU:              corev1.ResourceCPU,
	corev1.ResourceLimitsMemory:           corev1.ResourceMemory,
	corev1.ResourceLimitsEphemeralStorage: corev1.ResourceEphemeralStorage,
}

// quotas looks for what would refuse our pods. The namespace may not exist yet:
// then only what the platform does counts.
func quotas(c *Cluster, o Options, f *findings) {
	need := 3 // controllers, one more at a rollout
	for i := range c.Nodes {
		if out, _ := noAgents(&c.Nodes[i]); !out {
			need += 2
		}
	}
	admitted := false
	for i := range c.Quotas {
		q := &c.Quotas[i]
		object := "resourcequota " + q.Namespace + "/" + q.Name
		ours, byClass := concerns(q)
		if !ours {
			continue
		}
		admitted = admitted || byClass
		for _, name := range []corev1.ResourceName{corev1.ResourcePods, "count/pods"} {
			if hard, ok := q.Spec.Hard[name]; ok && hard.Value() < int64(need) {
				f.add(Error, object, fmt.Sprintf("admits %s pods; Ambit has %d on this cluster", hard.String(), need), "raise it")
			}
		}
		for _, name := range slices.Sorted(keys(q.Spec.Hard)) {
			r, ok := unlimited[name]
			if ok && !slices.ContainsFunc(c.LimitRanges, func(l corev1.LimitRange) bool { return defaults(l, r) }) {
				f.add(Error, object, fmt.Sprintf("wants every pod to have %s; Ambit's do not all: throttling a node's proxy is throttling its pods", name),
					"leave "+string(name)+" out of the quota of this namespace, or add a LimitRange with a default")
			}
		}
	}
	if c.installed(o) == nil || admitted {
		return
	}
	for _, p := range recognize(c.Nodes) {
		if p.Quota {
			f.add(Error, "namespace "+o.System, p.Name+" admits pods of class system-node-critical only to namespaces with a quota for it, and there is none",
				"install deploy/overlays/"+p.Overlay+helm(p))
		}
	}
}

// concerns says whether a quota counts pods of ours, and whether it is about
// their priority class.
func concerns(q *corev1.ResourceQuota) (ours, byClass bool) {
	for _, s := range q.Spec.Scopes {
		// Best effort is not what they are; the rest they may be.
		if s == corev1.ResourceQuotaScopeBestEffort || s == corev1.ResourceQuotaScopeTerminating {
			return false, false
		}
	}
	if q.Spec.ScopeSelector == nil {
		return true, false
	}
	for _, e := range q.Spec.ScopeSelector.MatchExpressions {
		if e.ScopeName != corev1.ResourceQuotaScopePriorityClass {
			continue
		}
		byClass = true
		in := slices.ContainsFunc(critical, func(p string) bool { return slices.Contains(e.Values, p) })
		switch e.Operator {
		case corev1.ScopeSelectorOpIn:
			if !in {
				return false, false
			}
		case corev1.ScopeSelectorOpNotIn:
			if in {
				return false, false
			}
		case corev1.ScopeSelectorOpDoesNotExist:
			return false, false
		}
	}
	return true, byClass
}

func defaults(l corev1.LimitRange, r corev1.ResourceName) bool {
	return slices.ContainsFunc(l.Spec.Limits, func(i corev1.LimitRangeItem) bool {
		_, ok := i.Default[r]
		return i.Type == corev1.LimitTypeContainer && ok
	})
}

func keys(l corev1.ResourceList) func(func(corev1.ResourceName) bool) {
	return func(yield func(corev1.ResourceName) bool) {
		for k := range l {
			if !yield(k) {
				return
			}
		}
	}
}

// Right is something the one who installs must be able to do.
type Right struct{ Group, Resource, Verb, Namespace string }

func (r Right) String() string {
	name := r.Resource
	if r.Group != "" {
		name += "." + r.Group
	}
	if r.Namespace != "" {
		name += " in " + r.Namespace
	}
	return r.Verb + " " + name
}

// InstallRights are what kubectl apply of deploy/crds and deploy/ambit asks
// for; a test there compares. That a ClusterRole may only be made by somebody
// who has its rights is beside this list.
func InstallRights(system string) []Right {
	const rbac, admission = "rbac.authorization.k8s.io", "admissionregistration.k8s.io"
	var out []Right
	for _, r := range []Right{
		{"", "namespaces", "", ""},
		{"apiextensions.k8s.io", "customresourcedefinitions", "", ""},
		{admission, "validatingadmissionpolicies", "", ""},
		{admission, "validatingadmissionpolicybindings", "", ""},
		{rbac, "clusterroles", "", ""},
		{rbac, "clusterrolebindings", "", ""},
		{rbac, "roles", "", system},
		{rbac, "rolebindings", "", system},
		{"", "serviceaccounts", "", system},
		{"", "services", "", system},
		{"apps", "deployments", "", system},
		{"apps", "daemonsets", "", system},
		{"policy", "poddisruptionbudgets", "", system},
	} {
		for _, verb := range []string{"create", "patch"} {
			r.Verb = verb
			out = append(out, r)
		}
	}
	return out
}

func rights(c *Cluster, _ Options, f *findings) {
	if len(c.Denied) > 0 {
		f.add(Warning, "this account", "may not install: it may not "+strings.Join(c.Denied, ", "), "install with another account; precheck itself only reads")
	}
}
