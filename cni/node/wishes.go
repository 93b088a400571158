package node

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// What a pod may ask of its capture.
const (
	annotationInboundDirect = "ambient.istio.io/bypass-inbound-capture"
	annotationDNS           = "ambient.istio.io/dns-capture"
	annotationReroute       = "istio.io/reroute-virtual-interfaces"
)

// wishes are what a pod's annotations say, where they say something that can be
// understood.
type wishes struct {
	inboundDirect bool   // only what it dials is captured
	dns           bool   // so are its DNS queries
	reroute       string // devices behind which others live, separated by commas
}

// Wishes reads a pod's annotations; dns is what holds without one. What cannot
// be read counts as not there, and is named.
func Wishes(annotations map[string]string, dns bool) (w wishes, unread []string) {
	w.dns = dns
	boolean := func(name string, into *bool) {
		text, ok := annotations[name]
		if !ok {
			return
		}
		v, err := strconv.ParseBool(text)
		if err != nil {
			unread = append(unread, name+"="+strconv.Quote(text)+" is neither true nor false")
			return
		}
		*into = v
	}
	boolean(annotationInboundDirect, &w.inboundDirect)
	boolean(annotationDNS, &w.dns)
	var devices []string
	for name := range strings.SplitSeq(annotations[annotationReroute], ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "" || slices.Contains(devices, name):
		case len(name) > 15 || strings.ContainsAny(name, "/: \t") || len(devices) == mostReroutes:
			unread = append(unread, annotationReroute+": "+strconv.Quote(name)+" is no name of a device, or one too many")
		default:
			devices = append(devices, name)
		}
	}
	w.reroute = strings.Join(devices, ",")
	return w, unread
}

// mostReroutes is what the programs have room for.
const mostReroutes = 16

func (w wishes) rerouted() []string {
	if w.reroute == "" {
		return nil
	}
	return strings.Split(w.reroute, ",")
}

// wishesOf are a pod's, as far as the ztunnel there is can have them.
func (a *Agent) wishesOf(pod *corev1.Pod, foreign bool) wishes {
	if pod == nil {
		return wishes{}
	}
	w, _ := Wishes(pod.Annotations, a.cfg.DNS)
	w.dns = w.dns && !foreign
	return w
}

// wish applies what the pod's annotations say now.
func (j *job) wish() error {
	h := j.held
	now, unread := Wishes(j.pod.Annotations, j.a.cfg.DNS)
	now.dns = now.dns && !h.foreign
	if len(unread) > 0 && (now != h.wishes || !h.once) {
		j.a.log.Warn("annotations of a pod are not understood and count as not there", "pod", podName(j.pod), "annotations", unread)
	}
	if now == h.wishes {
		return nil
	}
	before := h.wishes
	h.wishes = now
	if now.dns != before.dns && h.listeners != nil {
		// Listeners for DNS come and go with the others: until the pod has
		// another sandbox it keeps what it has.
		h.wishes.dns = before.dns
	}
	if h.set {
		h.proven = false
		return j.set()
	}
	return nil
}

// differs reports whether capture is for another ztunnel than there is, or other
// than the pod asks for.
func (h *held) differs(a *Agent, pod *corev1.Pod) bool {
	foreign := a.foreign()
	now := a.wishesOf(pod, foreign)
	now.dns = h.wishes.dns
	return h.foreign != foreign || h.set && now != h.wishes
}
