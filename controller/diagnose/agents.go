package diagnose

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// agents reports what the installed node agents say about their nodes.
func agents(c *Cluster, o Options, f *findings) {
	d := c.installed(o)
	if d == nil {
		return
	}
	if want, have := d.Status.DesiredNumberScheduled, d.Status.CurrentNumberScheduled; have < want {
		f.add(Error, "daemonset "+d.Namespace+"/"+d.Name, fmt.Sprintf("%d of %d pods were made: something refuses them", have, want),
			"kubectl describe daemonset -n "+d.Namespace+" "+d.Name+" has the reason in its events")
	}
	// The same on many nodes is one finding.
	troubles, limits := map[string][]string{}, map[string][]string{}
	for i := range c.Pods {
		p := &c.Pods[i]
		if p.Namespace != o.System || p.Labels["app"] != "ambit-cni-node" || p.DeletionTimestamp != nil {
			continue
		}
		for _, said := range nodeFindings(p.Annotations[annotationFindings]) {
			limits[said] = append(limits[said], p.Spec.NodeName)
		}
		for _, s := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
			if w := s.State.Waiting; w != nil && s.RestartCount > 0 {
				text := w.Reason
				if t := s.LastTerminationState.Terminated; t != nil && t.Message != "" {
					lines := strings.Split(strings.TrimSpace(t.Message), "\n")
					text += ": " + lines[len(lines)-1] // before it are its log's
				}
				troubles[text] = append(troubles[text], p.Spec.NodeName)
			}
		}
	}
	for _, text := range slices.Sorted(maps.Keys(troubles)) {
		f.add(Error, "nodes "+few(troubles[text]), "the node agent ends again and again: "+text,
			"kubectl logs -n "+o.System+" -l app=ambit-cni-node --previous has what the node lacks")
	}
	for _, text := range slices.Sorted(maps.Keys(limits)) {
		f.add(Warning, "nodes "+few(limits[text]), text, "")
	}
}

// annotationFindings is where a node agent says on its own pod what limits the
// mesh on its node (cni/node).
const annotationFindings = "ambitmesh.io/node-findings"

// nodeFindings reads it; what an agent of another version wrote is shown as it
// is.
func nodeFindings(text string) []string {
	if text == "" {
		return nil
	}
	var list []struct{ Finding, Text string }
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return []string{text}
	}
	var out []string
	for _, l := range list {
		out = append(out, l.Finding+": "+l.Text)
	}
	return out
}
