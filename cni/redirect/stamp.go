package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// stamping is the one direction that is attached outside the pod: towards it,
// on the host's end of its veth. It has no clsact form, because filters there
// belong to the CNI plugin.
func stamping() direction {
	return direction{bpf.CaptureProgStamp, ebpf.AttachTCXEgress, func(s *state) *ebpf.Program { return s.Stamp }}
}

// hostEnd is the host's end of one of the pod's devices.
type hostEnd struct {
	device
	peer int // index of the device in the pod
}

// hostEnds finds the host's ends of the pod's devices. None is no error:
// ipvlan, macvlan, SR-IOV and layer 3 netkit have no such end.
func hostEnds(host, pod *netns.NS) ([]hostEnd, error) {
	if host == nil {
		return nil, nil
	}
	peers := map[int]int{} // index on the host -> index in the pod
	err := pod.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for _, l := range links {
			if a := l.Attrs(); l.Type() == "veth" && a.ParentIndex != 0 {
				peers[a.ParentIndex] = a.Index
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var ends []hostEnd
	err = host.Do(func() error {
		// The number the host's namespace knows the pod's by; without one no
		// device of the host has its other end there.
		id := -1
		if err := withFd(pod.File(), func(fd int) (err error) {
			id, err = netlink.GetNetNsIdByFd(fd)
			return err
		}); err != nil {
			return fmt.Errorf("number of %s on the host: %w", pod, err)
		}
		if id < 0 {
			return nil
		}
		for here, there := range peers {
			l, err := netlink.LinkByIndex(here)
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				continue // it leads to another namespace
			}
			if err != nil {
				return fmt.Errorf("device %d of the host: %w", here, err)
			}
			if a := l.Attrs(); l.Type() == "veth" && a.ParentIndex == there && a.NetNsID == id {
				ends = append(ends, hostEnd{device{index: a.Index, name: a.Name}, there})
			}
		}
		return nil
	})
	return ends, err
}

// stampEnds are the ends on which a probe is seen for certain: there is none
// unless every device that has one of the pod's addresses, and leads out of the
// pod, has one. With a macvlan for its address and a veth beside it, probes come
// in by the macvlan.
func stampEnds(host, pod *netns.NS, addrs []netip.Addr) ([]hostEnd, error) {
	ends, err := hostEnds(host, pod)
	if err != nil || len(ends) == 0 {
		return nil, err
	}
	endless := false
	err = pod.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		carriers, err := carriers(addrs)
		if err != nil {
			return err
		}
		for _, l := range links {
			at := l.Attrs().Index
			known := slices.ContainsFunc(ends, func(e hostEnd) bool { return e.peer == at })
			endless = endless || carriers[at] && leadsOut(l) && !known
		}
		return nil
	})
	if err != nil || endless {
		return nil, err
	}
	return ends, nil
}

// carriers are the devices, by index, that have one of the addresses. It runs
// inside the pod's namespace.
func carriers(addrs []netip.Addr) (map[int]bool, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	found := map[int]bool{}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && slices.Contains(addrs, ip.Unmap()) {
			found[a.LinkIndex] = true
		}
	}
	return found, nil
}

// leadsOut reports whether frames leave the pod through the device itself, and
// not through another one of the pod as with lo, dummy or a bridge.
func leadsOut(l netlink.Link) bool {
	switch l.Type() {
	case "veth", "macvlan", "macvtap", "ipvlan", "ipvtap", "netkit", "vlan":
		return true
	case "device": // a physical one, or a virtual function of it
		return l.Attrs().Flags&net.FlagLoopback == 0
	}
	return false
}

// attachStamp makes the probes of the node recognisable, if they can be.
func (s *state) attachStamp(cfg Config) error {
	if s.clsact || len(cfg.ProbePorts) == 0 {
		return nil
	}
	ends, err := stampEnds(cfg.Host, cfg.NS, cfg.Addrs)
	if err != nil || len(ends) == 0 {
		return err
	}
	err = cfg.Host.Do(func() error {
		for _, dev := range ends {
			if err := s.attachTCX(dev.device, stamping()); err != nil {
				return fmt.Errorf("stamp on host device %s: %w", dev.name, err)
			}
		}
		return nil
	})
	s.stamped = err == nil
	return err
}
