package translate

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RevisionLabel says which control plane an object is for.
const RevisionLabel = "istio.io/rev"

// defaultRevision is the name of the revision that has none.
const defaultRevision = "default"

// Reads reports whether o, of a kind that configures a mesh (policies, service
// and workload entries, gateways), is for this control plane. Alone in a
// cluster that is everything without a revision or with ours; beside another
// control plane what says our revision, itself or by its namespace.
func (c Config) Reads(o metav1.Object, objs Objects) bool {
	if ns := o.GetNamespace(); ns != "" && !c.Looks(ns, objs) {
		return false
	}
	rev := o.GetLabels()[RevisionLabel]
	if c.Beside {
		if rev == "" {
			rev = labelsOf(objs, o.GetNamespace())[RevisionLabel]
		}
		return rev == c.Revision
	}
	return rev == "" || rev == c.Revision || rev == defaultRevision && c.Revision == ""
}

// Writes reports whether o may bear a status of ours: beside another control
// plane only what says our revision itself, because the other one may take a
// namespace's word for nothing.
func (c Config) Writes(o metav1.Object, objs Objects) bool {
	return c.Reads(o, objs) && (!c.Beside || o.GetLabels()[RevisionLabel] == c.Revision)
}

// Meshed reports whether a Pod or Service is this control plane's to treat as
// meshed. Everything that is looked at is published, so that clients know what
// is behind an address; beside another control plane only what says our
// revision, itself or by its namespace, is more than that.
func (c Config) Meshed(o metav1.Object, objs Objects) bool {
	if !c.Beside {
		return true
	}
	rev := o.GetLabels()[RevisionLabel]
	if rev == "" {
		rev = labelsOf(objs, o.GetNamespace())[RevisionLabel]
	}
	return rev == c.Revision
}

// Looks reports whether objects of a namespace are looked at: the mesh's
// settings may leave namespaces out, but never the one that they are in.
func (c Config) Looks(namespace string, objs Objects) bool {
	return len(c.Mesh.DiscoverySelectors) == 0 || namespace == c.RootNamespace || c.Mesh.Discovers(labelsOf(objs, namespace))
}
