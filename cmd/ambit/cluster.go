package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	appsclient "k8s.io/client-go/kubernetes/typed/apps/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// connection says which cluster, as the flags say it.
type connection struct {
	kubeconfig, context, systemNamespace string
}

// cluster asks one cluster. Two typed clients instead of the whole set keep
// the program small; the dynamic one deletes.
type cluster struct {
	core    coreclient.CoreV1Interface
	apps    appsclient.AppsV1Interface
	dynamic dynamic.Interface
	rest    *rest.Config
	system  string
}

// begin is how a command that shows something starts: its -o is one we have, the
// cluster can be asked, and all of it has timeout.
func (c *connection) begin(ctx context.Context, output string, timeout time.Duration) (*cluster, context.Context, context.CancelFunc, error) {
	if err := validOutput(output); err != nil {
		return nil, nil, nil, err
	}
	to, err := c.open()
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	return to, ctx, cancel, nil
}

func (c *connection) open() (*cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: c.context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("which cluster? %w", err)
	}
	cfg.UserAgent = "ambit/" + version
	// One answer needs a handful of lists and one question per component.
	cfg.QPS, cfg.Burst = 100, 200
	core, err := coreclient.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	apps, err := appsclient.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &cluster{core, apps, dyn, cfg, c.systemNamespace}, nil
}

// question is where a part's version is read.
type question struct {
	part, selector, port, metric string
}

// The node agent answers on its node's loopback only; its readiness is all
// that can be asked from here.
var questions = []question{
	{partController, "app=ambit-controller", "15014", "ambit_build"},
	{partZtunnel, "app=ztunnel", "15020", "istio_build"},
	{partAgent, "app=ambit-cni-node", "", ""},
}

// components lists Ambit's own pods and asks each for its version.
func (c *cluster) components(ctx context.Context) ([]component, error) {
	var all []component
	var ask []question
	for _, q := range questions {
		pods, err := c.core.Pods(c.system).List(ctx, metav1.ListOptions{LabelSelector: q.selector})
		if err != nil {
			return nil, fmt.Errorf("list pods %s in %s: %w", q.selector, c.system, err)
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if p.DeletionTimestamp != nil {
				continue
			}
			ready, problem := readiness(p)
			all = append(all, component{Part: q.part, Pod: p.Name, Node: p.Spec.NodeName, Ready: ready, Problem: problem,
				Findings: findings(p.Annotations[annotationFindings])})
			ask = append(ask, q)
		}
	}
	// A node that is gone must not hold up the others, nor a thousand nodes be
	// asked at once.
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range all {
		if ask[i].port == "" || !all[i].Ready {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c.askVersion(ctx, &all[i], ask[i])
		})
	}
	wg.Wait()
	return all, nil
}

func (c *cluster) askVersion(ctx context.Context, to *component, q question) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	text, err := c.core.Pods(c.system).ProxyGet("http", to.Pod, q.port, "/metrics", nil).DoRaw(ctx)
	switch {
	case apierrors.IsForbidden(err):
		to.Unasked = "this account may not use the API server's pod proxy (get on pods/proxy)"
	case err != nil:
		to.Problem = fmt.Sprintf("ready, but does not answer on port %s: %v", q.port, err)
	default:
		tag, ok := label(string(text), q.metric, "tag")
		if !ok {
			to.Problem = fmt.Sprintf("answers on port %s without metric %s: is this an Ambit component?", q.port, q.metric)
		}
		to.Version = tag
		to.Overdue = int(number(string(text), "ambit_certificates_overdue"))
	}
}

// number reads a metric without labels; 0 when it is not there.
func number(text, metric string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, metric+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

// readiness says whether a pod is ready, and if not what holds it.
func readiness(p *corev1.Pod) (bool, string) {
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil {
			if last := s.LastTerminationState.Terminated; last != nil {
				return false, fmt.Sprintf("%s, %d restarts, last ended with code %d: %s",
					w.Reason, s.RestartCount, last.ExitCode, "kubectl logs -n "+p.Namespace+" --previous "+p.Name)
			}
			return false, strings.TrimSuffix(w.Reason+": "+w.Message, ": ")
		}
		if t := s.State.Terminated; t != nil {
			return false, fmt.Sprintf("ended with code %d: %s", t.ExitCode, t.Reason)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true, ""
		}
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return false, "not scheduled: " + c.Message
		}
	}
	return false, "not ready"
}

