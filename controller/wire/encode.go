package wire

import (
	"net/netip"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire/workloadapi"
)

func encodeWorkload(w *mesh.Workload) *workloadapi.Workload {
	m := &workloadapi.Workload{
		Uid:                   w.UID,
		Name:                  w.Name,
		Namespace:             w.Namespace,
		Network:               w.Network,
		TunnelProtocol:        workloadapi.TunnelProtocol(w.Protocol),
		TrustDomain:           w.TrustDomain,
		ServiceAccount:        w.ServiceAccount,
		Waypoint:              encodeGateway(w.Waypoint),
		NetworkGateway:        encodeGateway(w.NetworkGateway),
		Node:                  w.Node,
		CanonicalName:         w.CanonicalName,
		CanonicalRevision:     w.CanonicalRevision,
		WorkloadType:          workloadapi.WorkloadType(w.Type),
		WorkloadName:          w.WorkloadName,
		NativeTunnel:          w.NativeTunnel,
		AuthorizationPolicies: w.Policies,
		Status:                workloadapi.WorkloadStatus(w.Health),
		ClusterId:             w.ClusterID,
		Hostname:              w.Hostname,
	}
	for _, a := range w.Addresses {
		m.Addresses = append(m.Addresses, a.Unmap().AsSlice())
	}
	if len(w.Services) > 0 {
		m.Services = make(map[string]*workloadapi.PortList, len(w.Services))
		for key, ports := range w.Services {
			m.Services[key] = &workloadapi.PortList{Ports: encodePorts(ports)}
		}
	}
	if t := w.AppTunnel; t != nil {
		m.ApplicationTunnel = &workloadapi.ApplicationTunnel{Port: uint32(t.Port)}
		if t.Proxy {
			m.ApplicationTunnel.Protocol = workloadapi.ApplicationTunnel_PROXY
		}
	}
	if l := w.Locality; l != (mesh.Locality{}) {
		m.Locality = &workloadapi.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	if w.HostNetwork {
		m.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK
	}
	if w.Capacity != nil {
		m.Capacity = wrapperspb.UInt32(*w.Capacity)
	}
	return m
}

func encodeService(v *mesh.Service) *workloadapi.Service {
	m := &workloadapi.Service{
		Name:               v.Name,
		Namespace:          v.Namespace,
		Hostname:           v.Hostname,
		Ports:              encodePorts(v.Ports),
		SubjectAltNames:    v.SubjectAltNames,
		Waypoint:           encodeGateway(v.Waypoint),
		IpFamilies:         workloadapi.IPFamilies(v.IPFamilies),
		Canonical:          v.Canonical,
		IngressUseWaypoint: v.IngressWaypoint,
	}
	for _, a := range v.Addresses {
		m.Addresses = append(m.Addresses, encodeNetworkAddress(a))
	}
	for i := range v.Weighted {
		w := &v.Weighted[i]
		m.WeightedWaypoints = append(m.WeightedWaypoints,
			&workloadapi.WeightedWaypoint{Destination: encodeGateway(&w.Destination), Weight: w.Weight})
	}
	if lb := v.LoadBalancing; lb.Mode != mesh.ModeUnspecified || lb.AllowAll || len(lb.Preference) > 0 {
		m.LoadBalancing = &workloadapi.LoadBalancing{Mode: workloadapi.LoadBalancing_Mode(lb.Mode)}
		for _, s := range lb.Preference {
			m.LoadBalancing.RoutingPreference = append(m.LoadBalancing.RoutingPreference, workloadapi.LoadBalancing_Scope(s))
		}
		if lb.AllowAll {
			m.LoadBalancing.HealthPolicy = workloadapi.LoadBalancing_ALLOW_ALL
		}
	}
	if v.NamespaceOnly {
		m.Visibility = workloadapi.Service_NAMESPACE
	}
	return m
}

func encodeGateway(g *mesh.GatewayAddress) *workloadapi.GatewayAddress {
	if g == nil {
		return nil
	}
	m := &workloadapi.GatewayAddress{HboneMtlsPort: uint32(g.HBONEPort)}
	if g.Hostname != "" {
		m.Destination = &workloadapi.GatewayAddress_Hostname{
			Hostname: &workloadapi.NamespacedHostname{Namespace: g.Namespace, Hostname: g.Hostname}}
	} else {
		m.Destination = &workloadapi.GatewayAddress_Address{Address: encodeNetworkAddress(g.Address)}
	}
	return m
}

// encodeNetworkAddress leaves the length out of a single address, as Istio's
// control plane does.
func encodeNetworkAddress(a mesh.NetworkAddress) *workloadapi.NetworkAddress {
	p := unmapPrefix(a.Prefix)
	m := &workloadapi.NetworkAddress{Network: a.Network, Address: p.Addr().AsSlice()}
	if !p.IsSingleIP() {
		n := uint32(p.Bits())
		m.Length = &n
	}
	return m
}

func unmapPrefix(p netip.Prefix) netip.Prefix {
	if !p.Addr().Is4In6() || p.Bits() < 96 {
		return p
	}
	return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
}

func encodePorts(ports []mesh.Port) []*workloadapi.Port {
	if len(ports) == 0 {
		return nil
	}
	out := make([]*workloadapi.Port, len(ports))
	for i, p := range ports {
		out[i] = &workloadapi.Port{
			ServicePort: uint32(p.ServicePort),
			TargetPort:  uint32(p.TargetPort),
			AppProtocol: workloadapi.AppProtocol(p.AppProtocol),
		}
	}
	return out
}
