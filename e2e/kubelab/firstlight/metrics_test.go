package firstlight

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

// ownMetrics reads a ztunnel's metrics through the mesh, as its label asks for.
func ownMetrics(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pod("client", "node1", nil)
	s.Captured("client")
	zt := l.Component(t, "ztunnel", "node2")
	l.Kubectl(t, "label", "pod", "-n", zt.Namespace, zt.Name, "networking.istio.io/tunnel=http")
	defer l.Kubectl(t, "label", "pod", "-n", zt.Namespace, zt.Name, "networking.istio.io/tunnel-")
	url := "http://" + zt.Status.PodIP + ":15020/metrics"
	ambitlab.Until(t, "the metrics come through ztunnel's own tunnel", func() (string, bool) {
		body, err := s.Try("client", url)
		if err != nil || !strings.Contains(body, "istio_build") {
			return fmt.Sprintf("%.300s %v", body, err), false
		}
		lines := l.Logs(t, "ztunnel", "node2")
		for _, line := range lines {
			if strings.Contains(line, `dst.workload="`+zt.Name+`"`) && strings.Contains(line, `src.identity="`+s.ID("client")+`"`) &&
				strings.Contains(line, `dst.identity="spiffe://cluster.local/ns/ambit-system/sa/ztunnel"`) && strings.Contains(line, `direction="inbound"`) {
				return "", true
			}
		}
		return fmt.Sprintf("answered, and not logged by %s in %d lines", zt.Name, len(lines)), false
	})
}
