package firstlight

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

const entries = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: given, namespace: %[1]s}
spec:
  hosts: [given.%[1]s.example]
  addresses: [240.241.0.1]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: server}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: allocated, namespace: %[1]s}
spec:
  hosts: [allocated.%[1]s.example]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: DNS
  endpoints: [{address: headless.%[1]s.svc.cluster.local}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: %[1]s}
spec: {clusterIP: None, selector: {app: server}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: %[1]s}
spec: {type: ExternalName, externalName: server.%[1]s.svc.cluster.local}
`

// names: hosts of ServiceEntries are resolved in captured pods, and reached; the
// cluster's own names are answered as ever.
func names(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	l.Apply(t, fmt.Sprintf(entries, s.Name))

	for _, host := range []string{"given." + s.Name + ".example", "allocated." + s.Name + ".example"} {
		s.Works("client", "http://"+host+"/")
		answer := s.Call("client", "http://"+host+"/")
		if !strings.Contains(answer, "pod=server") {
			t.Errorf("%s: %s", host, answer)
		}
		l.Logged(t, "ztunnel", "node1", "connection complete", `src.workload="client"`, `src.namespace="`+s.Name+`"`, `dst.service="`+host+`"`)
	}
	for _, host := range []string{"server", "server." + s.Name, "server." + s.Name + ".svc.cluster.local", "elsewhere"} {
		if answer := s.Call("client", "http://"+host+"/"); !strings.Contains(answer, "pod=server") {
			t.Errorf("%s: %s", host, answer)
		}
	}
	// What a short program says is lost now and then between containerd and the
	// kubelet, with no error: asked again.
	lookup := func(host string) (said string) {
		ambitlab.Until(t, "words about "+host, func() (string, bool) {
			var out, errs bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := s.Exec(ctx, "client", &out, &errs, "testapp", "lookup", host)
			said = fmt.Sprint(strings.TrimSpace(out.String()+errs.String()), " ", err)
			return said, err != nil || out.Len() > 0
		})
		return said
	}
	if got := lookup("headless." + s.Name + ".svc.cluster.local"); !strings.Contains(got, s.Now("server").Status.PodIP) {
		t.Errorf("headless: %s", got)
	}
	if got := lookup("missing." + s.Name + ".svc.cluster.local"); !strings.Contains(got, "exit code 1") {
		t.Errorf("a name that is not there: %s", got)
	}
}
