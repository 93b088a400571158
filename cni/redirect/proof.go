package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// ProofPort is the destination port of connections that only prove capture. The
// proxy closes them without a word.
const ProofPort = 15009

// ProofAddr4 and ProofAddr6 belong to nobody: TEST-NET-1 (RFC 5737) and the
// discard prefix (RFC 6666).
var (
	ProofAddr4 = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	ProofAddr6 = netip.AddrFrom16([16]byte{0: 0x01, 15: 1})
)

// Prove opens a connection out of the pod to an address nobody has, and one from
// the host to each of the pod's addresses. Both must end in a socket inside the
// pod's own namespace that belongs to the proxy. The kernel completes the
// handshake, so no proxy needs to be accepting yet. An error means that traffic
// of the pod is not known to be captured; an *UnreachableError, that what could be
// tried is proven. host is nil where it is known to have no way to the pod.
func Prove(ctx context.Context, host, pod *netns.NS, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return errors.New("prove capture: pod has no address")
	}
	errs := proveOutbound(ctx, pod, addrs)
	// Side by side: where there is no way, each takes all the time there is.
	inbound := make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		if host == nil {
			inbound[i] = unix.EHOSTUNREACH
			continue
		}
		wg.Go(func() { inbound[i] = proveOne(ctx, host, pod, netip.AddrPortFrom(a.Unmap(), ProofPort)) })
	}
	wg.Wait()
	var away UnreachableError
	for i, err := range inbound {
		switch {
		case noWay(err):
			away.Addrs, away.Err = append(away.Addrs, addrs[i]), err
		case err != nil:
			errs = append(errs, fmt.Errorf("inbound to %s: %w", addrs[i], err))
		}
	}
	if away.Err != nil {
		errs = append(errs, &away)
	}
	switch {
	case len(errs) == 0:
		return nil
	case len(errs) == 1:
		return fmt.Errorf("prove capture: %w", errs[0])
	}
	// What has failed is the news, not what could not be tried.
	return fmt.Errorf("prove capture: %w", failures(errs))
}

// ProveOutbound is Prove for a pod of which only what it dials is captured.
func ProveOutbound(ctx context.Context, pod *netns.NS, addrs []netip.Addr) error {
	if err := errors.Join(proveOutbound(ctx, pod, addrs)...); err != nil {
		return fmt.Errorf("prove capture: %w", err)
	}
	return nil
}

func proveOutbound(ctx context.Context, pod *netns.NS, addrs []netip.Addr) (errs []error) {
	done := map[bool]bool{} // by family: is IPv4
	for _, a := range addrs {
		a = a.Unmap()
		if done[a.Is4()] {
			continue
		}
		done[a.Is4()] = true
		to := ProofAddr6
		if a.Is4() {
			to = ProofAddr4
		}
		err := proveOne(ctx, pod, pod, netip.AddrPortFrom(to, ProofPort))
		// Without a route nothing leaves for such an address; that the
		// same programs work the other way still has to be shown.
		if err != nil && !errors.Is(err, unix.ENETUNREACH) {
			errs = append(errs, fmt.Errorf("outbound from %s: %w", a, err))
		}
	}
	return errs
}

// failures is several errors of which none is an *UnreachableError to errors.As.
type failures []error

func (f failures) Error() string { return errors.Join(f...).Error() }

func proveOne(ctx context.Context, from, pod *netns.NS, to netip.AddrPort) error {
	c, err := from.DialTCP(ctx, netip.AddrPort{}, to, netns.SocketOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetLinger(0); err != nil { // leave no TIME_WAIT behind
		return err
	}
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	end, err := pod.Connection(to, local)
	// Our last ACK may still be on its way through another processor.
	for try := 0; errors.Is(err, unix.ENOENT) && try < 10 && ctx.Err() == nil; try++ {
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		end, err = pod.Connection(to, local)
	}
	if err != nil {
		return fmt.Errorf("connection to %s was accepted, but not inside %s: %w", to, pod, err)
	}
	if !end.IsProxy() {
		return fmt.Errorf("connection to %s was accepted inside %s by a socket that is not the proxy's (mark %#x)", to, pod, end.Mark)
	}
	return nil
}
