package mesh

import (
	"net/netip"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Protocol is how a workload is reached.
type Protocol uint8

const (
	ProtocolTCP   Protocol = iota // plain TCP to the workload's address
	ProtocolHBONE                 // CONNECT over mTLS to port 15008
)

// String is the config_dump name of p.
func (p Protocol) String() string {
	if p == ProtocolHBONE {
		return "HBONE"
	}
	return "TCP"
}

// Health of a workload as an endpoint.
type Health uint8

const (
	Healthy Health = iota
	Unhealthy
)

// WorkloadType is the kind of the workload's controller; telemetry only.
type WorkloadType uint8

const (
	TypeDeployment WorkloadType = iota
	TypeCronJob
	TypePod
	TypeJob
)

// Workload is one endpoint: a pod, a VM, a WorkloadEntry.
type Workload struct {
	UID               string // primary key, <cluster>//Pod/<namespace>/<name> for pods
	Name              string // pod name
	Namespace         string
	Addresses         []netip.Addr // unmapped
	Network           string       // "" is the default network
	Protocol          Protocol
	TrustDomain       string // "" means identity.DefaultTrustDomain
	ServiceAccount    string // "" means "default"
	Waypoint          *GatewayAddress
	NetworkGateway    *GatewayAddress
	Node              string
	CanonicalName     string
	CanonicalRevision string
	Type              WorkloadType
	WorkloadName      string
	NativeTunnel      bool
	Policies          []string // <namespace>/<name> of the selector policies that apply
	Health            Health
	ClusterID         string // "" means "Kubernetes"
	Hostname          string // resolved on demand when there is no address
	// Services maps <namespace>/<hostname> to this endpoint's own port mapping.
	Services    map[string][]Port
	AppTunnel   *AppTunnel
	Locality    Locality
	HostNetwork bool
	Capacity    *uint32 // load-balancing weight; nil means 1, 0 means never
}

// Identity of the workload, defaults filled in.
func (w *Workload) Identity() identity.ID {
	id := identity.ID{TrustDomain: w.TrustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}
	if id.TrustDomain == "" {
		id.TrustDomain = identity.DefaultTrustDomain
	}
	if id.ServiceAccount == "" {
		id.ServiceAccount = "default"
	}
	return id
}

// Port maps a service port to the port of an endpoint. TargetPort 0 on a
// Service means a named port, resolved by each workload's own mapping.
type Port struct {
	ServicePort uint16
	TargetPort  uint16
	AppProtocol AppProtocol
}

// AppProtocol is what the service's owner says flows on a port.
type AppProtocol uint8

const (
	AppUnknown AppProtocol = iota
	AppHTTP11
	AppHTTP2
	AppGRPC
	AppTCP
	AppTLS
)

// AppTunnel says how the last hop to the application is made.
type AppTunnel struct {
	Proxy bool   // PROXY protocol v2 before the payload
	Port  uint16 // 0: keep the port
}

// Locality of a workload; each part may be empty.
type Locality struct{ Region, Zone, Subzone string }

// GatewayAddress names a waypoint or network gateway, either by service
// hostname or by address.
type GatewayAddress struct {
	Namespace, Hostname string // set for a hostname destination
	Address             NetworkAddress
	HBONEPort           uint16
}

// NetworkAddress is an address inside a named network. A prefix shorter than
// the address is a CIDR VIP.
type NetworkAddress struct {
	Network string
	Prefix  netip.Prefix
}

// IsSingle reports whether a names one address.
func (a NetworkAddress) IsSingle() bool { return a.Prefix.IsSingleIP() }
