package mesh

// Service is a named set of endpoints with virtual addresses.
type Service struct {
	Name            string
	Namespace       string
	Hostname        string
	Addresses       []NetworkAddress // VIPs and CIDR VIPs; none when headless
	Ports           []Port
	SubjectAltNames []string // extra accepted SPIFFE SANs
	Waypoint        *GatewayAddress
	LoadBalancing   LoadBalancing
	IPFamilies      IPFamilies
	Canonical       bool
	IngressWaypoint bool
	Weighted        []WeightedWaypoint
	NamespaceOnly   bool // visible only to clients of its own namespace
}

// Key is the xDS name of the service, <namespace>/<hostname>.
func (s *Service) Key() string { return s.Namespace + "/" + s.Hostname }

// WeightedWaypoint is one of several waypoints sampled per connection.
type WeightedWaypoint struct {
	Destination GatewayAddress
	Weight      uint32
}

// IPFamilies restricts which endpoint addresses a service uses.
type IPFamilies uint8

const (
	FamiliesAutomatic IPFamilies = iota
	FamiliesIPv4
	FamiliesIPv6
	FamiliesDual
)

// LoadBalancing of a service.
type LoadBalancing struct {
	Preference []Scope
	Mode       Mode
	AllowAll   bool // unhealthy endpoints are used too
}

// Scope is one locality dimension.
type Scope uint8

const (
	ScopeUnspecified Scope = iota
	ScopeRegion
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// Mode says how Preference is used.
type Mode uint8

const (
	ModeUnspecified Mode = iota
	ModeStrict
	ModeFailover
	ModePassthrough
)
