package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"golang.org/x/sys/unix"
)

// patience is how long anything may take that is not being measured.
const patience = 2 * time.Minute

// Namespace is where all pods live.
const Namespace = "demo"

// Lab is two nodes with agents and ztunnels, and a control plane. Its methods
// are for one goroutine; Enrol and Dial may be called by many.
type Lab struct {
	Control *Control
	A, B    *Node

	dir     string
	ztunnel string // the program
	env     []string
	pods    int
	undo    []func() error
	spaces  []*netns.NS // closed after undo: captures are taken out of them

	mu        sync.Mutex
	processes []*Process // guarded by mu
}

// Node is a router with an agent and a ztunnel.
type Node struct {
	Name    string
	NS      *netns.NS
	Ztunnel *Process

	lab    *Lab
	number int
	agent  *agent
	xds    string
}

// New builds everything; ztunnel is the program to measure, env what its
// environment has beside what it needs.
func New(ctx context.Context, ztunnel string, env ...string) (*Lab, error) {
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: dir, ztunnel: ztunnel, env: env}
	l.later(func() error { return os.RemoveAll(dir) })
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) error {
	pins := filepath.Join(l.dir, "bpf")
	if err := os.Mkdir(pins, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", pins, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount a bpffs on %s: %w", pins, err)
	}
	l.later(func() error { return unix.Unmount(pins, 0) })
	ctrl, err := l.space()
	if err != nil {
		return err
	}
	for i, n := range []**Node{&l.A, &l.B} {
		ns, err := l.space()
		if err != nil {
			return err
		}
		if err := sysctl(ns, "net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
		*n = &Node{Name: "node-" + string(rune('a'+i)), NS: ns, lab: l, number: i + 1}
	}
	if err := connect(l.A.NS, "wire0", l.B.NS, "wire0"); err != nil {
		return err
	}
	for _, n := range []*Node{l.A, l.B} {
		other := 3 - n.number
		if err := up(n.NS, "wire0", fmt.Sprintf("192.168.77.%d/24", n.number),
			route{fmt.Sprintf("10.%d.0.0/16", 76+other), fmt.Sprintf("192.168.77.%d", other)}); err != nil {
			return err
		}
		if err := connect(ctrl, n.Name, n.NS, "ctrl0"); err != nil {
			return err
		}
		if err := up(ctrl, n.Name, fmt.Sprintf("10.99.%d.1/24", n.number)); err != nil {
			return err
		}
		if err := up(n.NS, "ctrl0", fmt.Sprintf("10.99.%d.2/24", n.number)); err != nil {
			return err
		}
		n.xds = fmt.Sprintf("https://10.99.%d.1:15012", n.number)
	}
	if l.Control, err = newControl(ctrl, filepath.Join(l.dir, "root-cert.pem")); err != nil {
		return err
	}
	l.later(func() error { l.Control.stop(); return nil })
	for _, n := range []*Node{l.A, l.B} {
		if n.agent, err = newAgent(n, filepath.Join(pins, n.Name)); err != nil {
			return err
		}
		l.later(n.agent.stop)
		if err := n.Start(); err != nil {
			return err
		}
	}
	for _, n := range []*Node{l.A, l.B} {
		if err := n.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) later(fn func() error) { l.undo = append(l.undo, fn) }

// Close ends every process and undoes everything, the last thing first.
func (l *Lab) Close() error {
	for _, p := range l.Processes() {
		p.Kill()
	}
	var errs []error
	for _, fn := range slices.Backward(l.undo) {
		errs = append(errs, fn())
	}
	for _, ns := range l.spaces {
		errs = append(errs, ns.Close())
	}
	l.undo, l.spaces = nil, nil
	return errors.Join(errs...)
}

func (l *Lab) space() (*netns.NS, error) {
	ns, err := netns.New()
	if err == nil {
		l.spaces = append(l.spaces, ns)
	}
	return ns, err
}

// Processes are those that run.
func (l *Lab) Processes() []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.processes)
}

// Start runs the node's ztunnel.
func (n *Node) Start() error {
	l := n.lab
	p, err := l.Run(n.NS, Command{Name: "ztunnel-" + n.Name, Path: l.ztunnel, Log: filepath.Join(l.dir, n.Name+".log"), Env: append([]string{
		"NODE_NAME=" + n.Name, "CLUSTER_ID=bench", "POD_NAME=ztunnel-" + n.Name, "POD_NAMESPACE=ambit-system",
		"SERVICE_ACCOUNT=ztunnel", "XDS_ADDRESS=" + n.xds, "XDS_ROOT_CA=" + l.Control.root,
		"ALT_XDS_HOSTNAME=" + controllerName, "ALT_CA_HOSTNAME=" + controllerName, "AUTH_TOKEN=" + n.Name,
		"INPOD_UDS=" + n.socket(), "RUST_LOG=info",
	}, l.env...)})
	n.Ztunnel = p
	return err
}

// Restart replaces the node's ztunnel by a fresh one.
func (n *Node) Restart(ctx context.Context) error {
	n.Ztunnel.Kill()
	if err := n.Start(); err != nil {
		return err
	}
	return n.WaitReady(ctx)
}

