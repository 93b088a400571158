package redirect

import (
	"errors"
	"fmt"

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

// attachStamp makes the probes of the node recognisable, if they can be.
func (s *state) attachStamp(cfg Config) error {
	if s.clsact || len(cfg.ProbePorts) == 0 {
		return nil
	}
	ends, err := hostEnds(cfg.Host, cfg.NS)
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
