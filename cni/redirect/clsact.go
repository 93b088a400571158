package redirect

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Before Linux 6.6 the programs are direct-action filters of a clsact qdisc.
// They live as long as the device, but anybody with CAP_NET_ADMIN in the pod
// can delete them, hence Check. The functions of this file run inside the
// pod's namespace.

const (
	filterPriority = 1
	filterHandle   = 0x539
	// A filter cannot be moved. One that has got behind another is made again
	// under the other handle, in front, before it is deleted.
	filterOther  = 0x53a
	filterPrefix = "ambit-"
)

func (d direction) parent() uint32 {
	if d.name == directions()[0].name {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func (s *state) attachFilters(devices []device) error {
	for _, dev := range devices {
		for _, d := range directions() {
			if err := s.attachFilter(dev, d); err != nil {
				return fmt.Errorf("%s filter on device %s: %w", d.name, dev.name, err)
			}
		}
	}
	return nil
}

func (s *state) attachFilter(dev device, d direction) error {
	id, err := programID(d.program(s))
	if err != nil {
		return err
	}
	have, first, err := findFilter(dev.index, d)
	if err != nil {
		return err
	}
	if have != nil && first && have.Id == int(id) {
		return nil
	}
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: dev.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	handle := uint32(filterHandle)
	if have != nil {
		handle = have.Handle
		if !first {
			handle = filterHandle + filterOther - handle
		}
	}
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: dev.index, Parent: d.parent(), Handle: handle, Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: d.program(s).FD(), Name: filterPrefix + d.name, DirectAction: true,
	})
	if err == nil && have != nil && have.Handle != handle {
		err = netlink.FilterDel(have)
	}
	return err
}

// findFilter returns nil when there is none of ours. Before the first one of the
// lowest priority nothing runs; a newer filter of that priority goes in front.
func findFilter(index int, d direction) (ours *netlink.BpfFilter, first bool, err error) {
	filters, err := whole(func() ([]netlink.Filter, error) {
		return netlink.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, d.parent())
	})
	if err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // no qdisc
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("list filters: %w", err)
	}
	first = true
	for _, f := range filters {
		if f.Attrs().Handle == 0 {
			continue // the list itself
		}
		b, ok := f.(*netlink.BpfFilter)
		if ok && (b.Handle == filterHandle || b.Handle == filterOther) && b.Priority == filterPriority && b.Name == filterPrefix+d.name {
			return b, first, nil
		}
		first = false
	}
	return nil, false, nil
}

// detachFilters leaves the qdisc: others may use it.
func detachFilters() error {
	inv, err := takeInventory()
	if err != nil {
		return err
	}
	var errs []error
	for _, dev := range inv.devices {
		for _, d := range directions() {
			f, _, err := findFilter(dev.index, d)
			for err == nil && f != nil { // two, if a move was interrupted
				if err = netlink.FilterDel(f); err == nil {
					f, _, err = findFilter(dev.index, d)
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("remove %s filter of device %s: %w", d.name, dev.name, err))
			}
		}
	}
	return errors.Join(errs...)
}