// WaitReady waits until ztunnel says it serves.
func (n *Node) WaitReady(ctx context.Context) error {
	err := Eventually(ctx, func() error {
		_, err := n.Get(ctx, "http://127.0.0.1:15021/healthz/ready")
		return err
	})
	if err != nil {
		return fmt.Errorf("ztunnel of %s is not ready: %w", n.Name, err)
	}
	return nil
}

// Get asks one of ztunnel's own HTTP interfaces, from the node itself, on a
// connection that ends with the answer.
func (n *Node) Get(ctx context.Context, url string) ([]byte, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, a string) (net.Conn, error) {
		return n.NS.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(a), netns.SocketOptions{})
	}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, answer.Status)
	}
	return io.ReadAll(answer.Body)
}

// Pins counts what the node's agent has in its bpffs.
func (n *Node) Pins() (int, error) { return n.agent.pins() }

func (n *Node) socket() string { return filepath.Join(n.lab.dir, n.Name+".sock") }

// Pod is a network namespace with one address.
type Pod struct {
	Name string
	NS   *netns.NS
	Addr netip.Addr
	Node *Node
	uid  string
	host string // the node's end of its device
}

// Pod makes a pod that the mesh knows but does not capture.
func (l *Lab) Pod(n *Node, name string) (*Pod, error) {
	ns, err := l.space()
	if err != nil {
		return nil, err
	}
	l.pods++
	host := fmt.Sprintf("veth%d", l.pods)
	p := &Pod{Name: name, NS: ns, Node: n, host: host, uid: fmt.Sprintf("00000000-0000-0000-0000-%012d", l.pods),
		Addr: netip.AddrFrom4([4]byte{10, byte(76 + n.number), byte(l.pods / 200 % 250), byte(10 + l.pods%200)})}
	gw := fmt.Sprintf("10.%d.255.1", 76+n.number)
	if err := connect(n.NS, host, ns, "eth0"); err != nil {
		return nil, err
	}
	if err := up(n.NS, host, gw+"/32", route{p.Addr.String() + "/32", ""}); err != nil {
		return nil, err
	}
	if err := up(ns, "eth0", p.Addr.String()+"/32", route{gw + "/32", ""}, route{"0.0.0.0/0", gw}); err != nil {
		return nil, err
	}
	// Short connections by the thousand must not run out of ports.
	if err := sysctl(ns, "net/ipv4/ip_local_port_range", "20000 65000"); err != nil {
		return nil, err
	}
	l.Control.Apply(mesh.Delta{Workloads: []*mesh.Workload{p.record(false)}})
	return p, nil
}

// At is a port of the pod.
func (p *Pod) At(port uint16) string { return netip.AddrPortFrom(p.Addr, port).String() }

// Dial connects from the pod as an application does.
func (p *Pod) Dial(ctx context.Context, to string) (*net.TCPConn, error) {
	return p.NS.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(to), netns.SocketOptions{})
}

// Listen is an application of the pod in this process.
func (p *Pod) Listen(port uint16) (net.Listener, error) {
	f, err := p.NS.ListenTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), port), netns.SocketOptions{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

func (p *Pod) record(meshed bool) *mesh.Workload {
	w := &mesh.Workload{
		UID: "bench//Pod/" + Namespace + "/" + p.Name, Name: p.Name, Namespace: Namespace, Addresses: []netip.Addr{p.Addr},
		ServiceAccount: p.Name, Node: p.Node.Name, WorkloadName: p.Name, CanonicalName: p.Name, CanonicalRevision: "v1",
		ClusterID: "bench", Type: mesh.TypePod,
	}
	if meshed {
		w.Protocol = mesh.ProtocolHBONE
	}
	return w
}

// Announce tells the mesh that pods speak HBONE and waits until all know.
func (l *Lab) Announce(ctx context.Context, pods ...*Pod) error {
	var d mesh.Delta
	for _, p := range pods {
		d.Workloads = append(d.Workloads, p.record(true))
	}
	l.Control.Apply(d)
	return l.Control.Settled(ctx)
}

// Retract tells the mesh that pods do not speak HBONE any more and waits until
// all know.
func (l *Lab) Retract(ctx context.Context, pods ...*Pod) error {
	var d mesh.Delta
	for _, p := range pods {
		d.Workloads = append(d.Workloads, p.record(false))
	}
	l.Control.Apply(d)
	return l.Control.Settled(ctx)
}

// Release is the end of Enrol.
func (p *Pod) Release(ctx context.Context) error {
	if err := p.Node.agent.release(ctx, p); err != nil {
		return fmt.Errorf("release %s: %w", p.Name, err)
	}
	return nil
}

// Remove takes a released pod out of the mesh and off its node.
func (l *Lab) Remove(p *Pod) error {
	l.Control.Apply(mesh.Delta{RemovedWorkloads: []string{p.record(false).UID}})
	l.spaces = slices.DeleteFunc(l.spaces, func(ns *netns.NS) bool { return ns == p.NS })
	return errors.Join(cut(p.Node.NS, p.host), p.NS.Close())
}

// Enrol captures the pod, hands it to ztunnel and proves the capture, as the
// agent does once it knows the pod.
func (p *Pod) Enrol(ctx context.Context) error {
	if err := p.Node.agent.enrol(ctx, p); err != nil {
		return fmt.Errorf("enrol %s: %w", p.Name, err)
	}
	return nil
}

// Eventually asks until cond has no error.
func Eventually(ctx context.Context, cond func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}
