package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/ambitmesh/ambit/cni/netns"
)

// ErrProbes is returned by Set for a pod whose probes would all be refused.
var ErrProbes = errors.New("its probes cannot be told from other plaintext: no host-side Ethernet device leads to it, and the node has no route to it either")

// Probing says how a pod's probes are told from other plaintext.
type Probing string

const (
	NoProbes       Probing = ""        // none that dials
	ProbesByStamp  Probing = "stamp"   // sockets of the node, seen on the host's end of the pod's device
	ProbesBySource Probing = "address" // whoever has the node's address
)

// Probing reads it of a captured pod.
func (r *Redirector) Probing(containerID string, ports []uint16) (Probing, error) {
	if len(ports) == 0 {
		return NoProbes, nil
	}
	dir, err := r.dir(containerID)
	if err != nil {
		return NoProbes, err
	}
	sw, err := readSwitches(dir)
	switch {
	case err != nil:
		return NoProbes, fmt.Errorf("container %s: %w", containerID, err)
	case sw.Flags&flagStamp != 0:
		return ProbesByStamp, nil
	}
	return ProbesBySource, nil
}

// Sources are the addresses from which a process of host dials those of a pod,
// as host's routes have it now. An address without a route has none.
func Sources(host *netns.NS, pod []netip.Addr) ([]netip.Prefix, error) {
	if host == nil {
		return nil, nil
	}
	var out []netip.Prefix
	err := host.Do(func() error {
		for _, a := range pod {
			routes, err := netlink.RouteGet(a.AsSlice())
			if err != nil {
				continue // unreachable: then it is not probed either
			}
			for _, r := range routes {
				src, ok := netip.AddrFromSlice(r.Src)
				if src = src.Unmap(); !ok || src.IsLoopback() || src.IsUnspecified() {
					continue
				}
				if p := netip.PrefixFrom(src, src.BitLen()); !slices.Contains(out, p) {
					out = append(out, p)
				}
			}
		}
		return nil
	})
	return out, err
}
