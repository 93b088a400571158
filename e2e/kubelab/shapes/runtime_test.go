package shapes

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

const reasonAnnotation = "ambitmesh.io/redirection-reason"

// guest is a pod of a runtime class whose name says nothing.
const guest = `
apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: %s}
spec:
  nodeName: node1
  runtimeClassName: strict
  terminationGracePeriodSeconds: 1
  containers: [{name: app, image: "%s", args: [sleep]}]
`

// ownStack: kubelab's nodes have runc under gVisor's name as well. What goes by
// the handler refuses it, before it runs and when it runs already.
func ownStack(t *testing.T, l *ambitlab.Lab) {
	l.Apply(t, "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: strict}\nhandler: runsc\n")
	s := l.Space(t, ambitlab.Ambient)
	l.Apply(t, fmt.Sprintf(guest, s.Name, ambitlab.App))
	const why = "runtime class strict (runsc) does not use this kernel's network stack"
	p := s.Watch("guest", "refused", func(p *corev1.Pod) bool { return strings.Contains(p.Annotations[reasonAnnotation], why) })
	if p.Status.Phase != corev1.PodPending {
		t.Errorf("it is %s", p.Status.Phase)
	}
	if out, _ := l.Ambit(t, "status", "-n", s.Name); !strings.Contains(out, why) {
		t.Errorf("status does not say why:\n%s", out)
	}
	ambitlab.Until(t, "the reason among the pod's events", func() (string, bool) {
		out := l.Kubectl(t, "get", "events", "-n", s.Name, "--field-selector", "involvedObject.name=guest", "-o", "jsonpath={.items[*].message}")
		return out, strings.Contains(out, why)
	})
	// The way out is the pod's own label.
	l.Kubectl(t, "label", "pod", "-n", s.Name, "guest", ambitlab.LabelMode+"=none")
	s.Ready("guest")

	plain := l.SpaceNamed(t, s.Name[:20]+"-runs", nil)
	l.Apply(t, fmt.Sprintf(guest, plain.Name, ambitlab.App))
	plain.Ready("guest")
	plain.Mode("ambient")
	p = plain.Watch("guest", "refused", func(p *corev1.Pod) bool {
		return strings.Contains(p.Annotations[reasonAnnotation], "runtime runsc does not use this kernel's network stack")
	})
	if _, there := p.Annotations[ambitlab.Redirection]; there {
		t.Errorf("annotations %v", p.Annotations)
	}
	if out, code := l.Ambit(t, "status", "-n", plain.Name); code != 1 || !strings.Contains(out, "runtime runsc") {
		t.Errorf("status: exit code %d\n%s", code, out)
	}
	plain.Mode("")
	plain.Watch("guest", "not refused any more", func(p *corev1.Pod) bool { return p.Annotations[reasonAnnotation] == "" })
}
