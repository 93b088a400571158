package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire/workloadapi"
)

func decodeWorkload(m *workloadapi.Workload) (*mesh.Workload, error) {
	if m.GetUid() == "" {
		return nil, errors.New("uid: empty")
	}
	w := &mesh.Workload{
		UID:               m.GetUid(),
		Name:              m.GetName(),
		Namespace:         m.GetNamespace(),
		Network:           m.GetNetwork(),
		TrustDomain:       m.GetTrustDomain(),
		ServiceAccount:    m.GetServiceAccount(),
		Node:              m.GetNode(),
		CanonicalName:     m.GetCanonicalName(),
		CanonicalRevision: m.GetCanonicalRevision(),
		WorkloadName:      m.GetWorkloadName(),
		NativeTunnel:      m.GetNativeTunnel(),
		Policies:          m.GetAuthorizationPolicies(),
		ClusterID:         m.GetClusterId(),
		Hostname:          m.GetHostname(),
		Locality: mesh.Locality{
			Region:  m.GetLocality().GetRegion(),
			Zone:    m.GetLocality().GetZone(),
			Subzone: m.GetLocality().GetSubzone(),
		},
	}
	for i, b := range m.GetAddresses() {
		a, err := decodeAddr(b)
		if err != nil {
			return nil, fmt.Errorf("addresses[%d]: %w", i, err)
		}
		w.Addresses = append(w.Addresses, a)
	}
	switch p := m.GetTunnelProtocol(); p {
	case workloadapi.TunnelProtocol_NONE:
		w.Protocol = mesh.ProtocolTCP
	case workloadapi.TunnelProtocol_HBONE:
		w.Protocol = mesh.ProtocolHBONE
	default:
		return nil, fmt.Errorf("tunnel_protocol: %v is not supported", p)
	}
	if t := m.GetWorkloadType(); t >= 0 && t <= workloadapi.WorkloadType_JOB {
		w.Type = mesh.WorkloadType(t)
	}
	switch h := m.GetStatus(); h {
	case workloadapi.WorkloadStatus_HEALTHY:
		w.Health = mesh.Healthy
	case workloadapi.WorkloadStatus_UNHEALTHY:
		w.Health = mesh.Unhealthy
	default:
		return nil, fmt.Errorf("status: unknown value %d", h)
	}
	switch n := m.GetNetworkMode(); n {
	case workloadapi.NetworkMode_STANDARD:
	case workloadapi.NetworkMode_HOST_NETWORK:
		w.HostNetwork = true
	default:
		return nil, fmt.Errorf("network_mode: unknown value %d", n)
	}
	var err error
	if w.Waypoint, err = decodeGateway(m.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	if w.NetworkGateway, err = decodeGateway(m.GetNetworkGateway()); err != nil {
		return nil, fmt.Errorf("network_gateway: %w", err)
	}
	if len(m.GetServices()) > 0 {
		w.Services = make(map[string][]mesh.Port, len(m.GetServices()))
	}
	for key, list := range m.GetServices() {
		if !strings.Contains(key, "/") {
			return nil, fmt.Errorf("services[%q]: key is not <namespace>/<hostname>", key)
		}
		ports, err := decodePorts(list.GetPorts())
		if err != nil {
			return nil, fmt.Errorf("services[%q].%w", key, err)
		}
		w.Services[key] = ports
	}
	if t := m.GetApplicationTunnel(); t != nil {
		port, err := port16(t.GetPort())
		if err != nil {
			return nil, fmt.Errorf("application_tunnel.port: %w", err)
		}
		w.AppTunnel = &mesh.AppTunnel{Port: port}
		switch p := t.GetProtocol(); p {
		case workloadapi.ApplicationTunnel_NONE:
		case workloadapi.ApplicationTunnel_PROXY:
			w.AppTunnel.Proxy = true
		default:
			return nil, fmt.Errorf("application_tunnel.protocol: unknown value %d", p)
		}
	}
	if c := m.GetCapacity(); c != nil {
		v := c.GetValue()
		w.Capacity = &v
	}
	return w, nil
}

func decodeService(m *workloadapi.Service) (*mesh.Service, error) {
	if m.GetHostname() == "" {
		return nil, errors.New("hostname: empty")
	}
	v := &mesh.Service{
		Name:            m.GetName(),
		Namespace:       m.GetNamespace(),
		Hostname:        m.GetHostname(),
		SubjectAltNames: m.GetSubjectAltNames(),
		Canonical:       m.GetCanonical(),
		IngressWaypoint: m.GetIngressUseWaypoint(),
		NamespaceOnly:   m.GetVisibility() == workloadapi.Service_NAMESPACE,
	}
	for i, a := range m.GetAddresses() {
		n, err := decodeNetworkAddress(a)
		if err != nil {
			return nil, fmt.Errorf("addresses[%d]: %w", i, err)
		}
		v.Addresses = append(v.Addresses, n)
	}
	var err error
	if v.Ports, err = decodePorts(m.GetPorts()); err != nil {
		return nil, err
	}
	if v.Waypoint, err = decodeGateway(m.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	for i, w := range m.GetWeightedWaypoints() {
		g, err := decodeGateway(w.GetDestination())
		if err == nil && g == nil {
			err = errNoDestination
		}
		if err != nil {
			return nil, fmt.Errorf("weighted_waypoints[%d].destination: %w", i, err)
		}
		v.Weighted = append(v.Weighted, mesh.WeightedWaypoint{Destination: *g, Weight: w.GetWeight()})
	}
	if f := m.GetIpFamilies(); f < 0 || f > workloadapi.IPFamilies_DUAL {
		return nil, fmt.Errorf("ip_families: unknown value %d", f)
	}
	v.IPFamilies = mesh.IPFamilies(m.GetIpFamilies())
	lb := m.GetLoadBalancing()
	for i, s := range lb.GetRoutingPreference() {
		if s < 0 || s > workloadapi.LoadBalancing_NETWORK {
			return nil, fmt.Errorf("load_balancing.routing_preference[%d]: unknown value %d", i, s)
		}
		v.LoadBalancing.Preference = append(v.LoadBalancing.Preference, mesh.Scope(s))
	}
	if mode := lb.GetMode(); mode < 0 || mode > workloadapi.LoadBalancing_PASSTHROUGH {
		return nil, fmt.Errorf("load_balancing.mode: unknown value %d", mode)
	}
	v.LoadBalancing.Mode = mesh.Mode(lb.GetMode())
	switch h := lb.GetHealthPolicy(); h {
	case workloadapi.LoadBalancing_ONLY_HEALTHY:
	case workloadapi.LoadBalancing_ALLOW_ALL:
		v.LoadBalancing.AllowAll = true
	default:
		return nil, fmt.Errorf("load_balancing.health_policy: unknown value %d", h)
	}
	return v, nil
}

var errNoDestination = errors.New("neither hostname nor address")

func decodeGateway(m *workloadapi.GatewayAddress) (*mesh.GatewayAddress, error) {
	if m == nil {
		return nil, nil
	}
	port, err := port16(m.GetHboneMtlsPort())
	if err != nil {
		return nil, fmt.Errorf("hbone_mtls_port: %w", err)
	}
	g := &mesh.GatewayAddress{HBONEPort: port}
	switch d := m.GetDestination().(type) {
	case *workloadapi.GatewayAddress_Hostname:
		g.Namespace, g.Hostname = d.Hostname.GetNamespace(), d.Hostname.GetHostname()
		if g.Hostname == "" {
			return nil, errors.New("hostname: empty")
		}
	case *workloadapi.GatewayAddress_Address:
		if g.Address, err = decodeNetworkAddress(d.Address); err != nil {
			return nil, fmt.Errorf("address: %w", err)
		}
	default:
		return nil, errNoDestination
	}
	return g, nil
}

func decodeNetworkAddress(m *workloadapi.NetworkAddress) (mesh.NetworkAddress, error) {
	var length *uint32
	if m != nil {
		length = m.Length
	}
	p, err := decodePrefix(m.GetAddress(), length)
	if err != nil {
		return mesh.NetworkAddress{}, err
	}
	return mesh.NetworkAddress{Network: m.GetNetwork(), Prefix: p}, nil
}

// decodePrefix reads an address with a prefix length; nil means all of it.
func decodePrefix(address []byte, length *uint32) (netip.Prefix, error) {
	a, err := decodeAddr(address)
	if err != nil {
		return netip.Prefix{}, err
	}
	if length == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	n := *length
	if len(address) == 16 && a.Is4() { // IPv4-mapped: the length counts from the mapped form
		if n < 96 {
			return netip.Prefix{}, fmt.Errorf("length %d of the IPv4-mapped address %v is below 96", n, a)
		}
		n -= 96
	}
	if n > uint32(a.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("length %d exceeds the %d bits of %v", n, a.BitLen(), a)
	}
	return netip.PrefixFrom(a, int(n)), nil
}

func decodeAddr(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes, want 4 or 16", len(b))
	}
	return a.Unmap(), nil
}

func decodePorts(list []*workloadapi.Port) ([]mesh.Port, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make([]mesh.Port, len(list))
	for i, p := range list {
		service, err := port16(p.GetServicePort())
		if err != nil {
			return nil, fmt.Errorf("ports[%d].service_port: %w", i, err)
		}
		target, err := port16(p.GetTargetPort())
		if err != nil {
			return nil, fmt.Errorf("ports[%d].target_port: %w", i, err)
		}
		out[i] = mesh.Port{ServicePort: service, TargetPort: target}
		if a := p.GetAppProtocol(); a >= 0 && a <= workloadapi.AppProtocol_TLS {
			out[i].AppProtocol = mesh.AppProtocol(a)
		}
	}
	return out, nil
}

func port16(p uint32) (uint16, error) {
	if p > math.MaxUint16 {
		return 0, fmt.Errorf("%d is not a port", p)
	}
	return uint16(p), nil
}
