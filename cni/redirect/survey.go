package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/ambitmesh/ambit/cni/netns"
)

// Survey is how a pod is connected, as far as that decides what capture can
// promise. Which CNI plugin made it so is of no interest: the kernel is asked.
type Survey struct {
	Devices []Device
	// Addrs are those of the devices, lo's not among them.
	Addrs []netip.Addr
}

// Device is one of a pod's, all but lo.
type Device struct {
	Name string
	Kind string // as the kernel calls it: veth, macvlan; "device" is hardware
	// HostEnd is the other end in the node's namespace, "" when there is none.
	HostEnd string
	// Machine: a virtual machine's network card, not one of this kernel.
	Machine bool
}

// Look surveys a pod. host is the node's namespace.
func Look(host, pod *netns.NS) (Survey, error) {
	var s Survey
	type end struct{ here, there, at int } // indexes in the pod and outside, position
	var ends []end
	err := pod.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for _, l := range links {
			a := l.Attrs()
			if a.Index == ifindexLo {
				continue
			}
			if twoEnded(l) && a.ParentIndex != 0 {
				ends = append(ends, end{a.Index, a.ParentIndex, len(s.Devices)})
			}
			s.Devices = append(s.Devices, Device{Name: a.Name, Kind: l.Type(), Machine: isMachine(l)})
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return fmt.Errorf("addresses of device %s: %w", a.Name, err)
			}
			for _, addr := range addrs {
				if ip, ok := netip.AddrFromSlice(addr.IP); ok {
					s.Addrs = append(s.Addrs, ip.Unmap())
				}
			}
		}
		return nil
	})
	if err != nil {
		return Survey{}, fmt.Errorf("look at %s: %w", pod, err)
	}
	if host == nil {
		return s, nil
	}
	if err := host.Do(func() error {
		id := -1
		if err := withFd(pod.File(), func(fd int) (err error) {
			id, err = netlink.GetNetNsIdByFd(fd)
			return err
		}); err != nil {
			return fmt.Errorf("number of %s on the node: %w", pod, err)
		}
		if id < 0 {
			return nil // no device of the node has its other end there
		}
		for _, e := range ends {
			l, err := netlink.LinkByIndex(e.there)
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				continue // it leads to another namespace
			}
			if err != nil {
				return fmt.Errorf("device %d of the node: %w", e.there, err)
			}
			// Numbers are of a namespace: the node has others of that number.
			if a := l.Attrs(); twoEnded(l) && a.ParentIndex == e.here && a.NetNsID == id {
				s.Devices[e.at].HostEnd = a.Name
			}
		}
		return nil
	}); err != nil {
		return Survey{}, fmt.Errorf("look at %s from the node: %w", pod, err)
	}
	return s, nil
}

func twoEnded(l netlink.Link) bool { return l.Type() == "veth" || l.Type() == "netkit" }

// isMachine recognises what a virtual machine monitor makes: a tap device
// (QEMU, Cloud Hypervisor, Firecracker) or a macvtap.
func isMachine(l netlink.Link) bool {
	switch t := l.(type) {
	case *netlink.Tuntap:
		return t.Mode == netlink.TUNTAP_MODE_TAP
	case *netlink.Macvtap:
		return true
	}
	return l.Type() == "macvtap" || l.Type() == "ipvtap"
}

// HostEnd reports whether the node holds an end of one of the pod's devices:
// what the node's own processes send to the pod then passes a device of the
// node, and can be recognised there.
func (s Survey) HostEnd() bool {
	return slices.ContainsFunc(s.Devices, func(d Device) bool { return d.HostEnd != "" })
}

// Same compares with what Watch tells. An address that lo has makes a
// difference.
func (s Survey) Same(addrs []netip.Addr, devices []string) bool {
	names := map[string]bool{}
	for _, d := range s.Devices {
		names[d.Name] = true
	}
	known := set(s.Addrs)
	n := 0
	for _, a := range addrs {
		if a.IsLoopback() {
			continue
		}
		if !known[a] {
			return false
		}
		n++
	}
	return n == len(s.Addrs) && len(devices) == len(names) && !slices.ContainsFunc(devices, func(d string) bool { return !names[d] })
}

// Kinds names the devices for people: "eth0 (macvlan)".
func (s Survey) Kinds() string {
	var out []string
	for _, d := range s.Devices {
		out = append(out, d.Name+" ("+d.Kind+")")
	}
	return strings.Join(out, ", ")
}

// ForeignStack says why the pod's application does not use this kernel's
// network stack, or "". addrs are those the cluster knows the pod by.
//
// gVisor takes the addresses off the devices of the namespace and answers for
// them itself over a packet socket. Kata and KubeVirt hand the frames to a
// machine, whose kernel has the connections. This kernel would complete the
// handshake of a proof all the same, or none at all: what is seen from here
// says nothing about the application.
func (s Survey) ForeignStack(addrs []netip.Addr) string {
	for _, d := range s.Devices {
		if d.Machine {
			return fmt.Sprintf("a virtual machine has the network card %s (%s): its connections are not this kernel's", d.Name, d.Kind)
		}
	}
	if len(s.Devices) == 0 || len(addrs) == 0 {
		return ""
	}
	for _, a := range addrs {
		if slices.Contains(s.Addrs, a.Unmap()) {
			return ""
		}
	}
	return fmt.Sprintf("none of its addresses is on a device of its namespace, %s: its application brings a network stack of its own, as gVisor does", s.Kinds())
}

// Untested names the devices of kinds that no test has carried traffic over, nor
// over one that is the same to the programs: Ethernet or bare IP, one queue
// discipline each way.
func (s Survey) Untested() []string {
	var out []string
	for _, d := range s.Devices {
		if !slices.Contains(testedKinds, d.Kind) {
			out = append(out, d.Name+" ("+d.Kind+")")
		}
	}
	return out
}

var testedKinds = []string{"veth", "macvlan", "ipvlan", "vlan", "netkit", "device", "bridge", "bond", "team", "dummy", "vxlan", "geneve",
	"tun", "tuntap", "wireguard", "gretap", "ip6gretap", "ipip", "sit", "ip6tnl", "gre", "ip6gre"}
