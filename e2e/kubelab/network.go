package kubelab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// in opens a netlink handle inside the network namespace of a process.
func in(pid int) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// bridge makes the switch the nodes hang on. It is in the control plane's
// namespace, which therefore reaches pods (webhooks, the service proxy).
func (c *Cluster) bridge() error {
	h, err := in(c.cp.PID())
	if err != nil {
		return err
	}
	defer h.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("add br0: %w", err)
	}
	if err := addAddresses(h, br, c.opt.nodeAddresses(0)); err != nil {
		return err
	}
	if err := h.LinkSetUp(br); err != nil {
		return fmt.Errorf("br0 up: %w", err)
	}
	return addRoutes(h, c.opt.podPaths(0))
}

func addAddresses(h *netlink.Handle, l netlink.Link, addrs []netip.Prefix) error {
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			// Nobody else can have it, and until duplicate address detection
			// has ended a server cannot bind to it.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("address %s of %s: %w", a, l.Attrs().Name, err)
		}
	}
	return nil
}

func addRoutes(h *netlink.Handle, paths []path) error {
	for _, p := range paths {
		r := &netlink.Route{Gw: p.via.AsSlice()}
		if p.to.IsValid() {
			r.Dst = ipNet(p.to)
		}
		if err := h.RouteAdd(r); err != nil {
			return fmt.Errorf("route to %s via %s: %w", p.to, p.via, err)
		}
	}
	return nil
}

func (n *Node) port() string { return fmt.Sprintf("v%d", n.index) }

// plug makes the node's link. It is made in the control plane's namespace with
// its other end in the node's, so it never shows in the host's.
func (n *Node) plug() error {
	c := n.cluster
	cp, err := in(c.cp.PID())
	if err != nil {
		return err
	}
	defer cp.Close()
	br, err := cp.LinkByName("br0")
	if err != nil {
		return err
	}
	// After a reboot: the old link ends with the old namespace, but the kernel
	// takes namespaces apart in its own time.
	if old, err := cp.LinkByName(n.port()); err == nil {
		if err := cp.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove the old link: %w", err)
		}
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: n.port(), MasterIndex: br.Attrs().Index},
		PeerName:  "eth0", PeerNamespace: netlink.NsPid(n.PID()),
		// The same after a reboot, so that the others' neighbour entries hold.
		PeerHardwareAddr: net.HardwareAddr{0x02, 'k', 'l', 0, 0, byte(n.index)},
	}
	if err := cp.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link: %w", err)
	}
	if err := cp.LinkSetUp(veth); err != nil {
		return fmt.Errorf("link up: %w", err)
	}
	h, err := in(n.PID())
	if err != nil {
		return err
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := addAddresses(h, eth0, c.opt.nodeAddresses(n.index)); err != nil {
		return err
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("eth0 up: %w", err)
	}
	if err := addRoutes(h, append(c.opt.defaultPaths(), c.opt.podPaths(n.index)...)); err != nil {
		return err
	}
	if c.opt.shape(n.index) == ShapeMacvlan {
		return shim(h, eth0, c.opt.podNetwork(n.index))
	}
	return nil
}

// Cut takes the node off the network, as if its cable were pulled. Heal is the
// repair.
func (n *Node) Cut() error  { return n.carrier((*netlink.Handle).LinkSetDown) }
func (n *Node) Heal() error { return n.carrier((*netlink.Handle).LinkSetUp) }

func (n *Node) carrier(set func(*netlink.Handle, netlink.Link) error) error {
	if n.index == 0 {
		return errors.New("the control plane has no link of its own")
	}
	h, err := in(n.cluster.cp.PID())
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(n.port())
	if err != nil {
		return fmt.Errorf("link of %s: %w", n.Name, err)
	}
	return set(h, l)
}

// DialIn opens a connection from inside the network namespace at path. The
// address must be literal. A socket stays in the namespace where it was made, so
// the connection needs no care afterwards.
func DialIn(ctx context.Context, path, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from %s: %w", path, err)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	out := make(chan result, 1)
	go func() {
		var r result
		defer func() { out <- r }()
		// Never unlocked: the runtime ends the thread, nothing else may run there.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(path)
		if err != nil {
			r.err = err
			return
		}
		defer ns.Close()
		if r.err = unix.Setns(int(ns), unix.CLONE_NEWNET); r.err != nil {
			return
		}
		// For a literal address the socket is made on this goroutine.
		r.conn, r.err = new(net.Dialer).DialContext(ctx, network, address)
	}()
	r := <-out
	if r.err != nil {
		return nil, fmt.Errorf("dial from %s: %w", path, r.err)
	}
	return r.conn, nil
}

// forwarder passes connections from the host's loopback into a namespace.
type forwarder struct {
	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]struct{} // guarded by mu; nil when closed
}

func startForwarder(ns, address string) (*forwarder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &forwarder{listener: l, open: map[net.Conn]struct{}{}}
	f.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			f.wg.Go(func() { f.pass(conn, ns, address) })
		}
	})
	return f, nil
}

func (f *forwarder) Addr() string { return f.listener.Addr().String() }

func (f *forwarder) keep(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		return false
	}
	f.open[c] = struct{}{}
	return true
}

func (f *forwarder) drop(c net.Conn) {
	c.Close()
	f.mu.Lock()
	delete(f.open, c)
	f.mu.Unlock()
}

func (f *forwarder) pass(from net.Conn, ns, address string) {
	defer f.drop(from)
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	to, err := DialIn(ctx, ns, "tcp", address)
	cancel()
	if err != nil {
		return
	}
	defer f.drop(to)
	if !f.keep(from) || !f.keep(to) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { _, _ = to.(*net.TCPConn).ReadFrom(from); _ = to.(*net.TCPConn).CloseWrite() })
	both.Go(func() { _, _ = from.(*net.TCPConn).ReadFrom(to); _ = from.(*net.TCPConn).CloseWrite() })
	both.Wait()
}

// Close ends the listener and every connection, and waits for them.
func (f *forwarder) Close() {
	f.listener.Close()
	f.mu.Lock()
	for c := range f.open {
		c.Close()
	}
	f.open = nil
	f.mu.Unlock()
	f.wg.Wait()
}
