package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// delWait bounds the answer to a DEL, not the work behind it.
const delWait = 2 * time.Second

// answer is what the plugin is told. It runs on the request's goroutine.
func (a *Agent) answer(ctx context.Context, r enroll.Request) enroll.Response {
	begin := time.Now()
	var out enroll.Response
	switch r.Kind {
	case enroll.Add:
		out = a.answerAdd(ctx, r)
	case enroll.Del:
		done := make(chan struct{})
		a.tell(ctx, event{del: &deletion{r.ContainerID, done}})
		t := time.NewTimer(delWait)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
		case <-ctx.Done():
		}
		out = enroll.Response{Outcome: enroll.Done}
	case enroll.Check:
		answer := make(chan enroll.Response, 1)
		a.tell(ctx, event{check: &examination{r.ContainerID, answer}})
		select {
		case out = <-answer:
		case <-ctx.Done():
			out = enroll.Response{Outcome: enroll.Refused, Reason: "the agent is ending"}
		}
	}
	a.metrics.requests.WithLabelValues(string(r.Kind), string(out.Outcome)).Inc()
	if out.Outcome == enroll.Refused {
		a.log.Warn("plugin request refused", "kind", r.Kind, "pod", r.Pod.String(), "container", r.ContainerID,
			"reason", out.Reason, "after", time.Since(begin).Round(time.Millisecond).String())
	} else {
		a.log.Debug("plugin request answered", "kind", r.Kind, "pod", r.Pod.String(), "container", r.ContainerID,
			"outcome", out.Outcome, "after", time.Since(begin).Round(time.Millisecond).String())
	}
	return out
}

func (a *Agent) answerAdd(ctx context.Context, r enroll.Request) enroll.Response {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.AddWait)
	defer cancel()
	refuse := func(err error) enroll.Response {
		return enroll.Response{Outcome: enroll.Refused, Reason: err.Error()}
	}
	pod, err := a.kube.find(ctx, r.Pod.Namespace, r.Pod.Name, r.Pod.UID)
	if err != nil {
		return refuse(err)
	}
	if labels, known := a.kube.labels(pod.Namespace); known && a.decide(pod, labels).Enrol {
		// The sandbox itself cannot be asked for while it is being made.
		if why := a.ownStack(ctx, pod.Spec.RuntimeClassName); why != "" {
			if err := a.kube.annotate(ctx, pod, map[string]string{annotationReason: why}); err != nil {
				a.log.Warn("cannot say on a pod why it is refused", "pod", podName(pod), "err", err)
			}
			return refuse(errors.New(why))
		}
	}
	answer := make(chan enroll.Response, 1)
	a.tell(ctx, event{add: &addition{pod: pod, sandbox: sandbox{id: r.ContainerID, netns: r.Netns, addrs: r.IPs}, answer: answer}})
	select {
	case out := <-answer:
		return out
	case <-ctx.Done():
		why := "no ztunnel has taken the pod"
		if len(a.zds.Clients()) == 0 {
			why = "no ztunnel is connected to the node agent"
		}
		return refuse(fmt.Errorf("not captured within %s: %s", a.cfg.AddWait, why))
	}
}
