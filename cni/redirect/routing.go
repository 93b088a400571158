package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// The functions of this file run inside the pod's namespace.

const (
	ifindexLo    = 1
	table        = 100
	rulePriority = 32764
)

// acceptLocal lets IPv4 packets with a source of our own in through lo; without
// it they are martians. IPv6 has no such check.
const acceptLocal = "/proc/sys/net/ipv4/conf/lo/accept_local"

// families that can be routed here: IPv6 may be missing from the kernel or be
// switched off on lo, where packets for it are then dropped.
func families() []int {
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	if err != nil || strings.TrimSpace(string(off)) != "0" {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}

func familyName(family int) string {
	if family == unix.AF_INET {
		return "IPv4"
	}
	return "IPv6"
}

// captureRule sends what egress turned around to the table below.
func captureRule(family int) *netlink.Rule {
	mask := uint32(netns.MarkMask)
	rule := netlink.NewRule()
	rule.Family = family
	rule.Priority = rulePriority
	rule.Mark = netns.CaptureMark
	rule.Mask = &mask
	rule.Table = table
	return rule
}

// captureRoute makes every address local.
func captureRoute(family int) *netlink.Route {
	dst := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	scope := netlink.SCOPE_HOST
	if family == unix.AF_INET6 {
		dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		scope = netlink.SCOPE_UNIVERSE
	}
	return &netlink.Route{LinkIndex: ifindexLo, Table: table, Dst: dst, Type: unix.RTN_LOCAL, Scope: scope}
}

// whole repeats a listing while something changed under it: the kernel says so
// (NLM_F_DUMP_INTR), and what it gave may lack something that was there.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 20 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func hasRule(family int) (bool, error) {
	rules, err := whole(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if err != nil {
		return false, fmt.Errorf("list %s rules: %w", familyName(family), err)
	}
	want := captureRule(family)
	for _, r := range rules {
		if r.Priority == want.Priority && r.Table == want.Table && r.Mark == want.Mark && r.Mask != nil && *r.Mask == *want.Mask && !r.Invert {
			return true, nil
		}
	}
	return false, nil
}

func hasRoute(family int) (bool, error) {
	want := captureRoute(family)
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: table, Type: unix.RTN_LOCAL, LinkIndex: ifindexLo},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return false, fmt.Errorf("list %s routes of table %d: %w", familyName(family), table, err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.String() == want.Dst.String() {
			return true, nil
		}
	}
	return false, nil
}

func acceptsLocal() (bool, error) {
	v, err := os.ReadFile(acceptLocal)
	if err != nil {
		return false, fmt.Errorf("sysctl accept_local of lo: %w", err)
	}
	return strings.TrimSpace(string(v)) == "1", nil
}

func ensureRouting() error {
	on, err := acceptsLocal()
	if err != nil {
		return err
	}
	if !on {
		if err := os.WriteFile(acceptLocal, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("sysctl accept_local of lo: %w", err)
		}
	}
	for _, family := range families() {
		have, err := hasRoute(family)
		if err != nil {
			return err
		}
		if !have {
			if err := netlink.RouteReplace(captureRoute(family)); err != nil {
				return fmt.Errorf("add %s local route to table %d: %w", familyName(family), table, err)
			}
		}
		have, err = hasRule(family)
		if err != nil {
			return err
		}
		if !have {
			if err := netlink.RuleAdd(captureRule(family)); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add %s rule for mark %#x: %w", familyName(family), netns.CaptureMark, err)
			}
		}
	}
	return nil
}

// removeRouting leaves accept_local: what it was before is not known.
func removeRouting() error {
	var errs []error
	for _, family := range families() {
		for {
			have, err := hasRule(family)
			if err != nil || !have {
				errs = append(errs, err)
				break
			}
			if err := netlink.RuleDel(captureRule(family)); err != nil {
				errs = append(errs, fmt.Errorf("remove %s rule: %w", familyName(family), err))
				break
			}
		}
		have, err := hasRoute(family)
		if err == nil && have {
			err = netlink.RouteDel(captureRoute(family))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s route: %w", familyName(family), err))
		}
	}
	return errors.Join(errs...)
}

// device is one that traffic of the pod can use.
type device struct {
	index int
	name  string
}

// inventory is what the namespace has now.
type inventory struct {
	addrs   []netip.Addr // of all devices, lo included
	devices []device     // all but lo
}

func takeInventory() (*inventory, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	inv := &inventory{}
	for _, l := range links {
		if a := l.Attrs(); a.Index != ifindexLo {
			inv.devices = append(inv.devices, device{index: a.Index, name: a.Name})
		}
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			inv.addrs = append(inv.addrs, ip.Unmap())
		}
	}
	return inv, nil
}
