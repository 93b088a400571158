package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
	"golang.org/x/sys/unix"
)

// HBONEPort is where peers expect a pod's HBONE listener.
const HBONEPort = uint16(bpf.CapturePortPORT_HBONE)

// The ports of a pod's listeners, if the application has not taken them. They
// are those that Istio's documentation asks applications to leave alone. Any
// other choice could be in an application's way: what the kernel chooses by
// itself lies in ip_local_port_range, where 50051 is too.
const (
	outboundPort = 15001
	inboundPort  = 15006
	dnsPort      = 15053
)

// Listeners are a pod's listening sockets. Connections reach them by socket,
// never by port, so all but HBONE may be bound to whatever port is free.
type Listeners struct {
	Outbound, Inbound *os.File
	// HBONE has one socket per address of the pod. The first of each family
	// is also in a slot, and takes that port for every other address.
	HBONE          []*os.File
	DNSTCP, DNSUDP *os.File // both or none
}

// Listen makes a pod's listeners. They are the agent's: a proxy that dies leaves
// them alive and connections queue until its successor accepts.
func Listen(ns *netns.NS, addrs []netip.Addr) (*Listeners, error) {
	return makeListeners(ns, addrs, false)
}

// ListenBeside is Listen while another ztunnel still has the ports, HBONE's
// included: new connections reach ours by their slots.
func ListenBeside(ns *netns.NS, addrs []netip.Addr) (*Listeners, error) {
	return makeListeners(ns, addrs, true)
}

func makeListeners(ns *netns.NS, addrs []netip.Addr, beside bool) (*Listeners, error) {
	l := &Listeners{}
	o := netns.SocketOptions{Mark: netns.Mark, Transparent: true}
	var errs []error
	prefer := func(port uint16, listen func(netip.AddrPort, netns.SocketOptions) (*os.File, error)) *os.File {
		f, err := listen(netip.AddrPortFrom(netip.IPv6Unspecified(), port), o)
		if errors.Is(err, unix.EADDRINUSE) {
			f, err = listen(netip.AddrPortFrom(netip.IPv6Unspecified(), 0), o)
		}
		errs = append(errs, err)
		return f
	}
	l.Outbound, l.Inbound = prefer(outboundPort, ns.ListenTCP), prefer(inboundPort, ns.ListenTCP)
	l.DNSTCP, l.DNSUDP = prefer(dnsPort, ns.ListenTCP), prefer(dnsPort, ns.ListenUDP)
	for _, a := range addrs {
		f, err := ns.ListenTCP(netip.AddrPortFrom(a.Unmap(), HBONEPort), o)
		if beside && errors.Is(err, unix.EADDRINUSE) {
			f, err = ns.ListenTCP(netip.AddrPortFrom(a.Unmap(), 0), o)
		}
		errs = append(errs, err)
		l.HBONE = append(l.HBONE, f)
	}
	if len(addrs) == 0 {
		errs = append(errs, errors.New("pod has no address"))
	}
	if err := errors.Join(errs...); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("pod listeners: %w", err)
	}
	return l, nil
}

// Files are all sockets there are, in slot order.
func (l *Listeners) Files() []*os.File {
	var all []*os.File
	for _, f := range append(append([]*os.File{l.Outbound, l.Inbound}, l.HBONE...), l.DNSTCP, l.DNSUDP) {
		if f != nil {
			all = append(all, f)
		}
	}
	return all
}

// Close closes this process's descriptors. A socket ends with its last one.
func (l *Listeners) Close() error {
	var errs []error
	for _, f := range l.Files() {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
