package shapes

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

const many = 50

// The pods speak as the first thing they do, so that one that was started
// uncaptured would be heard on the wire.
const crowd = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: crowd, namespace: %[1]s}
spec:
  replicas: 0
  selector: {matchLabels: {app: crowd}}
  template:
    metadata: {labels: {app: crowd}}
    spec:
      serviceAccountName: client
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
        - {maxSkew: 2, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: crowd}}}
      containers:
        - name: app
          image: %[2]s
          args: [get, -n, "0", -every, 30s, -timeout, 20s, -carry-on, "http://%[3]s:8080/%[4]s"]
`

// fifty: an enrolled Deployment goes from nothing to fifty at once. All are
// captured before their first process runs, none fails to start.
func fifty(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pod("server", "node1", nil)
	s.Ready("server")
	s.Captured("server")
	word := ambitlab.Token("crowd")
	l.Apply(t, fmt.Sprintf(crowd, s.Name, ambitlab.App, s.Now("server").Status.PodIP, word))
	before := adds(t, l)
	began := time.Now()
	l.Kubectl(t, "scale", "-n", s.Name, "deployment/crowd", "--replicas", strconv.Itoa(many))
	ambitlab.Until(t, "fifty pods to be ready", func() (string, bool) {
		d, err := l.Client.AppsV1().Deployments(s.Name).Get(t.Context(), "crowd", metav1.GetOptions{})
		if err != nil {
			return err.Error(), false
		}
		return fmt.Sprintf("%d ready", d.Status.ReadyReplicas), d.Status.ReadyReplicas == many
	})
	took := time.Since(began)
	list, err := l.Client.CoreV1().Pods(s.Name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=crowd"})
	if err != nil {
		t.Fatal(err)
	}
	per := map[string]int{}
	for i := range list.Items {
		p := &list.Items[i]
		per[p.Spec.NodeName]++
		if p.Annotations[ambitlab.Redirection] != "enabled" {
			t.Errorf("%s runs, and its annotations are %v", p.Name, p.Annotations)
		}
		if n := p.Status.ContainerStatuses[0].RestartCount; n > 0 {
			t.Errorf("%s was restarted %d times", p.Name, n)
		}
	}
	events, err := l.Client.CoreV1().Events(s.Name).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=FailedCreatePodSandBox"})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		t.Errorf("%s: %s", e.InvolvedObject.Name, e.Message)
	}
	spent := adds(t, l).since(before)
	if spent.count < many {
		t.Errorf("the agents count %v enrolments", spent.count)
	}
	t.Logf("%d pods ready after %s on %v; capture at ADD, as the agents count it: p50 at most %ss, p99 at most %ss",
		many, took.Round(time.Millisecond), per, spent.quantile(0.5), spent.quantile(0.99))
	// Each has made its first request, and none could be read.
	ambitlab.Until(t, "their requests to have been served", func() (string, bool) {
		n := 0
		for _, line := range l.Logs(t, "ztunnel", "node1") {
			if strings.Contains(line, "connection complete") && strings.Contains(line, `direction="inbound"`) && strings.Contains(line, `dst.workload="server"`) &&
				strings.Contains(line, `src.identity="`+s.ID("client")+`"`) && !strings.Contains(line, "error=") {
				n++
			}
		}
		return fmt.Sprintf("%d were", n), n >= many
	})
	l.Wire.Secret(t, word)
	l.Kubectl(t, "delete", "-n", s.Name, "deployment/crowd", "--wait=false")
	l.Healthy(t)
}

// histogram is ambit_cni_enrol_seconds of all agents.
type histogram struct {
	count   float64
	bounds  []string
	buckets map[string]float64
}

func adds(t *testing.T, l *ambitlab.Lab) histogram {
	t.Helper()
	h := histogram{buckets: map[string]float64{}}
	for n := range nodes {
		text := l.OnNode(t, node(n+1), "busybox wget -qO- http://127.0.0.1:15098/metrics")
		for line := range strings.Lines(text) {
			rest, ok := strings.CutPrefix(line, `ambit_cni_enrol_seconds_bucket{le="`)
			if !ok {
				continue
			}
			bound, value, _ := strings.Cut(rest, `"} `)
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if _, known := h.buckets[bound]; !known {
				h.bounds = append(h.bounds, bound)
			}
			h.buckets[bound] += v
			if bound == "+Inf" {
				h.count += v
			}
		}
	}
	return h
}

func (h histogram) since(before histogram) histogram {
	out := histogram{count: h.count - before.count, bounds: h.bounds, buckets: map[string]float64{}}
	for b, v := range h.buckets {
		out.buckets[b] = v - before.buckets[b]
	}
	return out
}

// quantile is the bound of the bucket that has it.
func (h histogram) quantile(q float64) string {
	for _, b := range h.bounds {
		if h.buckets[b] >= q*h.count {
			return b
		}
	}
	return "+Inf"
}
