package mesh

import (
	"iter"
	"net/netip"
	"strings"
)

// Snapshot is the state of the mesh at one version. It never changes; readers
// need no lock and see one moment of truth for all decisions of a connection.
type Snapshot struct {
	version uint64
	token   *byte   // identity of this snapshot in a line of builds, see Changes
	parent  *byte   // token of the base it was built from
	touched Changes // names that differ from the base

	workloads table[string, *Workload]
	byAddr    table[addrKey, []*Workload] // best candidate first
	byName    table[nameKey, []*Workload] // pod name within its namespace
	onNode    table[addrKey, int]         // how many workloads on their node's network have the address
	hosted    table[nameKey, []*Workload] // host name within its namespace, of those that have one
	services  table[string, *Service]
	byHost    table[string, []*Service]   // sorted by key
	byVIP     table[vipKey, []*Service]   // sorted by key
	prefixes  table[prefixLen, int]       // how many services use a CIDR VIP of this length
	lengths   []prefixLen                 // keys of prefixes, longest first
	endpoints table[string, *endpointSet] // by service key, kept also while the service is unknown
	policies  table[string, *Policy]      //
	inNS      table[string, []*Policy]    // ScopeNamespace, sorted by key
	global    []*Policy                   // ScopeGlobal, sorted by key
	settings  *Settings                   // nil: nobody has said
}

type addrKey struct {
	network string
	addr    netip.Addr
}

type nameKey struct{ namespace, name string }

type vipKey struct {
	network string
	prefix  netip.Prefix
}

// prefixLen is one length of CIDR VIPs in one address family.
type prefixLen struct {
	bits int
	v6   bool
}

// Endpoint is one workload behind a service, with its own port mapping.
type Endpoint struct {
	Workload *Workload
	Ports    []Port
}

// endpointSet holds the endpoints of a service, sorted by workload UID.
type endpointSet struct {
	all     []Endpoint
	healthy []Endpoint // shares all when every endpoint is healthy
}

// Version counts the builds that led to s.
func (s *Snapshot) Version() uint64 { return s.version }

// Workload returns the workload with that UID, or nil.
func (s *Snapshot) Workload(uid string) *Workload {
	w, _ := s.workloads.get(uid)
	return w
}

// WorkloadAt returns the workload that owns a in network. Workloads on their
// node's own network are not found: many share one address. Among several, a
// pod with HBONE wins, then a pod, then anything with HBONE, then the lowest
// UID.
func (s *Snapshot) WorkloadAt(network string, a netip.Addr) *Workload {
	c, _ := s.byAddr.get(addrKey{network, a.Unmap()})
	if len(c) == 0 {
		return nil
	}
	return c[0]
}

// LocalWorkload returns the workload of that pod if it runs on node and under
// serviceAccount; an empty node means any.
func (s *Snapshot) LocalWorkload(node, namespace, name, serviceAccount string) *Workload {
	c, _ := s.byName.get(nameKey{namespace, name})
	for _, w := range c {
		if (node == "" || w.Node == node) && w.Identity().ServiceAccount == orDefault(serviceAccount) {
			return w
		}
	}
	return nil
}

// WorkloadByHostname returns the workload of a namespace that has that host name,
// or nil; of several the one with the lowest UID.
func (s *Snapshot) WorkloadByHostname(namespace, hostname string) *Workload {
	c, _ := s.hosted.get(nameKey{namespace, hostname})
	if len(c) == 0 {
		return nil
	}
	return c[0]
}

func orDefault(serviceAccount string) string {
	if serviceAccount == "" {
		return "default"
	}
	return serviceAccount
}

// Service returns the service <namespace>/<hostname> whatever its visibility,
// or nil.
func (s *Snapshot) Service(key string) *Service {
	v, _ := s.services.get(key)
	return v
}

