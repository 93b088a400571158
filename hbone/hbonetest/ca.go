// Package hbonetest owns what tests of HBONE need: a throw-away certificate
// authority and connected pairs.
package hbonetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// CA is a root that lives for one test.
type CA struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

// NewCA makes a CA.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber:          serial(t),
		Subject:               pkix.Name{Organization: []string{"hbonetest"}, CommonName: t.Name()},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &CA{t: t, key: key, cert: cert, pool: pool}
}

// Roots is a pool of the CA's certificate alone.
func (ca *CA) Roots() *x509.CertPool { return ca.pool }

// Certificate is the CA's own.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Key signs for the CA.
func (ca *CA) Key() *ecdsa.PrivateKey { return ca.key }

// IssueOptions change what Issue makes from an ordinary certificate of a workload.
type IssueOptions struct {
	NotBefore, NotAfter time.Time // an hour ago, in an hour
	URIs                []string  // instead of the identity's
	Usages              []x509.ExtKeyUsage
	IsCA                bool
}

// Issue signs a certificate for id.
func (ca *CA) Issue(id identity.ID, o IssueOptions) tls.Certificate {
	ca.t.Helper()
	key := newKey(ca.t)
	tmpl := &x509.Certificate{
		SerialNumber:          serial(ca.t),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  o.IsCA,
	}
	if !o.NotBefore.IsZero() {
		tmpl.NotBefore = o.NotBefore
	}
	if !o.NotAfter.IsZero() {
		tmpl.NotAfter = o.NotAfter
	}
	if o.Usages != nil {
		tmpl.ExtKeyUsage = o.Usages
	}
	if !id.IsZero() {
		tmpl.URIs = []*url.URL{id.URL()}
	}
	if o.URIs != nil {
		tmpl.URIs = nil
		for _, s := range o.URIs {
			u, err := url.Parse(s)
			if err != nil {
				ca.t.Fatal(err)
			}
			tmpl.URIs = append(tmpl.URIs, u)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Source is an identity.Source with a certificate for each of ids.
func (ca *CA) Source(ids ...identity.ID) identity.Source {
	s := Source{Trust: ca.pool, Certs: map[identity.ID]*tls.Certificate{}}
	for _, id := range ids {
		c := ca.Issue(id, IssueOptions{})
		s.Certs[id] = &c
	}
	return s
}

// Source is an identity.Source of fixed certificates.
type Source struct {
	Trust *x509.CertPool
	Certs map[identity.ID]*tls.Certificate
	Asks  *identity.Terms // of peers
}

// Certificate implements identity.Source.
func (s Source) Certificate(_ context.Context, id identity.ID) (*tls.Certificate, error) {
	if c, ok := s.Certs[id]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("no certificate for %s", id)
}

// Roots implements identity.Source.
func (s Source) Roots() *x509.CertPool { return s.Trust }

// Terms implements identity.Source.
func (s Source) Terms() *identity.Terms { return s.Asks }

// ID is an identity of the test's trust domain.
func ID(name string) identity.ID {
	return identity.ID{TrustDomain: identity.DefaultTrustDomain, Namespace: "test", ServiceAccount: name}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
