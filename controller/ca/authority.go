package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/hbone/identity"
)

const (
	// MaxTTL of a leaf, and the lifetime when none is asked for.
	MaxTTL = 24 * time.Hour
	// RootTTL is the usual lifetime of a self-signed root.
	RootTTL = 10 * 365 * 24 * time.Hour
	// backdate tolerates clocks that are a little behind ours.
	backdate = 2 * time.Minute
	// maxCSR bounds what one request makes the server parse.
	maxCSR = 16 << 10
)

// ErrCSR marks a signing request at fault, as opposed to the authority.
var ErrCSR = errors.New("certificate signing request")

// ErrTTL marks a lifetime that is longer than allowed.
var ErrTTL = errors.New("requested lifetime")

// Authority signs workload certificates with one issuing key. It is immutable
// but for the controller's own certificates, which it renews on demand.
type Authority struct {
	issuer *x509.Certificate
	key    crypto.Signer
	chain  []*x509.Certificate // issuer upwards, without roots; empty when the issuer is the root
	roots  []*x509.Certificate
	end    time.Time // of the way from the issuer to a root that lasts longest
	pem    map[string][]byte

	mu      sync.Mutex
	servers map[string]*tls.Certificate // by DNS names, guarded by mu
}

// NewSelfSigned makes a root that signs leaves itself. The subject names the
// trust domain only for the reader; identities are SPIFFE URIs.
func NewSelfSigned(trustDomain string, ttl time.Duration) (*Authority, error) {
	if ttl <= 0 {
		return nil, fmt.Errorf("self-signed root for %s: lifetime %v is not positive", trustDomain, ttl)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("self-signed root for %s: %w", trustDomain, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("self-signed root for %s: %w", trustDomain, err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("self-signed root for %s: %w", trustDomain, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("self-signed root for %s: %w", trustDomain, err)
	}
	cert := encodePEM("CERTIFICATE", der)
	return Load("self-signed", map[string][]byte{
		KeyCACert: cert, KeyCAKey: encodePEM("PRIVATE KEY", keyDER), KeyCertChain: nil, KeyRootCert: cert,
	})
}

// Sign issues a certificate for the key of csrPEM and the identity id. Whatever
// names the CSR asks for are ignored. ttl 0 means MaxTTL; a leaf never outlives
// its issuers. The chain is leaf, intermediates, and the roots as the last
// element, each PEM.
func (a *Authority) Sign(csrPEM []byte, id identity.ID, ttl time.Duration) (chain []string, err error) {
	pub, err := publicKey(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("sign %v: %w", id, err)
	}
	if id.IsZero() {
		return nil, errors.New("sign: no identity")
	}
	switch {
	case ttl <= 0:
		ttl = MaxTTL
	case ttl > MaxTTL:
		return nil, fmt.Errorf("sign %v: %w %v is above the maximum %v", id, ErrTTL, ttl, MaxTTL)
	}
	der, err := a.issue(pub, &x509.Certificate{URIs: []*url.URL{id.URL()}}, ttl)
	if err != nil {
		return nil, fmt.Errorf("sign %v: %w", id, err)
	}
	chain = append(chain, string(encodePEM("CERTIFICATE", der)))
	for _, c := range a.chain {
		chain = append(chain, string(encodePEM("CERTIFICATE", c.Raw)))
	}
	return append(chain, string(a.RootPEM())), nil
}

// Fingerprint tells signers apart: by key, issuing chain and trust anchors,
// whatever the PEM around them looks like.
func (a *Authority) Fingerprint() string {
	h := sha256.New()
	for _, list := range [][]*x509.Certificate{{a.issuer}, a.chain, a.roots} {
		for _, c := range list {
			h.Write(c.Raw)
		}
		h.Write([]byte{0})
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:16]
}

// Roots are the signer's own trust anchors.
func (a *Authority) Roots() []*x509.Certificate { return a.roots }

// publicKey checks that whoever made the request holds the key in it.
func publicKey(csrPEM []byte) (crypto.PublicKey, error) {
	if len(csrPEM) > maxCSR {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrCSR, len(csrPEM), maxCSR)
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("%w: no CERTIFICATE REQUEST in PEM form", ErrCSR)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: signature: %w", ErrCSR, err)
	}
	return csr.PublicKey, nil
}

// issue signs tmpl's names for pub.
func (a *Authority) issue(pub crypto.PublicKey, tmpl *x509.Certificate, ttl time.Duration) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	end := a.expiry()
	if !now.Before(end) {
		return nil, fmt.Errorf("%w at %s", ErrExpired, end.UTC().Format(time.RFC3339))
	}
	tmpl.SerialNumber = serial
	tmpl.NotBefore = now.Add(-backdate)
	if a.issuer.NotBefore.After(tmpl.NotBefore) {
		tmpl.NotBefore = a.issuer.NotBefore
	}
	tmpl.NotAfter = now.Add(ttl)
	if tmpl.NotAfter.After(end) {
		tmpl.NotAfter = end
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	tmpl.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, tmpl, a.issuer, pub, a.key)
}

// expiry is when what is issued leads to no root any more. Of several roots
// those that the issuer is not of do not count: they are there for overlap.
func (a *Authority) expiry() time.Time { return a.end }

// wayEnd is when the last of several ways to a root ends, which is when the
// first certificate on it does.
func wayEnd(ways [][]*x509.Certificate) (last time.Time) {
	for _, way := range ways {
		end := way[0].NotAfter
		for _, c := range way[1:] {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(last) {
			last = end
		}
	}
	return last
}

// RootPEM is the trust anchors, one PEM block each.
func (a *Authority) RootPEM() []byte { return certificatesPEM(a.roots) }

func certificatesPEM(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, encodePEM("CERTIFICATE", c.Raw)...)
	}
	return out
}

// Expiry reports the ends of the root and of the issuing chain.
func (a *Authority) Expiry() (root, chain time.Time) {
	root = a.roots[0].NotAfter
	for _, r := range a.roots[1:] {
		if r.NotAfter.After(root) {
			root = r.NotAfter
		}
	}
	return root, a.expiry()
}

// SecretData is the content of a CA Secret that Load turns into an equal
// authority.
func (a *Authority) SecretData() map[string][]byte {
	out := make(map[string][]byte, len(a.pem))
	for k, v := range a.pem {
		out[k] = slices.Clone(v)
	}
	return out
}

// ServerCertificate is a certificate for the controller's own TLS. It is made
// anew when half of its life is over; ask per handshake.
func (a *Authority) ServerCertificate(dnsNames ...string) (*tls.Certificate, error) {
	name := strings.Join(dnsNames, ",")
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.servers[name]; c != nil {
		half := c.Leaf.NotBefore.Add(c.Leaf.NotAfter.Sub(c.Leaf.NotBefore) / 2)
		if time.Now().Before(half) {
			return c, nil
		}
	}
	c, err := a.newServerCertificate(dnsNames)
	if err != nil {
		return nil, fmt.Errorf("server certificate for %s: %w", name, err)
	}
	a.servers[name] = c
	return c, nil
}

func (a *Authority) newServerCertificate(dnsNames []string) (*tls.Certificate, error) {
	if len(dnsNames) == 0 {
		return nil, errors.New("no DNS name")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := a.issue(key.Public(), &x509.Certificate{DNSNames: dnsNames}, MaxTTL)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	for _, i := range a.chain {
		c.Certificate = append(c.Certificate, i.Raw)
	}
	return c, nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
