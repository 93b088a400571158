package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// patience is how long anything may take that is not a bulk transfer.
const patience = 15 * time.Second

// world is two nodes with their agents and ztunnels, and a control plane.
type world struct {
	t       testing.TB
	dir     string
	control *control
	a, b    *node
	pods    int
}

type node struct {
	w      *world
	name   string
	number int
	ns     *netns.NS
	agent  *agent
	zt     *process
	xds    string // the control plane's address seen from here
}

type pod struct {
	node *node
	ns   *netns.NS
	name string
	sa   string
	addr netip.Addr
	uid  string
	// change adjusts what the mesh is told about the pod.
	change func(*mesh.Workload)
}

func (p *pod) id() identity.ID {
	return identity.ID{TrustDomain: identity.DefaultTrustDomain, Namespace: "demo", ServiceAccount: p.sa}
}

func (p *pod) meshUID() string { return "test//Pod/demo/" + p.name }

// newWorld is two nodes with everything running and no pods yet.
func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and loads eBPF programs: needs root")
	}
	w := &world{t: t, dir: t.TempDir()}
	ctrl := newNS(t)
	w.a, w.b = w.node("node-a", 1), w.node("node-b", 2)
	join(t, w.a.ns, "wire0", w.b.ns, "wire0")
	up(t, w.a.ns, "wire0", "192.168.77.1/24", route{"10.77.2.0/24", "192.168.77.2"})
	up(t, w.b.ns, "wire0", "192.168.77.2/24", route{"10.77.1.0/24", "192.168.77.1"})
	for _, n := range []*node{w.a, w.b} {
		join(t, ctrl, n.name, n.ns, "ctrl0")
		up(t, ctrl, n.name, fmt.Sprintf("10.99.%d.1/24", n.number))
		up(t, n.ns, "ctrl0", fmt.Sprintf("10.99.%d.2/24", n.number))
		n.xds = fmt.Sprintf("https://10.99.%d.1:15012", n.number)
	}
	w.control = newControl(t, ctrl)
	for _, n := range []*node{w.a, w.b} {
		n.agent = newAgent(t, n)
		n.zt = n.startZtunnel(nil)
	}
	w.waitReady(w.a, w.b)
	return w
}

func (w *world) node(name string, number int) *node {
	n := &node{w: w, name: name, number: number, ns: newNS(w.t)}
	forward(w.t, n.ns)
	return n
}

func (w *world) waitReady(nodes ...*node) {
	w.t.Helper()
	for _, n := range nodes {
		eventually(w.t, n.name+"'s ztunnel is ready", func() error {
			if _, err := n.get("127.0.0.1:15021", "/healthz/ready"); err != nil {
				return err
			}
			return nil
		})
	}
}

// newPod makes a pod that the mesh knows but does not capture.
func (w *world) newPod(n *node, name string) *pod {
	w.t.Helper()
	w.pods++
	p := &pod{node: n, ns: newNS(w.t), name: name, sa: name,
		addr: netip.AddrFrom4([4]byte{10, 77, byte(n.number), byte(10 + w.pods)}),
		uid:  fmt.Sprintf("00000000-0000-0000-0000-%012d", w.pods)}
	host, gw := fmt.Sprintf("veth%d", w.pods), fmt.Sprintf("10.77.%d.1", n.number)
	join(w.t, n.ns, host, p.ns, "eth0")
	up(w.t, n.ns, host, gw+"/32", route{p.addr.String() + "/32", ""})
	up(w.t, p.ns, "eth0", p.addr.String()+"/32", route{gw + "/32", ""}, route{"0.0.0.0/0", gw})
	w.announce(p, false)
	return p
}

// record is the mesh's view of the pod.
func (p *pod) record(meshed bool) *mesh.Workload {
	rec := &mesh.Workload{
		UID: p.meshUID(), Name: p.name, Namespace: "demo", Addresses: []netip.Addr{p.addr}, ServiceAccount: p.sa,
		Node: p.node.name, WorkloadName: p.name, CanonicalName: p.name, CanonicalRevision: "v1", ClusterID: "test",
		Type: mesh.TypePod,
	}
	if meshed {
		rec.Protocol = mesh.ProtocolHBONE
	}
	if p.change != nil {
		p.change(rec)
	}
	return rec
}

func (w *world) announce(p *pod, meshed bool) {
	w.control.apply(mesh.Delta{Workloads: []*mesh.Workload{p.record(meshed)}})
}

// enrol captures pods and tells everybody; on return all ztunnels know.
func (w *world) enrol(pods ...*pod) {
	w.t.Helper()
	for _, p := range pods {
		p.node.agent.enrol(p)
		w.announce(p, true)
	}
	w.control.settled(w.t)
}

// release takes pods out of the mesh in the order a user's un-label has:
// peers are told first, capture ends last.
func (w *world) release(pods ...*pod) {
	w.t.Helper()
	for _, p := range pods {
		w.announce(p, false)
	}
	w.control.settled(w.t)
	for _, p := range pods {
		p.node.agent.release(p)
	}
}

// service puts pods behind a virtual address.
func (w *world) service(name, vip string, port, target uint16, pods ...*pod) {
	w.t.Helper()
	ip := netip.MustParseAddr(vip)
	svc := &mesh.Service{Name: name, Namespace: "demo", Hostname: name + ".demo.svc.cluster.local",
		Addresses: []mesh.NetworkAddress{{Prefix: netip.PrefixFrom(ip, 32)}},
		Ports:     []mesh.Port{{ServicePort: port, TargetPort: target}}}
	d := mesh.Delta{Services: []*mesh.Service{svc}}
	for _, p := range pods {
		before := p.change
		p.change = func(rec *mesh.Workload) {
			if before != nil {
				before(rec)
			}
			if rec.Services == nil {
				rec.Services = map[string][]mesh.Port{}
			}
			rec.Services[svc.Key()] = nil
		}
		d.Workloads = append(d.Workloads, p.record(p.node.agent.has(p)))
	}
	w.control.apply(d)
	w.control.settled(w.t)
}

// eventually waits for a condition; its last error is the failure.
func eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		case <-tick.C:
		}
	}
}
