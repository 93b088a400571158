package node

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// held is what has been set up for a pod. Exactly one goroutine has it: the
// loop, or the job it was given to.
type held struct {
	uid         string
	name        string
	containerID string
	path        string // of the namespace, on the host
	ns          *netns.NS
	cookie      uint64
	addrs       addrs
	strange     addrs // the API server's, but on no device: those of an earlier sandbox
	listeners   *redirect.Listeners
	sockets     []enroll.IntendedSocket
	foreign     bool   // a ztunnel that is not ours makes the listeners
	wishes      wishes // of the pod's annotations, as capture was set

	set    bool // capture is on
	once   bool // it was at some time, and stays on or comes back without a ztunnel too
	acked  bool // a ztunnel serves it
	proven bool
	said   bool // the pod says so; the watch may not have it yet

	survey    redirect.Survey // how the pod is connected, as last seen
	inspected bool            // inbound capture could not be tried, only compared
	open      []uint16        // ports at which every process of the node passes for the kubelet
	fromStart bool            // captured before any process of it ran, and ever since

	drained bool     // un-enrolment had begun: connections were made past the mesh
	counted bool     // older is known
	older   []uint64 // connections that capture found open, by cookie

	unclaim func() // lets the namespace be another pod's
	unwatch func() // ends the watch of its addresses and devices and waits
}

func (h *held) complete() bool { return h.set && h.acked && h.proven }

// outdated reports whether the pod runs elsewhere or has other addresses than
// what was set up for.
func (h *held) outdated(s sandbox, now addrs) bool {
	if s.id != "" && s.id != h.containerID {
		return true
	}
	return slices.ContainsFunc(now, func(a netip.Addr) bool { return !slices.Contains(h.addrs, a) && !slices.Contains(h.strange, a) })
}

func (h *held) config(a *Agent, pod *corev1.Pod) redirect.Config {
	cfg := redirect.Config{
		ContainerID: h.containerID,
		UID:         h.uid,
		NS:          h.ns,
		Addrs:       h.addrs,
		Listeners:   h.listeners,
		Host:        a.cfg.Host,
		Foreign:     h.foreign,
	}
	cfg.InboundDirect, cfg.Reroute = h.wishes.inboundDirect, h.wishes.rerouted()
	if pod == nil {
		return cfg
	}
	if cfg.ProbePorts = ProbePorts(pod); len(cfg.ProbePorts) > 0 {
		// Used only where probes cannot be stamped. Without any the pod is
		// refused then, and says so.
		cfg.ProbeSources, _ = redirect.Sources(a.cfg.Host, h.addrs)
	}
	return cfg
}

func (h *held) intended(pod *corev1.Pod) enroll.IntendedPod {
	p := enroll.IntendedPod{UID: h.uid, ContainerID: h.containerID, Cookie: h.cookie, Netns: h.path, Sockets: h.sockets, Foreign: h.foreign, Older: h.older}
	if pod != nil {
		p.Namespace, p.Name = pod.Namespace, pod.Name
	}
	return p
}

// close lets the descriptors go. Sockets end when ztunnel has closed its
// copies too.
func (h *held) close() {
	if h.unwatch != nil {
		h.unwatch()
	}
	if h.listeners != nil {
		h.listeners.Close()
	}
	if h.ns != nil {
		h.ns.Close()
	}
	if h.unclaim != nil {
		h.unclaim()
	}
	h.listeners, h.ns, h.unclaim = nil, nil, nil
}
