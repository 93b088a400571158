package firstlight

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

const attackers = `
apiVersion: v1
kind: Pod
metadata: {name: client-raw, namespace: %[1]s}
spec:
  nodeName: node1
  serviceAccountName: client
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: %[2]s
      args: [sleep]
      securityContext: {runAsUser: 0, capabilities: {add: [NET_RAW, NET_ADMIN]}}
---
apiVersion: v1
kind: Pod
metadata: {name: client-mounts, namespace: %[1]s}
spec:
  nodeName: node1
  serviceAccountName: client
  terminationGracePeriodSeconds: 1
  volumes: [{name: run, hostPath: {path: /var/run/ztunnel}}]
  containers:
    - name: app
      image: %[2]s
      args: [sleep]
      volumeMounts: [{name: run, mountPath: /run/ztunnel}]
      securityContext: {runAsUser: 0}
`

// forgedMark: a process that may set SO_MARK sets the proxy's. It is captured
// like any other, so that its words are encrypted and policy knows it.
func forgedMark(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Meshed("client", "server")
	l.Apply(t, fmt.Sprintf(attackers, s.Name, ambitlab.App))
	s.Ready("client-raw")
	s.Captured("client-raw")
	word := ambitlab.Token("forged")
	var out, errs bytes.Buffer
	if err := s.Exec(t.Context(), "client-raw", &out, &errs, "testapp", "get", "-timeout", "60s", "-mark", "0x539", "http://server/"+word); err != nil {
		t.Errorf("%v: %s%s", err, out.String(), errs.String())
	}
	l.Logged(t, "ztunnel", "node2", `direction="inbound"`, `src.workload="client-raw"`, `src.identity="`+s.ID("client")+`"`)
	l.Wire.Secret(t, word)
}

// foreignSocket: a root process that has the socket of the hand-over mounted is
// no ztunnel, and gets nothing.
func foreignSocket(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, nil)
	l.Apply(t, fmt.Sprintf(attackers, s.Name, ambitlab.App))
	s.Ready("client-mounts")
	var out, errs bytes.Buffer
	if err := s.Exec(t.Context(), "client-mounts", &out, &errs, "testapp", "knock", "/run/ztunnel/ztunnel.sock"); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	if !strings.HasPrefix(out.String(), "closed") {
		t.Errorf("a pod that is no ztunnel was not turned away: %s", out.String())
	}
	l.Logged(t, "ambit-cni-node", "node1", "turned away")
}
