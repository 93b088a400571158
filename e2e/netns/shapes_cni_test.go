package netns_test

import (
	"testing"

	"github.com/vishvananda/netlink"
)

func shaped(s shape) func(*world) { return func(w *world) { w.shape = s } }

// Every way a CNI plugin connects pods that this kernel has, with the same
// traffic over it.
//
//ambit:feature cni-ptp cni-bridge cni-gateway cni-macvlan cni-other-end cni-mtu cni-clsact
func TestShapes(t *testing.T) {
	for _, c := range []struct {
		name     string
		settings []func(*world)
	}{
		{"ptp", nil},
		{"bridge with hairpin", []func(*world){shaped(bridgeShape{hairpin: true})}},
		{"bridge without hairpin", []func(*world){shaped(bridgeShape{})}},
		{"bridge through iptables", []func(*world){shaped(bridgeShape{filtered: true})}},
		{"gateway by proxy ARP", []func(*world){shaped(gatewayShape{})}},
		{"gateway by a static entry", []func(*world){shaped(gatewayShape{static: true})}},
		{"macvlan", []func(*world){shaped(macvlan)}},
		{"other end in another namespace", []func(*world){shaped(detachedShape{})}},
		{"jumbo frames", []func(*world){shaped(ptpShape{mtu: 9000})}},
		{"small frames", []func(*world){shaped(ptpShape{mtu: 1400})}},
		{"clsact", []func(*world){func(w *world) { w.clsact = true }}},
	} {
		t.Run(c.name, func(t *testing.T) { newCast(t, c.settings...).run(t) })
	}
}

// Path MTU discovery has to reach the sockets that are on the wire, ztunnel's,
// wherever the narrow place is.
//
//ambit:feature cni-mtu
func TestNarrowWire(t *testing.T) {
	c := newCast(t, shaped(ptpShape{mtu: 9000}))
	for _, n := range []*node{c.w.a, c.w.b} {
		within(t, n.ns, func() error { return setMTU("wire0", 1400) })
	}
	c.run(t)
}

// The same on kernels that have what this machine's may lack.
func TestShapesOfOtherKernels(t *testing.T) {
	t.Run("ipvlan", func(t *testing.T) { newCast(t, shaped(ipvlan)).run(t) })
	// One pod on each node: a VLAN cannot be twice on one card.
	t.Run("VLAN", func(t *testing.T) {
		w := newWorldOf(t, dual, shaped(childShape{func(parent, number int) netlink.Link {
			return &netlink.Vlan{LinkAttrs: childAttrs(parent, number), VlanId: 100}
		}}))
		client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
		client.serveHTTP(8080)
		server.serveHTTP(8080)
		w.enrol(client, server)
		wire := capturing(t, w.a.ns, "wire0")
		for i := range dual {
			client.addr, server.addr = client.addrs[i], server.addrs[i]
			client.mustCurl(t, server.at(8080), "token-there")
			server.mustCurl(t, client.at(8080), "token-back")
		}
		if wire.size() == 0 || wire.contains("token-") {
			t.Error("nothing on the wire, or plaintext of meshed pods")
		}
	})
}
