package handoff

import (
	"errors"
	"os"

	"github.com/ambitmesh/ambit/cni/netns"
)

// Pod is what changes hands: who the pod is, its network namespace and, in the
// slot dialect, the listening sockets inside it.
type Pod struct {
	UID            string
	Name           string
	Namespace      string
	ServiceAccount string
	// FromStart: it was captured before any process of it ran, and without a gap
	// since. What passes the proxy then passes on purpose, and is not older.
	FromStart bool

	NS *netns.NS
	// Listeners are the agent's; nil when the pod is for a ztunnel that makes its
	// own (the port dialect). A pod of one form is never sent to a ztunnel that
	// speaks the other dialect: the same ports would be bound twice.
	Listeners *Listeners
}

// dialect is the one in which the pod can be handed over.
func (p Pod) dialect() string {
	if p.Listeners == nil {
		return dialectPort
	}
	return dialectSlot
}

// String names the pod in errors and logs.
func (p Pod) String() string { return p.Namespace + "/" + p.Name + " (" + p.UID + ")" }

// Close closes the namespace handle and the listeners. Only their owner may
// call it.
func (p Pod) Close() error {
	var errs []error
	if p.NS != nil {
		errs = append(errs, p.NS.Close())
	}
	if p.Listeners != nil {
		errs = append(errs, p.Listeners.Close())
	}
	return errors.Join(errs...)
}

// Listeners are the sockets that accept for a captured pod.
type Listeners struct {
	Outbound *os.File   // what the pod's processes dial
	Inbound  *os.File   // plaintext that others dial to the pod
	HBONE    []*os.File // port 15008, one per address of the pod
	DNSTCP   *os.File   // nil when DNS is not captured
	DNSUDP   *os.File   // nil when DNS is not captured
}

// Close closes every listener.
func (l *Listeners) Close() error {
	var errs []error
	for _, s := range l.sockets() {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

// kind says what a passed socket is for. The numbers are on the wire.
type kind uint32

const (
	kindOutbound kind = 1
	kindInbound  kind = 2
	kindHBONE    kind = 3
	kindDNSTCP   kind = 4
	kindDNSUDP   kind = 5
)

type socket struct {
	kind kind
	file *os.File
}

// sockets lists what is there, in the order in which it is sent.
func (l *Listeners) sockets() []socket {
	var out []socket
	add := func(k kind, f *os.File) {
		if f != nil {
			out = append(out, socket{k, f})
		}
	}
	add(kindOutbound, l.Outbound)
	add(kindInbound, l.Inbound)
	for _, f := range l.HBONE {
		add(kindHBONE, f)
	}
	add(kindDNSTCP, l.DNSTCP)
	add(kindDNSUDP, l.DNSUDP)
	return out
}

// put places one received socket and reports whether there was a free place
// for a socket of that kind.
func (l *Listeners) put(k kind, f *os.File) bool {
	var place **os.File
	switch k {
	case kindOutbound:
		place = &l.Outbound
	case kindInbound:
		place = &l.Inbound
	case kindDNSTCP:
		place = &l.DNSTCP
	case kindDNSUDP:
		place = &l.DNSUDP
	case kindHBONE:
		l.HBONE = append(l.HBONE, f)
		return true
	default:
		return false
	}
	if *place != nil {
		return false
	}
	*place = f
	return true
}
