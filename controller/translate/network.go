package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

const (
	classRemote                  = gatewayv1.ObjectName("istio-remote")
	gatewayTrustDomainAnnotation = "gateway.istio.io/trust-domain"
)

// Network is where the gateway of another network is.
type Network struct {
	Gateway mesh.GatewayAddress
	// Workload is the gateway itself, so that clients know whom to expect at
	// its address; nil when it is a Service, whose endpoints say that.
	Workload *mesh.Workload
}

// Networks are the networks that this one has gateways to, by name. A Gateway
// of class istio-remote with the network's label says where its east-west
// gateway is; so does a Service with the label and port 15008, for a gateway
// that runs in this cluster. Of several the first by namespace and name counts,
// Gateways before Services. The result is shared: nobody may change it.
func (c Config) Networks(objs Objects) map[string]Network {
	return objs.Networks(func() map[string]Network { return c.networks(objs) })
}

func (c Config) networks(objs Objects) map[string]Network {
	own := c.network(objs)
	out := make(map[string]Network)
	gateways := slices.Clone(objs.Gateways(""))
	slices.SortFunc(gateways, func(a, b *gatewayv1.Gateway) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, gw := range gateways {
		network := gw.Labels[NetworkLabel]
		if _, taken := out[network]; taken || network == "" || network == own || gw.Spec.GatewayClassName != classRemote {
			continue
		}
		if n, ok := c.remoteGateway(gw, network); ok {
			out[network] = n
		}
	}
	services := slices.Clone(objs.NetworkServices())
	slices.SortFunc(services, func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, svc := range services {
		network := svc.Labels[NetworkLabel]
		_, taken := out[network]
		hbone := slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == hbonePort })
		if taken || network == "" || network == own || !hbone || !published(svc) {
			continue
		}
		out[network] = Network{Gateway: mesh.GatewayAddress{
			Namespace: svc.Namespace, Hostname: c.Hostname(svc.Namespace, svc.Name), HBONEPort: hbonePort,
		}}
	}
	return out
}

// remoteGateway reads a Gateway of class istio-remote: its first address, and
// whose certificate the gateway there shows.
func (c Config) remoteGateway(gw *gatewayv1.Gateway, network string) (Network, bool) {
	port := uint16(0)
	for i := range gw.Spec.Listeners {
		if l := &gw.Spec.Listeners[i]; l.Protocol == protocolHBONE {
			port = uint16(l.Port)
			break
		}
	}
	if port == 0 || len(gw.Spec.Addresses) == 0 || gw.Spec.Addresses[0].Value == "" {
		return Network{}, false
	}
	w := &mesh.Workload{
		Name:           gw.Name,
		Namespace:      gw.Namespace,
		Network:        network,
		Protocol:       mesh.ProtocolHBONE,
		TrustDomain:    c.trustDomain(),
		ServiceAccount: gw.Annotations[gatewayAccountAnnotation],
		WorkloadName:   gw.Name,
		CanonicalName:  gw.Name,
		Type:           mesh.TypePod,
		ClusterID:      c.ClusterID,
		NativeTunnel:   true, // nobody here asks for its certificate
	}
	if w.ServiceAccount == "" {
		w.ServiceAccount = gw.Name + "-" + string(classRemote)
	}
	if td := gw.Annotations[gatewayTrustDomainAnnotation]; td != "" {
		foreign := c
		foreign.TrustDomain = td
		w.TrustDomain = foreign.trustDomain()
	}
	value := gw.Spec.Addresses[0].Value
	w.UID = "NetworkGateway/" + network + "/" + value + "/" + strconv.Itoa(int(port))
	n := Network{Workload: w, Gateway: mesh.GatewayAddress{HBONEPort: port}}
	if ip, err := netip.ParseAddr(value); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		w.Addresses = []netip.Addr{ip}
		n.Gateway.Address = mesh.NetworkAddress{Network: network, Prefix: netip.PrefixFrom(ip, ip.BitLen())}
	} else {
		w.Hostname = value
		n.Gateway.Namespace, n.Gateway.Hostname = gw.Namespace, value
	}
	return n, true
}

// networkGateway is the gateway to a network, nil for the own one and for one
// without a known gateway.
func (c Config) networkGateway(network string, objs Objects) *mesh.GatewayAddress {
	if network == "" || network == c.network(objs) {
		return nil
	}
	if n, ok := c.Networks(objs)[network]; ok {
		return &n.Gateway
	}
	return nil
}

// NetworkGateways are the gateways to other networks, as workloads.
func (c Config) NetworkGateways(objs Objects) []*mesh.Workload {
	var out []*mesh.Workload
	for _, n := range c.Networks(objs) {
		if n.Workload != nil {
			out = append(out, n.Workload)
		}
	}
	slices.SortFunc(out, func(a, b *mesh.Workload) int { return cmp.Compare(a.UID, b.UID) })
	return out
}
