// Package identity owns who a workload is on the wire: the SPIFFE ID, where
// its certificates come from, and how a peer's certificate is verified.
//
// Peers are verified with crypto/x509 and a SPIFFE check of our own, not with go-spiffe.
// What decides: roots arrive as one pool, not as a bundle per trust domain;
// the extended key usage must be enforced, which go-spiffe leaves out; a leaf may carry
// several URI SANs, as Istio's ztunnel allows; and each refusal needs a
// cause that go-spiffe's errors do not keep apart.
package identity

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// DefaultTrustDomain is the trust domain meant when none is named, as in
// Istio's workload API (an empty Workload.trust_domain).
const DefaultTrustDomain = "cluster.local"

// ID is a workload identity. It is comparable; the zero ID means "nobody".
// Its wire form is spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
type ID struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// Parse reads the SPIFFE form strictly: exactly the four named parts, none
// empty. It returns an error naming the input otherwise.
func Parse(s string) (ID, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return ID{}, fmt.Errorf("identity %q: scheme is not spiffe", s)
	}
	p := strings.Split(rest, "/")
	if len(p) != 5 || p[1] != "ns" || p[3] != "sa" || p[0] == "" || p[2] == "" || p[4] == "" {
		return ID{}, fmt.Errorf("identity %q: not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>", s)
	}
	return ID{TrustDomain: p[0], Namespace: p[2], ServiceAccount: p[4]}, nil
}

// String is the SPIFFE URI, or "" for the zero ID.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return "spiffe://" + id.Principal()
}

// Principal is the SPIFFE URI without its scheme, the form AuthorizationPolicy
// principals are compared with. It is "" for the zero ID.
func (id ID) Principal() string {
	if id.IsZero() {
		return ""
	}
	return id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// URL is the form an x509 URI SAN carries.
func (id ID) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}
}

// IsZero reports whether id names nobody.
func (id ID) IsZero() bool { return id == ID{} }

// FromCertificate is the first URI SAN of cert that parses as an ID.
func FromCertificate(cert *x509.Certificate) (ID, error) {
	for _, u := range cert.URIs {
		if id, err := Parse(u.String()); err == nil {
			return id, nil
		}
	}
	return ID{}, fmt.Errorf("certificate serial %v: no SPIFFE URI among its %d URI SANs", cert.SerialNumber, len(cert.URIs))
}
