// Package plugin owns the CNI plugin: the program the container runtime runs
// for every sandbox, last in the chain. It decides nothing about the mesh: it
// asks the node agent and waits, and when there is no agent it goes by the
// agent's intent file. It never leaves a pod that is to be captured running
// without capture.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambitmesh/ambit/cni/enroll"
)

const (
	// retryPause is how often a missing agent is looked for again.
	retryPause = 250 * time.Millisecond
	// delWait bounds a DEL: the agent learns of the end from Kubernetes too.
	delWait = 3 * time.Second
)

// Plugin answers the runtime. It holds no state between commands.
type Plugin struct {
	stdout io.Writer // the runtime reads the result here
	stderr io.Writer // the runtime logs this
}

// New returns a plugin that writes to the given streams.
func New(stdout, stderr io.Writer) *Plugin { return &Plugin{stdout, stderr} }

// Funcs are the commands for the skeleton.
func (p *Plugin) Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add:   p.add,
		Check: p.check,
		Del:   p.del,
		GC:    func(*skel.CmdArgs) error { return nil },
		// An error here makes the runtime report the network as not ready,
		// and the kubelet then evicts what runs on the node: an agent that
		// restarts must not cost that. ADD waits for the agent instead.
		Status: func(*skel.CmdArgs) error { return nil },
	}
}

// add returns only when the pod is captured or is none of ours.
func (p *Plugin) add(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	pod := parseArgs(args.Args)
	if conf.ignores(pod) {
		return p.result(conf)
	}
	ips, err := conf.addresses()
	if err != nil {
		return fmt.Errorf("pod %s: %w", pod, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), conf.timeout())
	defer cancel()
	answer, err := p.ask(ctx, conf, pod, enroll.Request{
		Kind:        enroll.Add,
		ContainerID: args.ContainerID,
		Netns:       args.Netns,
		Pod:         pod,
		IPs:         ips,
		CNIVersion:  conf.CNIVersion,
	})
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("pod %s is not started outside the mesh", pod), err.Error())
	}
	switch answer.Outcome {
	case enroll.Captured, enroll.Passed:
		return p.result(conf)
	}
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("pod %s is not started outside the mesh", pod), answer.Reason)
}

// ask repeats the call until there is an answer or the time is over. Between
// attempts the intent file may say that the pod does not need one.
func (p *Plugin) ask(ctx context.Context, conf *config, pod enroll.Pod, r enroll.Request) (enroll.Response, error) {
	for {
		answer, err := enroll.Call(ctx, conf.socket(), r)
		var away *enroll.UnreachableError
		if err == nil || !errors.As(err, &away) {
			return answer, err
		}
		pass, why := withoutAgent(conf.intent(), pod)
		if pass {
			fmt.Fprintf(p.stderr, "ambit-cni: pod %s passes: %s (%v)\n", pod, why, err)
			return enroll.Response{Outcome: enroll.Passed, Reason: why}, nil
		}
		t := time.NewTimer(retryPause)
		select {
		case <-ctx.Done():
			t.Stop()
			return enroll.Response{}, fmt.Errorf("%w; waited %s because %s", err, conf.timeout(), why)
		case <-t.C:
		}
	}
}

// withoutAgent decides from the intent file whether a pod may start while the
// agent is away. What is not known does not pass.
func withoutAgent(path string, pod enroll.Pod) (pass bool, why string) {
	in, err := enroll.ReadIntent(path)
	if err != nil {
		return false, err.Error()
	}
	switch in.Namespaces[pod.Namespace] {
	case enroll.Outside:
		return true, fmt.Sprintf("namespace %s is not enrolled", pod.Namespace)
	case enroll.Enrolled:
		return false, fmt.Sprintf("namespace %s is enrolled", pod.Namespace)
	case enroll.Mixed:
		return false, fmt.Sprintf("namespace %s has pods that are enrolled by their own label", pod.Namespace)
	}
	return false, fmt.Sprintf("namespace %s was not known when the agent was last here", pod.Namespace)
}

// check reports a pod that should be captured and is not.
func (p *Plugin) check(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	pod := parseArgs(args.Args)
	if conf.ignores(pod) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), delWait)
	defer cancel()
	answer, err := enroll.Call(ctx, conf.socket(), enroll.Request{
		Kind: enroll.Check, ContainerID: args.ContainerID, Netns: args.Netns, Pod: pod, CNIVersion: conf.CNIVersion,
	})
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("pod %s cannot be checked", pod), err.Error())
	}
	if answer.Outcome == enroll.Refused {
		return types.NewError(types.ErrInternal, fmt.Sprintf("pod %s: capture is not as it should be", pod), answer.Reason)
	}
	return nil
}

// del tells the agent and succeeds in any case: a sandbox that cannot be
// removed is worse than one the agent finds gone a little later.
func (p *Plugin) del(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		fmt.Fprintf(p.stderr, "ambit-cni: container %s: %v\n", args.ContainerID, err)
		return nil
	}
	pod := parseArgs(args.Args)
	if conf.ignores(pod) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), delWait)
	defer cancel()
	_, err = enroll.Call(ctx, conf.socket(), enroll.Request{
		Kind: enroll.Del, ContainerID: args.ContainerID, Netns: args.Netns, Pod: pod, CNIVersion: conf.CNIVersion,
	})
	if err != nil {
		fmt.Fprintf(p.stderr, "ambit-cni: pod %s: %v; the agent removes it later\n", pod, err)
	}
	return nil
}

// result prints what the plugins before us made, byte for byte: we change
// nothing about the pod's addresses and routes.
func (p *Plugin) result(conf *config) error {
	out := conf.PrevResult
	if len(out) == 0 {
		b, err := json.Marshal(map[string]string{"cniVersion": conf.CNIVersion})
		if err != nil {
			return err
		}
		out = b
	}
	_, err := p.stdout.Write(append(out[:len(out):len(out)], '\n'))
	return err
}
