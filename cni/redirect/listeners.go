package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// HBONEPort is where peers expect a pod's HBONE listener.
const HBONEPort = uint16(bpf.CapturePortPORT_HBONE)

// Listeners are a pod's listening sockets. Connections reach them by socket,
// never by port, so all but HBONE are bound to whatever port was free.
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
	l := &Listeners{}
	o := netns.SocketOptions{Mark: netns.Mark, Transparent: true}
	anywhere := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	var errs []error
	tcp := func(at netip.AddrPort) *os.File {
		f, err := ns.ListenTCP(at, o)
		errs = append(errs, err)
		return f
	}
	l.Outbound, l.Inbound, l.DNSTCP = tcp(anywhere), tcp(anywhere), tcp(anywhere)
	var err error
	l.DNSUDP, err = ns.ListenUDP(anywhere, o)
	errs = append(errs, err)
	for _, a := range addrs {
		l.HBONE = append(l.HBONE, tcp(netip.AddrPortFrom(a.Unmap(), HBONEPort)))
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
