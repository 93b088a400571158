package redirect

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

//	pod (10.77.0.2, fd77::2) --veth-- wire: bridge 10.77.0.1, fd77::1 --veth-- peer (10.77.0.3, fd77::3)
//
// The wire is the node: a bridge and the default gateway of both.
type topology struct {
	pod, peer, wire *netns.NS
}

var (
	podAddr4, podAddr6   = netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")
	peerAddr4, peerAddr6 = netip.MustParseAddr("10.77.0.3"), netip.MustParseAddr("fd77::3")
	wireAddr4, wireAddr6 = netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and loads eBPF programs: needs root")
	}
}

func newTopology(t testing.TB) *topology {
	t.Helper()
	needRoot(t)
	return newTopologyOf(t, newNS(t))
}

// newTopologyOf has the pod in a given namespace.
func newTopologyOf(t testing.TB, pod *netns.NS) *topology {
	t.Helper()
	n := &topology{pod: pod, peer: newNS(t), wire: newNS(t)}
	within(t, n.wire, func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		return up("br0", wireAddr4, wireAddr6)
	})
	n.join(t, n.pod, "vpod", podAddr4, podAddr6)
	n.join(t, n.peer, "vpeer", peerAddr4, peerAddr6)
	return n
}

func newNS(t testing.TB) *netns.NS {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func within(t testing.TB, ns *netns.NS, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// join gives ns an eth0 on the bridge.
func (n *topology) join(t testing.TB, ns *netns.NS, name string, addrs ...netip.Addr) {
	t.Helper()
	within(t, n.wire, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-pod"}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, bridge); err != nil {
			return err
		}
		end, err := netlink.LinkByName(name + "-pod")
		if err != nil {
			return err
		}
		if err := withFd(ns.File(), func(fd int) error { return netlink.LinkSetNsFd(end, fd) }); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	within(t, ns, func() error {
		end, err := netlink.LinkByName(name + "-pod")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetName(end, "eth0"); err != nil {
			return err
		}
		if err := up("eth0", addrs...); err != nil {
			return err
		}
		for _, gw := range []netip.Addr{wireAddr4, wireAddr6} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: end.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("route via %s: %w", gw, err)
			}
		}
		return nil
	})
}

func up(name string, addrs ...netip.Addr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	// No link-local address: duplicate address detection would only slow tests.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0o644)
	for _, a := range addrs {
		if err := addAddr(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

func addAddr(l netlink.Link, a netip.Addr) error {
	bits := 24
	flags := 0
	if a.Is6() {
		bits, flags = 64, unix.IFA_F_NODAD
	}
	err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: flags})
	if err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	return nil
}

func sysctl(t testing.TB, ns *netns.NS, key, value string) {
	t.Helper()
	within(t, ns, func() error {
		return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644)
	})
}

// pinRoot is a bpffs of the test's own.
func pinRoot(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Skipf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return filepath.Join(dir, "ambit")
}

func TestMain(m *testing.M) {
	if os.Getenv(dialVariable) != "" {
		os.Exit(dialAsAsked())
	}
	before := openFiles()
	code := m.Run()
	runtime.GC()
	if code == 0 {
		if after := openFiles(); after > before {
			fmt.Fprintf(os.Stderr, "descriptors leaked: %d before, %d after\n%s\n", before, after, strings.Join(listFiles(), "\n"))
			code = 1
		}
	}
	os.Exit(code)
}

func openFiles() int { return len(listFiles()) }

func listFiles() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		// Pipes are the runtime's own, kept for splice.
		if err == nil && (strings.Contains(to, "socket:") || strings.Contains(to, "net:") || strings.Contains(to, "bpf")) {
			names = append(names, e.Name()+" "+to)
		}
	}
	return names
}