// ServiceAt returns the service that a client in clientNamespace means by the
// virtual address a: of those visible to it, one in its own namespace, else a
// canonical one, else the lowest key. Only when no exact virtual address
// matches, CIDR ones do: own namespace first, then the longest prefix, then
// canonical.
func (s *Snapshot) ServiceAt(network string, a netip.Addr, clientNamespace string) *Service {
	a = a.Unmap()
	c, _ := s.byVIP.get(vipKey{network, netip.PrefixFrom(a, a.BitLen())})
	if best := pickService(c, clientNamespace); best != nil {
		return best
	}
	var best *Service
	for _, l := range s.lengths {
		if l.v6 != a.Is6() {
			continue
		}
		p, err := a.Prefix(l.bits)
		if err != nil {
			continue
		}
		c, _ := s.byVIP.get(vipKey{network, p})
		v := pickService(c, clientNamespace)
		if v == nil {
			continue
		}
		if v.Namespace == clientNamespace {
			return v // lengths descend: nothing later can rank higher
		}
		if best == nil {
			best = v
		}
	}
	return best
}

// ServiceByHostname returns the service that a client in clientNamespace means
// by host, ranked like ServiceAt.
func (s *Snapshot) ServiceByHostname(host, clientNamespace string) *Service {
	c, _ := s.byHost.get(host)
	return pickService(c, clientNamespace)
}

// pickService ranks candidates, which are sorted by key.
func pickService(candidates []*Service, clientNamespace string) *Service {
	var best *Service
	rank := -1
	for _, c := range candidates {
		r := 0
		switch {
		case c.Namespace == clientNamespace && c.Canonical:
			r = 3
		case c.Namespace == clientNamespace:
			r = 2
		case c.NamespaceOnly:
			continue
		case c.Canonical:
			r = 1
		}
		if r > rank {
			best, rank = c, r
		}
	}
	return best
}

// Endpoints returns the workloads behind a service, sorted by UID: the healthy
// ones, or all when the service asks for that. Nil when the service is not
// known, even if workloads already name it. The result must not be modified.
func (s *Snapshot) Endpoints(serviceKey string) []Endpoint {
	v, ok := s.services.get(serviceKey)
	if !ok {
		return nil
	}
	set, ok := s.endpoints.get(serviceKey)
	if !ok {
		return nil
	}
	if v.LoadBalancing.AllowAll {
		return set.all
	}
	return set.healthy
}

// Members are the workloads that name a service, whether they are healthy or not,
// sorted by UID. The result must not be modified.
func (s *Snapshot) Members(serviceKey string) []Endpoint {
	set, ok := s.endpoints.get(serviceKey)
	if !ok {
		return nil
	}
	return set.all
}

// Policy returns the policy <namespace>/<name>, or nil.
func (s *Snapshot) Policy(key string) *Policy {
	p, _ := s.policies.get(key)
	return p
}

// GlobalPolicies returns the policies of ScopeGlobal, sorted by key.
func (s *Snapshot) GlobalPolicies() []*Policy { return s.global }

// NamespacePolicies returns the policies of ScopeNamespace in ns, sorted by
// key.
func (s *Snapshot) NamespacePolicies(ns string) []*Policy {
	p, _ := s.inNS.get(ns)
	return p
}

// AllWorkloads visits every workload in no particular order.
func (s *Snapshot) AllWorkloads() iter.Seq[*Workload] { return s.workloads.values() }

// AllServices visits every service in no particular order.
func (s *Snapshot) AllServices() iter.Seq[*Service] { return s.services.values() }

// AllPolicies visits every policy in no particular order.
func (s *Snapshot) AllPolicies() iter.Seq[*Policy] { return s.policies.values() }

// Len counts what s holds.
func (s *Snapshot) Len() (workloads, services, policies int) {
	return s.workloads.n, s.services.n, s.policies.n
}

// addrRank orders workloads that claim one address, higher first.
func addrRank(w *Workload) int {
	pod := strings.Contains(w.UID, "//Pod/")
	switch {
	case pod && w.Protocol == ProtocolHBONE:
		return 3
	case pod:
		return 2
	case w.Protocol == ProtocolHBONE:
		return 1
	}
	return 0
}
