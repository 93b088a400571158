package egress

import (
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// ByName finds the service that a TLS client in namespace reaches on port by a
// server name: one that is registered by exactly this host, else by the most
// specific wildcard. Services of the cluster itself, whose names end with
// .svc.<domain>, are known by their addresses and by nothing else: a name alone
// would let anybody pass for them. Nor are ports of plain HTTP.
func ByName(s *mesh.Snapshot, namespace, domain, name string, port uint16) *mesh.Service {
	if strings.HasSuffix(name, ".svc."+domain) {
		return nil
	}
	if v := visible(s, namespace, name, port); v != nil {
		return v
	}
	for {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			return nil
		}
		if v := visible(s, namespace, "*."+rest, port); v != nil {
			return v
		}
		name = rest
	}
}

// visible is the service of a host that serves TLS on port: of several the
// client's own namespace's, then a canonical one.
func visible(s *mesh.Snapshot, namespace, host string, port uint16) *mesh.Service {
	var best *mesh.Service
	rank := -1
	for _, v := range s.ServicesNamed(host) {
		if v.NamespaceOnly && v.Namespace != namespace || !servesTLS(v, port) {
			continue
		}
		n := 0
		switch {
		case v.Namespace == namespace:
			n = 2
		case v.Canonical:
			n = 1
		}
		if n > rank {
			best, rank = v, n
		}
	}
	return best
}

func servesTLS(v *mesh.Service, port uint16) bool {
	for _, p := range v.Ports {
		if p.ServicePort == port {
			return p.AppProtocol != mesh.AppHTTP11 && p.AppProtocol != mesh.AppHTTP2 && p.AppProtocol != mesh.AppGRPC
		}
	}
	return false
}

// Serves reports whether a service lists a port, or none at all.
func Serves(v *mesh.Service, port uint16) bool {
	for _, p := range v.Ports {
		if p.ServicePort == port {
			return true
		}
	}
	return len(v.Ports) == 0
}
