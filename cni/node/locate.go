package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/cri"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

type addrs = []netip.Addr

// locate opens the pod's network namespace and settles which sandbox it is.
func (j *job) locate(ctx context.Context) error {
	want := j.sandbox
	if want.id == "" && j.held == nil {
		found, err := j.ask(ctx)
		if err != nil {
			return err
		}
		want = found
	}
	if h := j.held; h != nil && (want.id == "" || want.id == h.containerID) {
		if len(h.strange) > 0 || h.outdated(sandbox{}, podAddrs(j.pod)) {
			now, strange, err := j.addresses(h.ns, h.addrs)
			if err != nil {
				return err
			}
			h.strange = strange
			if len(now) > len(h.addrs) {
				// Another address: programs and listeners are made to know it.
				h.addrs = now
				h.set, h.proven = false, false
			}
		}
		return nil
	}
	ns, err := j.a.cfg.HostRoot.Netns(want.netns)
	if err != nil {
		return err
	}
	cookie, err := ns.Cookie()
	if err != nil {
		ns.Close()
		return err
	}
	if ns.ID() == j.a.cfg.Host.ID() {
		ns.Close()
		return &refusal{"its sandbox is in the node's network namespace"}
	}
	unclaim, owner := j.a.claims.take(cookie, j.uid, podName(j.pod))
	if owner != "" {
		ns.Close()
		return &refusal{fmt.Sprintf("its network namespace is that of pod %s", owner)}
	}
	now, strange, err := j.addresses(ns, want.addrs)
	if err == nil && len(now) == 0 {
		err = errors.New("the pod has no address yet")
	}
	if err != nil {
		unclaim()
		ns.Close()
		return err
	}
	if j.held != nil {
		// The pod has a new sandbox; the old one's namespace is going away.
		if err := j.forgetHeld(ctx, false); err != nil {
			unclaim()
			ns.Close()
			return err
		}
	}
	j.held = &held{uid: j.uid, name: podName(j.pod), containerID: want.id, path: want.netns, ns: ns, cookie: cookie, addrs: now, strange: strange, unclaim: unclaim}
	if b := j.before; b != nil && b.ContainerID == want.id && b.Cookie == cookie {
		j.held.foreign = b.Foreign
	}
	return nil
}

// addresses are those of a sandbox: what is known of it, and what the API server
// says if it can be true. While a pod gets another sandbox the API server has the
// addresses of the former one, at which nobody answers any more.
func (j *job) addresses(ns *netns.NS, known addrs) (now, strange addrs, err error) {
	now = slices.Clone(known)
	for _, a := range podAddrs(j.pod) {
		if slices.Contains(now, a) {
			continue
		}
		if len(known) > 0 {
			s, err := redirect.Look(nil, ns)
			if err != nil {
				return nil, nil, err
			}
			if !slices.Contains(s.Addrs, a) {
				strange = append(strange, a)
				continue
			}
		}
		now = append(now, a)
	}
	return now, strange, nil
}

// ask finds the sandbox of a pod that was there before the agent.
func (j *job) ask(ctx context.Context) (sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	rt, err := j.a.runtime()
	if err != nil {
		return sandbox{}, err
	}
	defer rt.Close()
	s, err := rt.Find(ctx, runtimeUID(j.pod))
	if err != nil {
		return sandbox{}, err
	}
	d, err := rt.Detail(ctx, s.ID)
	if err != nil {
		return sandbox{}, err
	}
	if name, own := cri.OwnStack(s.Handler, d.Runtime); own {
		return sandbox{}, &refusal{fmt.Sprintf("runtime %s does not use this kernel's network stack", name)}
	}
	return sandbox{id: s.ID, netns: d.Netns}, nil
}

// podAddrs are the addresses the API server knows the pod by.
func podAddrs(p *corev1.Pod) addrs {
	if p == nil {
		return nil
	}
	var out addrs
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}
