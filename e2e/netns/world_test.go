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

// patience is how long anything may take that is not a bulk transfer, on a machine
// that is slow and busy; only a test that fails spends it.
const patience = time.Minute

// world is two nodes with their agents and ztunnels, and a control plane.
type world struct {
	t testing.TB
	families
	dir     string
	control *control
	a, b    *node
	pods    int
	// shape is how pods are connected, ptp unless a test says otherwise.
	shape shape
	// clsact attaches as on kernels without tcx.
	clsact bool
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
	// addr is the address tests use: of the world's last family, so that in a
	// dual-stack world it is not the pod's first.
	addr  netip.Addr
	addrs []netip.Addr // one of each family
	uid   string
	// device is the node's end of the pod's first link, "" where it has none.
	device string
	// probes are the ports that the node's own processes may dial past ztunnel.
	probes []uint16
	// dns captures the pod's DNS questions too.
	dns bool
	// change adjusts what the mesh is told about the pod.
	change func(*mesh.Workload)
}

func (p *pod) id() identity.ID {
	return identity.ID{TrustDomain: identity.DefaultTrustDomain, Namespace: "demo", ServiceAccount: p.sa}
}

func (p *pod) meshUID() string { return "test//Pod/demo/" + p.name }

// newWorld is two nodes of IPv4 with everything running and no pods yet.
func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOf(t, onlyIPv4)
}

func newWorldOf(t testing.TB, f families, settings ...func(*world)) *world {
	t.Helper()
	w, ctrl := newWires(t, f, settings...)
	w.control = newControl(t, ctrl)
	for _, n := range []*node{w.a, w.b} {
		n.agent = newAgent(t, n)
		n.zt = n.startZtunnel(nil)
	}
	w.waitReady(w.a, w.b)
	return w
}

// newWires is two nodes with nothing running on them, and the namespace of a
// control plane that both reach.
func newWires(t testing.TB, f families, settings ...func(*world)) (*world, *netns.NS) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and loads eBPF programs: needs root")
	}
	w := &world{t: t, families: f, dir: t.TempDir(), shape: ptp}
	for _, set := range settings {
		set(w)
	}
	ctrl := newNS(t)
	w.a, w.b = w.node("node-a", 1), w.node("node-b", 2)
	w.shape.wire(w)
	for _, n := range []*node{w.a, w.b} {
		other := 3 - n.number
		configure(t, n.ns, "wire0", link{prefixes: append(f.list(func(f family) string { return f.wire(n.number) }), router(n.number)),
			routes: routes(f, func(f family) route { return route{f.pods(other), f.wireAddr(other)} })})
		w.shape.prepare(w, n)
	}
	for _, n := range []*node{w.a, w.b} {
		join(t, ctrl, n.name, n.ns, "ctrl0")
		configure(t, ctrl, n.name, link{prefixes: f.list(func(f family) string { return f.control(n.number, 1) })})
		configure(t, n.ns, "ctrl0", link{prefixes: f.list(func(f family) string { return f.control(n.number, 2) })})
		at := netip.MustParsePrefix(f.used().control(n.number, 1)).Addr()
		n.xds = "https://" + netip.AddrPortFrom(at, 15012).String()
	}
	return w, ctrl
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
	return w.newPodOf(n, name, w.families)
}

// newPodOf is a pod with fewer families than its world.
func (w *world) newPodOf(n *node, name string, families families) *pod {
	w.t.Helper()
	w.pods++
	p := &pod{node: n, ns: newNS(w.t), name: name, sa: name,
		uid: fmt.Sprintf("00000000-0000-0000-0000-%012d", w.pods)}
	for _, f := range families {
		p.addr = f.pod(n.number, 10+w.pods)
		p.addrs = append(p.addrs, p.addr)
	}
	w.shape.connect(w, p, fmt.Sprintf("veth%d", w.pods))
	w.announce(p, false)
	return p
}

// plug gives the pod a device with addresses, the way the ptp CNI does:
// through it and the node's address of that number it reaches what to says.
func (w *world) plug(p *pod, host, device string, addrs []netip.Addr, gateway int, to func(family) string) {
	w.t.Helper()
	n := p.node
	join(w.t, n.ns, host, p.ns, device)
	outside, inside := link{prefixes: []string{router(1)}}, link{}
	for _, a := range addrs {
		f := familyOf(a)
		gw := f.pod(n.number, gateway)
		outside.prefixes = append(outside.prefixes, single(gw))
		outside.routes = append(outside.routes, route{single(a), ""})
		inside.prefixes = append(inside.prefixes, single(a))
		inside.routes = append(inside.routes, route{single(gw), ""}, route{to(f), gw.String()})
	}
	configure(w.t, n.ns, host, outside)
	configure(w.t, p.ns, device, inside)
}

// record is the mesh's view of the pod.
func (p *pod) record(meshed bool) *mesh.Workload {
	rec := &mesh.Workload{
		UID: p.meshUID(), Name: p.name, Namespace: "demo", Addresses: p.addrs, ServiceAccount: p.sa,
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

// serviceAt puts pods behind virtual addresses.
func (w *world) serviceAt(name string, vips []netip.Addr, port, target uint16, pods ...*pod) {
	w.t.Helper()
	svc := &mesh.Service{Name: name, Namespace: "demo", Hostname: name + ".demo.svc.cluster.local",
		Ports: []mesh.Port{{ServicePort: port, TargetPort: target}}}
	for _, ip := range vips {
		svc.Addresses = append(svc.Addresses, mesh.NetworkAddress{Prefix: netip.PrefixFrom(ip, ip.BitLen())})
	}
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
