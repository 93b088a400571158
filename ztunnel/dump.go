package ztunnel

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// CertState is one identity's certificate in the dump.
type CertState struct {
	ID    identity.ID
	State string // Initializing, Available, "Unavailable: <reason>"
	Chain []*x509.Certificate
	Roots []*x509.Certificate
}

// The types below are the JSON of Istio's config_dump, which istioctl reads.

type dump struct {
	Workloads      []workloadJSON          `json:"workloads"`
	Services       []serviceJSON           `json:"services"`
	Policies       []policyJSON            `json:"policies"`
	StagedServices map[string]any          `json:"stagedServices"`
	StaticConfig   map[string]any          `json:"staticConfig"`
	Version        map[string]string       `json:"version"`
	Config         map[string]any          `json:"config"`
	Certificates   []certificateJSON       `json:"certificates"`
	WorkloadState  map[string]podStateJSON `json:"workloadState"`
}

type localityJSON struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Subzone string `json:"subzone,omitempty"`
}

type gatewayJSON struct {
	Destination   string `json:"destination"`
	HBONEMtlsPort uint16 `json:"hboneMtlsPort"`
}

type tunnelJSON struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
}

type workloadJSON struct {
	WorkloadIPs           []netip.Addr  `json:"workloadIps"`
	Waypoint              *gatewayJSON  `json:"waypoint,omitempty"`
	NetworkGateway        *gatewayJSON  `json:"networkGateway,omitempty"`
	Protocol              string        `json:"protocol"`
	NetworkMode           string        `json:"networkMode"`
	UID                   string        `json:"uid,omitempty"`
	Name                  string        `json:"name"`
	Namespace             string        `json:"namespace"`
	TrustDomain           string        `json:"trustDomain,omitempty"`
	ServiceAccount        string        `json:"serviceAccount,omitempty"`
	Network               string        `json:"network,omitempty"`
	WorkloadName          string        `json:"workloadName,omitempty"`
	WorkloadType          string        `json:"workloadType,omitempty"`
	CanonicalName         string        `json:"canonicalName,omitempty"`
	CanonicalRevision     string        `json:"canonicalRevision,omitempty"`
	Hostname              string        `json:"hostname,omitempty"`
	Node                  string        `json:"node,omitempty"`
	NativeTunnel          bool          `json:"nativeTunnel,omitempty"`
	ApplicationTunnel     *tunnelJSON   `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string      `json:"authorizationPolicies,omitempty"`
	Status                string        `json:"status"`
	ClusterID             string        `json:"clusterId"`
	Locality              *localityJSON `json:"locality,omitempty"`
	Services              []string      `json:"services,omitempty"`
	Capacity              uint32        `json:"capacity"`
}

type endpointJSON struct {
	WorkloadUID string            `json:"workloadUid"`
	Port        map[string]uint16 `json:"port"`
	Status      string            `json:"status"`
}

type cidrJSON struct {
	Network string `json:"network"`
	CIDR    string `json:"cidr"`
}

type weightedJSON struct {
	Destination gatewayJSON `json:"destination"`
	Weight      uint32      `json:"weight"`
}

type balancerJSON struct {
	RoutingPreferences []string `json:"routingPreferences"`
	Mode               string   `json:"mode"`
	HealthPolicy       string   `json:"healthPolicy"`
}

type serviceJSON struct {
	Name              string                  `json:"name"`
	Namespace         string                  `json:"namespace"`
	Hostname          string                  `json:"hostname"`
	VIPs              []string                `json:"vips"`
	CIDRVIPs          []cidrJSON              `json:"cidrVips,omitempty"`
	Ports             map[string]uint16       `json:"ports"`
	Endpoints         map[string]endpointJSON `json:"endpoints"`
	SubjectAltNames   []string                `json:"subjectAltNames,omitempty"`
	Waypoint          *gatewayJSON            `json:"waypoint,omitempty"`
	WeightedWaypoints []weightedJSON          `json:"weightedWaypoints,omitempty"`
	LoadBalancer      *balancerJSON           `json:"loadBalancer,omitempty"`
	IPFamilies        string                  `json:"ipFamilies,omitempty"`
	Canonical         bool                    `json:"canonical,omitempty"`
	Visibility        string                  `json:"visibility"`
}

type certJSON struct {
	PEM            string `json:"pem"`
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

type certificateJSON struct {
	Identity  string     `json:"identity"`
	State     string     `json:"state"`
	CertChain []certJSON `json:"certChain"`
	RootCerts []certJSON `json:"rootCerts"`
}

type connJSON struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

type podStateJSON struct {
	State       string `json:"state"`
	Connections struct {
		Inbound  []connJSON `json:"inbound"`
		Outbound []connJSON `json:"outbound"`
	} `json:"connections"`
	Info struct {
		Name           string `json:"name"`
		Namespace      string `json:"namespace"`
		ServiceAccount string `json:"serviceAccount"`
	} `json:"info"`
}

func (n *Node) dump() *dump {
	s := n.cfg.Store.Load()
	d := &dump{
		Workloads: []workloadJSON{}, Services: []serviceJSON{}, Policies: []policyJSON{},
		StagedServices: map[string]any{},
		StaticConfig:   map[string]any{"workloads": []any{}, "policies": []any{}, "services": []any{}},
		Version: map[string]string{
			"version": n.cfg.Version, "gitRevision": "", "rustVersion": runtime.Version(), "buildProfile": "release",
			"buildStatus": "Clean", "istioVersion": n.cfg.Version, "cryptoProvider": "go",
		},
		Config: n.cfg.DumpConfig, Certificates: []certificateJSON{}, WorkloadState: map[string]podStateJSON{},
	}
	for w := range s.AllWorkloads() {
		d.Workloads = append(d.Workloads, dumpWorkload(w))
	}
	slices.SortFunc(d.Workloads, func(a, b workloadJSON) int { return cmp.Compare(a.UID, b.UID) })
	for v := range s.AllServices() {
		d.Services = append(d.Services, dumpService(s, v))
	}
	slices.SortFunc(d.Services, func(a, b serviceJSON) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Namespace, b.Namespace))
	})
	for p := range s.AllPolicies() {
		d.Policies = append(d.Policies, dumpPolicy(p))
	}
	slices.SortFunc(d.Policies, func(a, b policyJSON) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	if n.cfg.CertStates != nil {
		for _, c := range n.cfg.CertStates() {
			d.Certificates = append(d.Certificates, certificateJSON{
				c.ID.String(), c.State, dumpCerts(c.Chain), dumpCerts(c.Roots)})
		}
	}
	n.do(func(set *podSet) {
		for uid, p := range set.pods {
			d.WorkloadState[uid] = n.dumpPod("Up", p.live)
		}
		for uid, p := range set.failed {
			d.WorkloadState[uid] = n.dumpPod("Pending", &live.Pod{
				UID: uid, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount})
		}
	})
	return d
}

func (n *Node) dumpPod(state string, p *live.Pod) podStateJSON {
	out := podStateJSON{State: state}
	out.Info.Name, out.Info.Namespace, out.Info.ServiceAccount = p.Name, p.Namespace, p.ServiceAccount
	out.Connections.Inbound, out.Connections.Outbound = []connJSON{}, []connJSON{}
	for _, c := range n.table.Connections(p) {
		j := connJSON{c.Src.String(), c.Original.String(), c.Actual.String(), c.Protocol}
		if c.Reporter == live.Source {
			out.Connections.Outbound = append(out.Connections.Outbound, j)
		} else {
			out.Connections.Inbound = append(out.Connections.Inbound, j)
		}
	}
	return out
}

func dumpGateway(g *mesh.GatewayAddress) *gatewayJSON {
	if g == nil {
		return nil
	}
	d := g.Namespace + "/" + g.Hostname
	if g.Hostname == "" {
		d = g.Address.Network + "/" + g.Address.Prefix.Addr().String()
	}
	return &gatewayJSON{d, g.HBONEPort}
}

func dumpWorkload(w *mesh.Workload) workloadJSON {
	out := workloadJSON{
		WorkloadIPs: w.Addresses, Waypoint: dumpGateway(w.Waypoint), NetworkGateway: dumpGateway(w.NetworkGateway),
		Protocol: w.Protocol.String(), NetworkMode: "Standard", UID: w.UID, Name: w.Name, Namespace: w.Namespace,
		TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount, Network: w.Network, WorkloadName: w.WorkloadName,
		WorkloadType:  [...]string{"deployment", "cronjob", "pod", "job"}[min(w.Type, mesh.TypeJob)],
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision, Hostname: w.Hostname, Node: w.Node,
		NativeTunnel: w.NativeTunnel, AuthorizationPolicies: w.Policies, Status: dumpHealth(w.Health),
		ClusterID: cmp.Or(w.ClusterID, live.DefaultCluster), Capacity: 1,
	}
	if out.WorkloadIPs == nil {
		out.WorkloadIPs = []netip.Addr{}
	}
	if w.HostNetwork {
		out.NetworkMode = "HostNetwork"
	}
	if w.AppTunnel != nil {
		out.ApplicationTunnel = &tunnelJSON{"NONE", w.AppTunnel.Port}
		if w.AppTunnel.Proxy {
			out.ApplicationTunnel.Protocol = "PROXY"
		}
	}
	if w.Locality != (mesh.Locality{}) {
		out.Locality = &localityJSON{w.Locality.Region, w.Locality.Zone, w.Locality.Subzone}
	}
	if w.Capacity != nil {
		out.Capacity = *w.Capacity
	}
	for key := range w.Services {
		out.Services = append(out.Services, key)
	}
	slices.Sort(out.Services)
	return out
}

func dumpHealth(h mesh.Health) string {
	if h == mesh.Healthy {
		return "Healthy"
	}
	return "Unhealthy"
}

func dumpService(s *mesh.Snapshot, v *mesh.Service) serviceJSON {
	out := serviceJSON{
		Name: v.Name, Namespace: v.Namespace, Hostname: v.Hostname, VIPs: []string{},
		Ports: dumpPorts(v.Ports), Endpoints: map[string]endpointJSON{}, SubjectAltNames: v.SubjectAltNames,
		Waypoint: dumpGateway(v.Waypoint), Canonical: v.Canonical, Visibility: "Public",
		IPFamilies: [...]string{"", "IPv4", "IPv6", "Dual"}[min(v.IPFamilies, mesh.FamiliesDual)],
	}
	if v.NamespaceOnly {
		out.Visibility = "Namespace"
	}
	for _, a := range v.Addresses {
		if a.IsSingle() {
			out.VIPs = append(out.VIPs, a.Network+"/"+a.Prefix.Addr().String())
		} else {
			out.CIDRVIPs = append(out.CIDRVIPs, cidrJSON{a.Network, a.Prefix.String()})
		}
	}
	for _, e := range s.Endpoints(v.Key()) {
		out.Endpoints[e.Workload.UID] = endpointJSON{e.Workload.UID, dumpPorts(e.Ports), dumpHealth(e.Workload.Health)}
	}
	for i := range v.Weighted {
		out.WeightedWaypoints = append(out.WeightedWaypoints,
			weightedJSON{*dumpGateway(&v.Weighted[i].Destination), v.Weighted[i].Weight})
	}
	if lb := v.LoadBalancing; lb.Mode != mesh.ModeUnspecified || len(lb.Preference) > 0 || lb.AllowAll {
		out.LoadBalancer = &balancerJSON{RoutingPreferences: []string{}, HealthPolicy: "OnlyHealthy",
			Mode: [...]string{"Standard", "Strict", "Failover", "Passthrough"}[min(lb.Mode, mesh.ModePassthrough)]}
		if lb.AllowAll {
			out.LoadBalancer.HealthPolicy = "AllowAll"
		}
		for _, p := range lb.Preference {
			out.LoadBalancer.RoutingPreferences = append(out.LoadBalancer.RoutingPreferences,
				[...]string{"", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"}[min(p, mesh.ScopeNetwork)])
		}
	}
	return out
}

func dumpPorts(ports []mesh.Port) map[string]uint16 {
	out := map[string]uint16{}
	for _, p := range ports {
		out[strconv.Itoa(int(p.ServicePort))] = p.TargetPort
	}
	return out
}

func dumpCerts(certs []*x509.Certificate) []certJSON {
	out := []certJSON{}
	for _, c := range certs {
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		out = append(out, certJSON{base64.StdEncoding.EncodeToString(block), c.SerialNumber.String(),
			c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339)})
	}
	return out
}
