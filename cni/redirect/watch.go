package redirect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// Watch calls changed with the addresses (of all devices) and the devices (all
// but lo) of the namespace, once at the start and after every change, until ctx
// ends. The agent answers with Set: an address that capture does not know is
// captured or dropped, a device it does not know is not covered. Watch keeps
// the namespace alive while it runs. changed is called on Watch's goroutine.
func Watch(ctx context.Context, ns *netns.NS, changed func(addrs []netip.Addr, devices []string)) error {
	events, err := subscribe(ns)
	if err != nil {
		return fmt.Errorf("watch %s: %w", ns, err)
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	var last *inventory
	buf := make([]byte, 64<<10)
	for {
		var now *inventory
		if err := ns.Do(func() (err error) {
			now, err = takeInventory()
			return err
		}); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		if last == nil || !now.equal(last) {
			changed(now.addrs, now.names())
			last = now
		}
		// The message says only that something changed. When the kernel had to
		// drop some (ENOBUFS) that is as good as one.
		_, err := events.Read(buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return fmt.Errorf("watch %s: %w", ns, err)
		}
	}
}

// subscribe happens before the first listing, so that nothing falls between.
func subscribe(ns *netns.NS) (*os.File, error) {
	var fd int
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return os.NewSyscallError("netlink socket", err)
		}
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK,
			Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR})
		if err != nil {
			_ = unix.Close(fd)
			return os.NewSyscallError("netlink bind", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink of "+ns.String()), nil
}

func (inv *inventory) equal(other *inventory) bool {
	return slices.Equal(inv.addrs, other.addrs) && slices.Equal(inv.devices, other.devices)
}

func (inv *inventory) names() []string {
	names := make([]string, len(inv.devices))
	for i, d := range inv.devices {
		names[i] = d.name
	}
	return names
}
