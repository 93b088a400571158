package node

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ambitmesh/ambit/cni/cri"
	"github.com/ambitmesh/ambit/cni/redirect"
)

const (
	proofWait = 5 * time.Second
	// reachWait is shorter, because ADD waits with it: a node that finds no way
	// to a pod without an end on the node will hardly find one later.
	reachWait = 2 * time.Second
	// unreachableFor spares the next such pods of the node even that.
	unreachableFor = 10 * time.Minute
)

// examine looks how the pod is connected, and returns why capture would say
// nothing about its application, or "". A pod that nothing has been done with
// is refused for it.
func (j *job) examine() (foreign string, err error) {
	h := j.held
	if h.survey, err = redirect.Look(j.a.cfg.Host, h.ns); err != nil {
		return "", err
	}
	foreign = h.survey.ForeignStack(h.addrs)
	if foreign == "" || h.set || j.before != nil && j.before.ContainerID == h.containerID {
		return foreign, nil
	}
	h.close()
	j.held = nil
	return "", &refusal{foreign}
}

// foreign deals with a captured pod that has since turned out not to use this
// kernel's stack. An application with CAP_NET_ADMIN can make it look so, and
// must not get out of the mesh that way: only the runtime's word lets it go.
func (j *job) foreign(ctx context.Context, why string) error {
	_, err := j.ask(ctx)
	var refused *refusal
	if errors.As(err, &refused) {
		if err := j.forgetHeld(ctx, true); err != nil {
			return err
		}
		j.before, j.released = nil, true
		return &refusal{refused.reason + "; " + why}
	}
	return fmt.Errorf("captured, but %s; the runtime does not say so, hence it stays", why)
}

// prove tries capture. What the node cannot try, because it has neither an end
// of the pod's device nor a way to it, is compared with what was set.
func (j *job) prove(ctx context.Context) error {
	h, host, wait := j.held, j.a.cfg.Host, proofWait
	end := h.survey.HostEnd()
	if !end {
		wait = reachWait
		if time.Now().UnixNano() < j.a.unreachable.Load() {
			host = nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var err error
	if h.wishes.inboundDirect {
		err = redirect.ProveOutbound(ctx, h.ns, h.addrs)
	} else {
		err = redirect.Prove(ctx, host, h.ns, h.addrs)
	}
	var away *redirect.UnreachableError
	h.inspected = !end && errors.As(err, &away)
	if h.inspected {
		if host != nil {
			j.a.unreachable.Store(time.Now().Add(unreachableFor).UnixNano())
		}
		cfg := h.config(j.a, j.pod)
		cfg.ProxyCgroups = j.a.proxies.list()
		err = j.a.cfg.Redirector.Check(cfg)
	}
	if err != nil {
		return fmt.Errorf("capture is not proven: %w", err)
	}
	ports := ProbePorts(j.pod)
	by, err := j.a.cfg.Redirector.Probing(h.containerID, ports)
	h.open = nil
	if by == redirect.ProbesBySource {
		h.open = ports
	}
	return err
}

// limits says on the pod what capture does not promise to it, "" for nothing.
func (h *held) limits() string {
	var out []string
	if h.inspected {
		out = append(out, "inbound capture was inspected, not tried: the node has no way to the pod and no end of its devices, "+h.survey.Kinds())
	}
	if len(h.open) > 0 {
		out = append(out, fmt.Sprintf("probes are told by the node's address alone, so that every process of the node can dial ports %s: none of its frames can be stamped on the node's side, %s", ports(h.open), h.survey.Kinds()))
	}
	if kinds := h.survey.Untested(); len(kinds) > 0 {
		out = append(out, "devices of a kind that Ambit has not been tested with: "+strings.Join(kinds, ", "))
	}
	return strings.Join(out, "; ")
}

func ports(list []uint16) string {
	var out []string
	for _, p := range list {
		out = append(out, strconv.Itoa(int(p)))
	}
	return strings.Join(out, ", ")
}

// ownStack says why the runtime class of a pod that is being made is one whose
// applications bring their own network stack, or "". Users name classes as they
// like; the handler is what the runtime's configuration calls it.
func (a *Agent) ownStack(ctx context.Context, class *string) string {
	if class == nil {
		return ""
	}
	names := []string{*class}
	handler, err := a.kube.handler(ctx, *class)
	if err != nil {
		a.log.Warn("the handler of a runtime class is not known, its name must do", "class", *class, "err", err)
	} else {
		names = append(names, handler)
	}
	name, own := cri.OwnStack(names...)
	if !own {
		return ""
	}
	return fmt.Sprintf("runtime class %s (%s) does not use this kernel's network stack", *class, name)
}
