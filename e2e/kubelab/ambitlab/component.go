package ambitlab

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Component is the running pod of one of Ambit's daemons on a node.
func (l *Lab) Component(t *testing.T, app, node string) *corev1.Pod {
	t.Helper()
	list, err := l.Client.CoreV1().Pods(System).List(t.Context(), metav1.ListOptions{
		LabelSelector: "app=" + app, FieldSelector: "spec.nodeName=" + node + ",status.phase=Running"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			return &list.Items[i]
		}
	}
	t.Fatalf("no %s on %s", app, node)
	return nil
}

// Logs returns the log lines of a component on all nodes, or on one.
func (l *Lab) Logs(t *testing.T, app, node string) []string {
	t.Helper()
	o := metav1.ListOptions{LabelSelector: "app=" + app}
	if node != "" {
		o.FieldSelector = "spec.nodeName=" + node
	}
	pods, err := l.Client.CoreV1().Pods(System).List(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, p := range pods.Items {
		r, err := l.Client.CoreV1().Pods(System).GetLogs(p.Name, &corev1.PodLogOptions{}).Stream(t.Context())
		if err != nil {
			continue // not started yet, or gone
		}
		var b bytes.Buffer
		_, err = io.Copy(&b, r)
		r.Close()
		if err != nil {
			continue
		}
		lines = append(lines, strings.Split(b.String(), "\n")...)
	}
	return lines
}

// Logged waits for a line of a component's log that has all the words.
func (l *Lab) Logged(t *testing.T, app, node string, words ...string) string {
	t.Helper()
	var found string
	Until(t, fmt.Sprintf("a line of %s %s with %q", app, node, words), func() (string, bool) {
		found = l.find(t, app, node, words...)
		return "", found != ""
	})
	return found
}

// find returns the last such line, or "".
func (l *Lab) find(t *testing.T, app, node string, words ...string) string {
	t.Helper()
	found := ""
lines:
	for _, line := range l.Logs(t, app, node) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		found = line
	}
	return found
}

// Scale sets the number of controllers and waits for it.
func (l *Lab) Scale(t *testing.T, replicas int) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
	if _, err := l.Client.AppsV1().Deployments(System).Patch(t.Context(), "ambit-controller", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	Until(t, fmt.Sprintf("%d controllers", replicas), func() (string, bool) {
		list, err := l.Client.CoreV1().Pods(System).List(t.Context(), metav1.ListOptions{LabelSelector: "app=ambit-controller"})
		if err != nil {
			return err.Error(), false
		}
		n := 0
		for i := range list.Items {
			if replicas == 0 || IsReady(&list.Items[i]) && list.Items[i].DeletionTimestamp == nil {
				n++
			}
		}
		return fmt.Sprint(n), n == replicas
	})
}

// Agents sends the node agents away, or brings them back.
func (l *Lab) Agents(t *testing.T, there bool) {
	t.Helper()
	patch := `{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"true"}}}}}`
	if there {
		patch = `{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":null}}}}}`
	}
	if _, err := l.Client.AppsV1().DaemonSets(System).Patch(t.Context(), "ambit-cni-node", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if there {
		return
	}
	Until(t, "the agents to be gone", func() (string, bool) {
		list, err := l.Client.CoreV1().Pods(System).List(t.Context(), metav1.ListOptions{LabelSelector: "app=ambit-cni-node"})
		return fmt.Sprint(err), err == nil && len(list.Items) == 0
	})
}

// Failures reads ambit_connections_failed_total of a node's ztunnel.
func (l *Lab) Failures(t *testing.T, node, reporter, reason string) float64 {
	t.Helper()
	pod := l.Component(t, "ztunnel", node).Name
	b, err := l.Client.CoreV1().Pods(System).ProxyGet("http", pod, "15020", "/metrics", nil).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "ambit_connections_failed_total{") || !strings.Contains(line, `reporter="`+reporter+`"`) || !strings.Contains(line, `reason="`+reason+`"`) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, '}')+1:], &v); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		sum += v
	}
	return sum
}
