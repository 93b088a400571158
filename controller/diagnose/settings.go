package diagnose

import (
	"strings"

	"github.com/ambitmesh/ambit/controller/translate"
)

// istioSystem is the root namespace of a mesh that is alone in its cluster.
const istioSystem = "istio-system"

// Roots are where the mesh's settings may be: one in a mesh that is alone, the
// other beside Istio.
func (o Options) Roots() []string { return []string{istioSystem, o.System} }

// meshSettings reads the mesh's settings as the controller would.
func meshSettings(c *Cluster, o Options, f *findings) {
	root := istioSystem
	if o.BesideIstio {
		root = o.System
	}
	cm := c.Settings[root]
	if cm == nil {
		return
	}
	object := "configmap " + root + "/" + translate.MeshConfigMap
	m, report, err := translate.ParseMeshConfig(cm)
	if err != nil {
		f.add(Error, object, strings.ReplaceAll(err.Error(), "\n", "; "),
			"mend it: until then the last good settings hold, or the defaults when there were none")
		return
	}
	if len(report.Unknown) > 0 {
		f.add(Warning, object, "no such fields: "+strings.Join(report.Unknown, ", "), "see docs/mesh-config.md for how they are written")
	}
	if len(report.Ignored) > 0 {
		f.add(Info, object, "without effect here: "+strings.Join(report.Ignored, ", "), "docs/mesh-config.md says why")
	}
	if m.RootNamespace != "" && m.RootNamespace != root {
		f.add(Warning, object, "rootNamespace is "+m.RootNamespace+", and this is the one of "+root, "give the controller --root-namespace="+m.RootNamespace+", or take the field out")
	}
	for i := range c.Namespaces {
		ns := &c.Namespaces[i]
		if ns.Labels[translate.DataplaneModeLabel] == translate.DataplaneAmbient && ns.Name != root && !m.Discovers(ns.Labels) {
			f.add(Error, "namespace "+ns.Name, "is enrolled, and the discoverySelectors of the mesh's settings leave it out: its pods are captured and no ztunnel knows them",
				"give it the labels that the selectors ask for, or take "+translate.DataplaneModeLabel+" off")
		}
	}
}
