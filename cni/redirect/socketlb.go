package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// TryService tells what becomes of a connection to a service's address that
// this process makes in a namespace other than the node's: "" when it goes
// there. CNI plugins that balance in sockets (Cilium without
// socketLB.hostNamespaceOnly, Calico with BPF) put an endpoint's address in its
// place, in a program of a cgroup above all pods. Capture, and so policy and
// telemetry, then never sees the service.
//
// That such a program is there says little: limited to the node's namespace it
// does no harm. So it is tried, in a namespace in which every address is lo's.
func TryService(ctx context.Context, service netip.AddrPort) (string, error) {
	service = netip.AddrPortFrom(service.Addr().Unmap(), service.Port())
	control := ProofAddr6
	if service.Addr().Is4() {
		control = ProofAddr4
	}
	ns, err := netns.New()
	if err != nil {
		return "", err
	}
	defer ns.Close()
	if err := ns.Do(func() error { return everythingLocal(service.Addr().Is6()) }); err != nil {
		return "", fmt.Errorf("try a service: %w", err)
	}
	any := netip.IPv6Unspecified()
	if service.Addr().Is4() {
		any = netip.IPv4Unspecified()
	}
	f, err := ns.ListenTCP(netip.AddrPortFrom(any, service.Port()), netns.SocketOptions{})
	if err != nil {
		return "", fmt.Errorf("try a service: %w", err)
	}
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return "", fmt.Errorf("try a service: %w", err)
	}
	defer ln.Close()
	// Without this one arriving, that the other does not would prove nothing.
	at, err := arrives(ctx, ns, ln, netip.AddrPortFrom(control, service.Port()))
	if err != nil || at.Addr() != control {
		return "", fmt.Errorf("try a service: a connection to %s, which is nobody's, arrives at %v: %w", control, at, err)
	}
	switch at, err = arrives(ctx, ns, ln, service); {
	case errors.Is(err, unix.EPERM):
		return "is refused by a program of a cgroup", nil
	case errors.Is(err, unix.ECONNREFUSED):
		return "is sent to another address, an endpoint's", nil
	case err != nil:
		return "", fmt.Errorf("try a service: %w", err)
	case at != service:
		return fmt.Sprintf("is sent to %s", at), nil
	}
	return "", nil
}

// everythingLocal runs inside the namespace.
func everythingLocal(v6 bool) error {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	r := captureRoute(family)
	r.Table = unix.RT_TABLE_LOCAL
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("local %s route: %w", familyName(family), err)
	}
	return nil
}

// arrives says under which address the listener gets a connection to to.
func arrives(ctx context.Context, ns *netns.NS, ln net.Listener, to netip.AddrPort) (netip.AddrPort, error) {
	c, err := ns.DialTCP(ctx, netip.AddrPort{}, to, netns.SocketOptions{})
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	got, err := ln.Accept()
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer got.Close()
	at := got.LocalAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

// ConnectPrograms names the programs that every connect() of the cgroup's
// processes runs through, its ancestors' included. Without a name they have
// their number.
func ConnectPrograms(cgroup *os.File) ([]string, error) {
	var names []string
	err := withFd(cgroup, func(fd int) error {
		for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: fd, Attach: at, QueryFlags: queryEffective})
			if err != nil {
				return fmt.Errorf("programs of cgroup %s: %w", cgroup.Name(), err)
			}
			for _, p := range found.Programs {
				names = append(names, programName(p.ID))
			}
		}
		return nil
	})
	return names, err
}

const queryEffective = 1 // BPF_F_QUERY_EFFECTIVE

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Sprint(id) // it has just gone
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil || info.Name == "" {
		return fmt.Sprint(id)
	}
	return strings.TrimSpace(info.Name)
}
