package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// UnreachableError says that all that could be tried of a pod's capture has been
// proven, and that the node had no way to the pod to try the rest. Where a pod's
// device has no end on the node, as with macvlan, that is how the network is;
// elsewhere it is a fault.
type UnreachableError struct {
	Addrs []netip.Addr
	Err   error // of the last of them
}

func (e *UnreachableError) Error() string {
	var list []string
	for _, a := range e.Addrs {
		list = append(list, a.String())
	}
	return fmt.Sprintf("the node cannot reach the pod at %s: %v", strings.Join(list, ", "), e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// noWay reports whether a dial found no way there, in contrast to somebody who
// answered, be it with a refusal.
func noWay(err error) bool {
	var timeout net.Error
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL) ||
		errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &timeout) && timeout.Timeout()
}
