package redirect

import (
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

var (
	tunPod4, tunPod6   = netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd88::2")
	tunPeer4, tunPeer6 = netip.MustParseAddr("10.88.0.3"), netip.MustParseAddr("fd88::3")
	// Where an Ethernet frame has its type these have that of IPv4.
	likePod, likePeer = netip.MustParseAddr("8.0.88.2"), netip.MustParseAddr("8.0.88.3")
)

// tunnel joins two namespaces by a device without link layer header, as
// WireGuard and VPN clients have it.
func tunnel(t testing.TB, a *netns.NS, addrsA []netip.Addr, b *netns.NS, addrsB []netip.Addr) {
	t.Helper()
	open := func(ns *netns.NS, addrs []netip.Addr) *os.File {
		tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN,
			Flags: netlink.TUNTAP_NO_PI, Queues: 1, NonPersist: true}
		within(t, ns, func() error {
			if err := netlink.LinkAdd(tun); err != nil {
				return err
			}
			return up("tun0", addrs...)
		})
		// The file that LinkAdd opened is not known to the poller, so that
		// closing it would not end a read.
		f := tun.Fds[0]
		defer f.Close()
		var fd int
		if err := withFd(f, func(old int) (err error) {
			if fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0); err == nil {
				err = unix.SetNonblock(fd, true)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "tun0")
	}
	fa, fb := open(a, addrsA), open(b, addrsB)
	var wg sync.WaitGroup
	for _, way := range [][2]*os.File{{fa, fb}, {fb, fa}} {
		wg.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, err := way[0].Read(buf)
				if err != nil {
					return
				}
				_, _ = way[1].Write(buf[:n])
			}
		})
	}
	t.Cleanup(func() {
		fa.Close()
		fb.Close()
		wg.Wait()
	})
}

// TestDeviceWithoutLinkHeader: what a pod sends and gets over a tun device is
// captured as over its Ethernet, and what is older than capture goes on.
//
//ambit:feature redirect-devices
func TestDeviceWithoutLinkHeader(t *testing.T) {
	variants(t, func(t *testing.T, changes ...change) {
		c := prepareCaptured(t, append(changes, func(_ *Options, cfg *Config) {
			cfg.Addrs = append(cfg.Addrs, tunPod4, tunPod6, likePod)
		})...)
		tunnel(t, c.pod, []netip.Addr{tunPod4, tunPod6, likePod}, c.peer, []netip.Addr{tunPeer4, tunPeer6, likePeer})
		startApp(t, c.pod, "app", at(netip.IPv6Unspecified(), 8080))
		startApp(t, c.peer, "peer", at(netip.IPv6Unspecified(), 8080))
		families := []struct{ pod, peer netip.Addr }{{tunPod4, tunPeer4}, {tunPod6, tunPeer6}, {likePod, likePeer}}
		var old []*client
		for _, f := range families {
			in, out := dial(t, c.peer, at(f.pod, 8080)), dial(t, c.pod, at(f.peer, 8080))
			in.expect(t, "app", f.peer, at(f.pod, 8080))
			out.expect(t, "peer", f.pod, at(f.peer, 8080))
			old = append(old, in, out)
		}
		startProxy(t, c.pod, c.cfg.Listeners)
		c.set(t)
		for _, o := range old {
			o.ping(t, "older than capture")
		}
		for _, f := range families {
			out := dial(t, c.pod, at(f.peer, 8080))
			out.expect(t, "outbound", f.pod, at(f.peer, 8080))
			out.ping(t, "through the proxy")
			in := dial(t, c.peer, at(f.pod, 8080))
			in.expect(t, "inbound", f.peer, at(f.pod, 8080))
			in.expect(t, "app", f.peer, at(f.pod, 8080))
			in.ping(t, "to the application and back")
			dial(t, c.peer, at(f.pod, HBONEPort)).expect(t, "hbone", f.peer, at(f.pod, HBONEPort))
			m, err := dialFor(t, c.pod, netip.AddrPort{}, at(f.peer, 8080), netns.SocketOptions{Mark: netns.Mark}, patience)
			if err != nil {
				t.Fatal(err)
			}
			m.expect(t, "peer", f.pod, at(f.peer, 8080))
		}
	})
}
