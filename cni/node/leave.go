package node

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// annotationUninstall on our own namespace asks every agent to let its pods go
// and to take Ambit off its node, before anything of Ambit is deleted. The
// agent gives the value back in annotationReleased on its own pod.
const (
	annotationUninstall = "ambitmesh.io/uninstall"
	annotationReleased  = "ambitmesh.io/released"
	appAgent            = "ambit-cni-node"
)

// errTakenBack ends an agent that has released its node and is to work again:
// its successor starts from nothing, as on a new node.
var errTakenBack = errors.New("the uninstall was taken back")

// Leaving is the value of annotationUninstall, "" when the agent is to stay.
func (a *Agent) Leaving() string {
	if a.kube == nil {
		return ""
	}
	o, ok, err := a.kube.namespaces.GetStore().GetByKey(a.cfg.Rules.OwnNamespace)
	if err != nil || !ok {
		return ""
	}
	return o.(*corev1.Namespace).Annotations[annotationUninstall]
}

// Left is closed when the agent was asked to leave and no pod of the node is
// captured any more. None will be: until it is asked back, every pod is
// outside.
func (a *Agent) Left() <-chan struct{} { return a.left }

// decide is Decide, unless we are leaving.
func (a *Agent) decide(pod *corev1.Pod, namespace map[string]string) Decision {
	if a.Leaving() != "" {
		return Decision{Reason: "Ambit is being uninstalled"}
	}
	return Decide(a.cfg.Rules, pod, namespace)
}

// SayReleased writes on this agent's own pod that nothing of Ambit is left on
// the node. It tries until ctx ends.
func (a *Agent) SayReleased(ctx context.Context) {
	for failed := false; ; failed = true {
		err := a.sayReleased(ctx)
		if err == nil {
			a.log.Info("nothing of Ambit is left on this node", "asked", a.Leaving())
			return
		}
		if !failed {
			a.log.Warn("cannot say that this node is released, trying on", "err", err)
		}
		if !sleep(ctx, time.Second) {
			return
		}
	}
}

func (a *Agent) sayReleased(ctx context.Context) error {
	found := false
	for _, p := range a.kube.podsIn(a.cfg.Rules.OwnNamespace) {
		if p.Labels[labelApp] != appAgent || p.DeletionTimestamp != nil || terminal(p) {
			continue
		}
		found = true
		if err := a.kube.annotate(ctx, p, map[string]string{annotationReleased: a.Leaving()}); err != nil {
			return err
		}
	}
	if !found {
		return errors.New("this agent's own pod is not known: no pod with label app=" + appAgent + " on this node")
	}
	return nil
}

// leave notices that the agent was asked to leave and has nothing more to let
// go.
func (l *loop) leave() error {
	asked := l.a.Leaving() != ""
	switch {
	case l.left && !asked:
		return errTakenBack
	case l.left || !asked || len(l.intended) > 0:
		return nil
	}
	for _, e := range l.pods {
		if e.busy || e.held != nil || e.failed > 0 {
			return nil
		}
	}
	l.left = true
	if _, err := l.a.cfg.Redirector.Collect(func(string) bool { return false }); err != nil {
		l.a.log.Error("pins are left", "err", err)
	}
	l.write()
	l.a.log.Info("asked to leave: no pod of this node is captured any more")
	close(l.a.left)
	return nil
}
