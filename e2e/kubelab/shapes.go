package kubelab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Shape is how a node's CNI plugin connects pods.
type Shape string

const (
	// ShapePTP is a veth pair and a route per pod.
	ShapePTP Shape = ""
	// ShapeBridge has the node's pods on one bridge.
	ShapeBridge Shape = "bridge"
	// ShapeGateway gives pods a /32 and a gateway that only proxy ARP answers
	// for, as Calico does. IPv4 only.
	ShapeGateway Shape = "gateway"
	// ShapeMacvlan makes pods out of the node's card. The node reaches them by a
	// macvlan of its own, without which there would be no probes.
	ShapeMacvlan Shape = "macvlan"
)

func (o Options) shape(node int) Shape {
	if node < 1 || node > len(o.Shapes) {
		return ShapePTP
	}
	return o.Shapes[node-1]
}

func (o Options) validateShapes() error {
	var errs []error
	for i, s := range o.Shapes {
		if !slices.Contains([]Shape{ShapePTP, ShapeBridge, ShapeGateway, ShapeMacvlan}, s) {
			errs = append(errs, fmt.Errorf("shape %q of node%d is unknown", s, i+1))
		}
		if s == ShapeGateway && o.DualStack {
			errs = append(errs, fmt.Errorf("shape %q of node%d has IPv4 only", s, i+1))
		}
	}
	if len(o.Shapes) > o.Nodes {
		errs = append(errs, fmt.Errorf("%d shapes for %d nodes", len(o.Shapes), o.Nodes))
	}
	return errors.Join(errs...)
}

// plugin is the beginning of the first plugin's configuration.
func (s Shape) plugin() string {
	switch s {
	case ShapeBridge:
		return `"type": "bridge", "bridge": "cbr0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1500`
	case ShapeGateway:
		return `"type": "` + gatewayPlugin + `"`
	case ShapeMacvlan:
		return `"type": "macvlan", "master": "eth0", "mode": "bridge", "mtu": 1500`
	}
	return `"type": "ptp", "ipMasq": false, "mtu": 1500`
}

// shim is the node's own place among its macvlan pods, and their gateway: the
// address that host-local gives nobody.
func shim(h *netlink.Handle, card netlink.Link, networks []string) error {
	l := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "shim0", ParentIndex: card.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
	if err := h.LinkAdd(l); err != nil {
		return fmt.Errorf("add shim0: %w", err)
	}
	var addrs []netip.Prefix
	for _, n := range networks {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return err
		}
		addrs = append(addrs, netip.PrefixFrom(p.Addr().Next(), p.Bits()))
	}
	if err := addAddresses(h, l, addrs); err != nil {
		return err
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("shim0 up: %w", err)
	}
	return nil
}

const gatewayPlugin = "kubelab-gateway"

// gatewayScript is the plugin of ShapeGateway. Addresses come from host-local,
// which finds its part in the same configuration.
const gatewayScript = `#!/bin/sh
set -eu
conf=$(cat)
ipam() { printf %s "$conf" | "${CNI_PATH%%:*}/host-local"; }
host=gw$(printf %.11s "${CNI_CONTAINERID:-}")
case $CNI_COMMAND in
ADD)
	ip=$(ipam | tr -d ' \n\t' | sed 's/.*"address":"\([0-9.]*\)\/.*/\1/')
	ip link add "$host" type veth peer name "$CNI_IFNAME" netns "$(basename "$CNI_NETNS")"
	ip link set "$host" address ee:ee:ee:ee:ee:ee up
	echo 1 >"/proc/sys/net/ipv4/conf/$host/proxy_arp"
	echo 0 >"/proc/sys/net/ipv4/neigh/$host/proxy_delay"
	ip route add "$ip/32" dev "$host"
	nsenter --net="$CNI_NETNS" sh -eu -c "
		ip addr add $ip/32 dev $CNI_IFNAME
		ip link set $CNI_IFNAME up
		ip route add 169.254.1.1 dev $CNI_IFNAME scope link
		ip route add default via 169.254.1.1 dev $CNI_IFNAME"
	cat <<-END
		{"cniVersion": "0.4.0", "interfaces": [{"name": "$host"}, {"name": "$CNI_IFNAME", "sandbox": "$CNI_NETNS"}],
		 "ips": [{"version": "4", "interface": 1, "address": "$ip/32", "gateway": "169.254.1.1"}],
		 "routes": [{"dst": "0.0.0.0/0"}], "dns": {}}
	END
	;;
DEL)
	ipam
	ip link del "$host" 2>/dev/null || :
	;;
VERSION)
	echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0"]}'
	;;
esac
`
