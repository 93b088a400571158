// Package kubelab owns a real Kubernetes cluster inside one Linux machine: a
// control plane and nodes that are process trees in namespaces of their own,
// with real containerd, kubelet and kube-proxy, no Docker, no registry and no
// interface, route or mount added to the host's own namespaces.
//
//	host namespaces: untouched
//
//	[cp]    br0 172.30.0.10/24      etcd, apiserver, controller-manager, scheduler
//	    ├─ v1 ══ eth0 172.30.0.11 [node1]  containerd, kubelet, kube-proxy, pods
//	    └─ v2 ══ eth0 172.30.0.12 [node2]  containerd, kubelet, kube-proxy, pods
//
// Killing PID 1 of a node ends everything in it, because the namespaces and
// their mounts, links and pinned objects die with their last process.
//
// A program that uses Start must call Init as the first thing in its main (or
// TestMain): nodes are started by executing the same program again.
package kubelab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Cluster is one running cluster. It is safe for concurrent use.
type Cluster struct {
	// Immutable after Start.
	opt        Options
	dir        string
	pki        *pki
	owner      *owner // the thread that is parent of every PID 1
	cp         *Node
	nodes      []*Node
	forward    *forwarder
	api        *apiClient
	log        *slog.Logger
	began      time.Time
	kubeconfig string

	stop     sync.Once
	stopErr  error
	stateMu  sync.Mutex
	state    State // guarded by stateMu
	rebootMu sync.Mutex
}

// Start makes a cluster and returns when every node is Ready, or, with
// APIOnly, when the API server is. When it fails nothing is left behind.
func Start(ctx context.Context, opt Options) (*Cluster, error) {
	opt = opt.withDefaults()
	if err := opt.validate(); err != nil {
		return nil, err
	}
	if err := Check(opt.Cache, opt.APIOnly); err != nil {
		return nil, err
	}
	c := &Cluster{opt: opt, dir: opt.State, log: opt.Logger, began: time.Now()}
	if err := c.claim(); err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		err = c.explain(err)
		if stop := c.Stop(); stop != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", stop))
		}
		return nil, err
	}
	return c, nil
}

// claim takes the state folder; a folder left by a crashed cluster must be
// cleaned by Clean first, because its cgroups and sysctls are recorded there.
func (c *Cluster) claim() error {
	if err := os.MkdirAll(filepath.Dir(c.dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("cluster %q: %s exists already: it runs, or crashed; `kubelab down --name %s` clears it", c.opt.Name, c.dir, c.opt.Name)
		}
		return err
	}
	self, err := processOf(os.Getpid())
	if err != nil {
		return err
	}
	c.state = State{Name: c.opt.Name, Supervisor: self}
	return c.state.write(c.dir)
}

func (c *Cluster) start(ctx context.Context) error {
	if err := acquireSysctls(c.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.dir, "log"), 0o755); err != nil {
		return err
	}
	var err error
	if c.pki, err = newPKI(c.dir, c.opt.Nodes); err != nil {
		return err
	}
	self := filepath.Join(c.dir, "init")
	if err := copyFile("/proc/self/exe", self, 0o755); err != nil {
		return err
	}
	c.owner = startOwner()
	c.cp = &Node{cluster: c, Name: "cp", IP: controlPlaneIP}
	if err := c.startControlPlane(ctx); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	c.progress("control plane started")
	for i := 1; i <= c.opt.Nodes; i++ {
		n := &Node{cluster: c, Name: fmt.Sprintf("node%d", i), IP: nodeIP(i), index: i}
		if c.opt.DualStack {
			n.IP6 = nodeIP6(i)
		}
		c.nodes = append(c.nodes, n)
	}
	// The first to fail stops the others; all are waited for, because they use
	// the processes that Stop ends.
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	prepared := group{fail: cancel}
	for _, n := range c.nodes {
		prepared.Go(func() error { return n.prepare(both) })
	}
	prepared.Go(func() error {
		if err := c.waitAPI(both); err != nil {
			return err
		}
		c.progress("API server ready")
		return c.startControllers(both)
	})
	if err := prepared.Wait(); err != nil {
		return err
	}
	if c.opt.APIOnly {
		return nil
	}
	if err := c.waitNodes(ctx); err != nil {
		return err
	}
	c.progress("nodes ready")
	if c.opt.DNS {
		if err := c.startDNS(ctx); err != nil {
			return fmt.Errorf("cluster DNS: %w", err)
		}
		c.progress("cluster DNS ready")
	}
	return nil
}

func (c *Cluster) progress(what string) {
	c.log.Info(what, "cluster", c.opt.Name, "after", time.Since(c.began).Round(10*time.Millisecond))
}

// Kubeconfig is the path of an administrator's kubeconfig that works from the
// host's network namespace, through the cluster's forwarder on 127.0.0.1.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig }

// KubeBinary is the path of the binary that is kubectl (first argument).
func (c *Cluster) KubeBinary() string { return filepath.Join(c.opt.Cache, "kube") }

// ControlPlane is the namespace of the API server; it is no Kubernetes node.
func (c *Cluster) ControlPlane() *Node { return c.cp }

// Nodes are the Kubernetes nodes, in order.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node is the node of that name, or the control plane for "cp".
func (c *Cluster) Node(name string) (*Node, error) {
	if name == c.cp.Name {
		return c.cp, nil
	}
	for _, n := range c.nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("cluster %q has no node %q", c.opt.Name, name)
}

// Stop ends the cluster and removes everything that Start made. It may be
// called more than once.
func (c *Cluster) Stop() error {
	c.stop.Do(func() { c.stopErr = c.teardown() })
	return c.stopErr
}

func (c *Cluster) teardown() error {
	if c.forward != nil {
		c.forward.Close()
	}
	for _, n := range append([]*Node{c.cp}, c.nodes...) {
		if n == nil {
			continue
		}
		if p := n.proc(); p != nil {
			p.kill()
		}
	}
	if c.owner != nil {
		c.owner.Close()
	}
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	return c.state.remove(c.dir)
}

// record keeps what a crash clean-up needs, written before the thing is made.
func (c *Cluster) record(change func(*State)) error {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	change(&c.state)
	return c.state.write(c.dir)
}

// Node is one machine of the cluster: a process tree in its own namespaces.
type Node struct {
	cluster *Cluster
	Name    string
	IP      netip.Addr // of the primary family, IPv4
	IP6     netip.Addr // of a dual-stack cluster
	index   int        // 1 for node1; 0 for the control plane

	mu      sync.Mutex
	process *process // guarded by mu; nil while down
}

func (n *Node) proc() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process
}

// PID is the node's PID 1 as the host counts it; 0 while the node is down.
func (n *Node) PID() int {
	if p := n.proc(); p != nil {
		return p.pid
	}
	return 0
}

// NetNS is the path of the node's network namespace.
func (n *Node) NetNS() string { return fmt.Sprintf("/proc/%d/ns/net", n.PID()) }

// Dial opens a connection from inside the node's network namespace.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return DialIn(ctx, n.NetNS(), network, address)
}

// Root is the node's root folder as the host sees it. Mounts made inside the
// node do not show there; /proc/<pid>/root shows them.
func (n *Node) Root() string { return filepath.Join(n.cluster.dir, n.Name, "rootfs") }