// label reads one label of the first sample of a metric in the Prometheus text
// format.
func label(text, metric, name string) (string, bool) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, metric+"{")
		if !ok {
			continue
		}
		for rest != "" && rest[0] != '}' {
			key, after, ok := strings.Cut(rest, `="`)
			if !ok {
				return "", false
			}
			value, after, ok := quoted(after)
			if !ok {
				return "", false
			}
			if strings.TrimSpace(key) == name {
				return value, true
			}
			rest = strings.TrimPrefix(after, ",")
		}
		return "", false
	}
	return "", false
}

// quoted reads up to the closing quote, undoing the format's three escapes.
func quoted(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
			if s[i] == 'n' {
				b.WriteByte('\n')
			} else {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}

// facts asks everything judge needs. namespace "" means all.
func (c *cluster) facts(ctx context.Context, namespace string) (facts, error) {
	f := facts{System: c.system, Installed: map[string]expected{}, Namespaces: map[string]map[string]string{}, Excluded: map[string]bool{}}
	if err := c.installed(ctx, &f); err != nil {
		return f, err
	}
	var err error
	if f.Components, err = c.components(ctx); err != nil {
		return f, err
	}
	if f.CA, err = c.caStatus(ctx); err != nil && !apierrors.IsForbidden(err) {
		return f, err
	}
	if namespace != "" {
		ns, err := c.core.Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		if err != nil {
			return f, err
		}
		f.Namespaces[ns.Name] = ns.Labels
	} else {
		list, err := c.core.Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return f, fmt.Errorf("list namespaces: %w", err)
		}
		for i := range list.Items {
			f.Namespaces[list.Items[i].Name] = list.Items[i].Labels
		}
	}
	// Who may not see NetworkPolicies is told nothing of them.
	if f.Policies, err = typed[networkingv1.NetworkPolicy](ctx, c, networkingv1.SchemeGroupVersion.WithResource("networkpolicies")); err != nil && !apierrors.IsForbidden(err) {
		return f, fmt.Errorf("list network policies: %w", err)
	}
	o := metav1.ListOptions{Limit: 500}
	for {
		list, err := c.core.Pods(namespace).List(ctx, o)
		if err != nil {
			return f, fmt.Errorf("list pods: %w", err)
		}
		f.Pods = append(f.Pods, list.Items...)
		if o.Continue = list.Continue; o.Continue == "" {
			return f, nil
		}
	}
}

// installed reads what should run.
func (c *cluster) installed(ctx context.Context, f *facts) error {
	ns, err := c.core.Namespaces().Get(ctx, c.system, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err == nil {
		f.Leaving = ns.Annotations[annotationUninstall]
	}
	d, err := c.apps.Deployments(c.system).Get(ctx, "ambit-controller", metav1.GetOptions{})
	switch {
	case err == nil:
		want := 1
		if d.Spec.Replicas != nil {
			want = int(*d.Spec.Replicas)
		}
		f.Installed[partController] = expected{want, int(d.Status.ReadyReplicas)}
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("deployment %s/ambit-controller: %w", c.system, err)
	}
	for part, name := range map[string]string{partZtunnel: "ztunnel", partAgent: "ambit-cni-node"} {
		ds, err := c.apps.DaemonSets(c.system).Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			f.Installed[part] = expected{int(ds.Status.DesiredNumberScheduled), int(ds.Status.NumberReady)}
			if part == partAgent {
				f.Excluded = excluded(ds.Spec.Template.Spec.Containers)
			}
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("daemonset %s/%s: %w", c.system, name, err)
		}
	}
	return nil
}

// excluded reads the agent's own setting, so that the two never disagree.
func excluded(cs []corev1.Container) map[string]bool {
	m := map[string]bool{}
	for _, c := range cs {
		for _, e := range c.Env {
			if e.Name != "EXCLUDE_NAMESPACES" {
				continue
			}
			for ns := range strings.SplitSeq(e.Value, ",") {
				if ns = strings.TrimSpace(ns); ns != "" {
					m[ns] = true
				}
			}
		}
	}
	return m
}
