package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Keys of a CA Secret, as in Istio's istio-ca-secret and cacerts.
const (
	KeyCACert    = "ca-cert.pem"    // the issuer
	KeyCAKey     = "ca-key.pem"     // its private key
	KeyCertChain = "cert-chain.pem" // the issuer and what is above it; may be absent when the issuer is a root
	KeyRootCert  = "root-cert.pem"  // trust anchors; absent means the issuer itself
)

// ErrExpired marks a CA whose time is over.
var ErrExpired = errors.New("issuing chain expired")

// Load makes an authority from the data of the Secret called name. Its errors
// name the Secret and the key at fault, all of them at once.
func Load(name string, data map[string][]byte) (*Authority, error) {
	l := loader{secret: name, data: data}
	issuers := l.certificates(KeyCACert, true)
	key := l.privateKey()
	chain := l.certificates(KeyCertChain, false)
	roots := l.certificates(KeyRootCert, false)
	if len(l.errs) > 0 {
		return nil, errors.Join(l.errs...)
	}
	issuer := issuers[0]
	if len(roots) == 0 {
		if !selfSigned(issuer) {
			l.fail(KeyRootCert, errors.New("missing, and the issuer is not self-signed"))
			return nil, errors.Join(l.errs...)
		}
		roots = []*x509.Certificate{issuer}
	}
	a := &Authority{issuer: issuer, key: key, roots: roots, pem: make(map[string][]byte), servers: make(map[string]*tls.Certificate)}
	for _, k := range []string{KeyCACert, KeyCAKey, KeyCertChain, KeyRootCert} {
		a.pem[k] = bytes.Clone(data[k])
	}
	if !isAnchor(roots, issuer) {
		a.chain = append(a.chain, issuer)
	}
	for _, c := range chain {
		if !c.Equal(issuer) && !isAnchor(roots, c) {
			a.chain = append(a.chain, c)
		}
	}
	l.check(a)
	if len(l.errs) > 0 {
		return nil, errors.Join(l.errs...)
	}
	return a, nil
}

func isAnchor(roots []*x509.Certificate, c *x509.Certificate) bool {
	for _, r := range roots {
		if r.Equal(c) {
			return true
		}
	}
	return false
}

func selfSigned(c *x509.Certificate) bool { return c.CheckSignatureFrom(c) == nil }

// loader collects what is wrong with one Secret.
type loader struct {
	secret string
	data   map[string][]byte
	errs   []error
}

func (l *loader) fail(key string, err error) {
	l.errs = append(l.errs, fmt.Errorf("secret %s: key %s: %w", l.secret, key, err))
}

func (l *loader) certificates(key string, needed bool) []*x509.Certificate {
	text := bytes.TrimSpace(l.data[key])
	if len(text) == 0 {
		if needed {
			l.fail(key, errors.New("missing"))
		}
		return nil
	}
	out, err := parseCertificates(text)
	if err != nil {
		l.fail(key, err)
		return nil
	}
	return out
}

// parseCertificates reads PEM blocks, of which there must be one at least.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	rest := bytes.TrimSpace(text)
	var out []*x509.Certificate
	for len(rest) > 0 {
		block, more := pem.Decode(rest)
		if block == nil {
			return nil, errors.New("not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s, want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out, rest = append(out, c), bytes.TrimSpace(more)
	}
	if len(out) == 0 {
		return nil, errors.New("empty")
	}
	return out, nil
}

func (l *loader) privateKey() crypto.Signer {
	if len(l.data[KeyCAKey]) == 0 {
		l.fail(KeyCAKey, errors.New("missing"))
		return nil
	}
	block, _ := pem.Decode(l.data[KeyCAKey])
	if block == nil {
		l.fail(KeyCAKey, errors.New("not PEM"))
		return nil
	}
	key, err := parseKey(block)
	if err != nil {
		l.fail(KeyCAKey, err)
		return nil
	}
	return key
}

func parseKey(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("holds a %s, want an unencrypted private key", block.Type)
	}
	if err != nil {
		return nil, err
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return s, nil
}

// check verifies that the parts belong together.
func (l *loader) check(a *Authority) {
	if !a.issuer.IsCA || a.issuer.KeyUsage != 0 && a.issuer.KeyUsage&x509.KeyUsageCertSign == 0 {
		l.fail(KeyCACert, errors.New("is not a CA certificate"))
	}
	if pub, ok := a.key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(a.issuer.PublicKey) {
		l.fail(KeyCAKey, fmt.Errorf("does not belong to the certificate in %s", KeyCACert))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range a.roots {
		roots.AddCert(r)
	}
	for _, c := range a.chain {
		between.AddCert(c)
	}
	ways, err := a.issuer.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	// Not yet valid is another trouble: there a clock is wrong, and waiting helps.
	if over := (x509.CertificateInvalidError{}); errors.As(err, &over) && over.Reason == x509.Expired && time.Now().After(over.Cert.NotAfter) {
		l.fail(KeyCACert, fmt.Errorf("%w at %s", ErrExpired, over.Cert.NotAfter.UTC().Format(time.RFC3339)))
		return
	}
	if err != nil {
		l.fail(KeyCertChain, fmt.Errorf("does not lead from %s to %s: %w", KeyCACert, KeyRootCert, err))
	}
	a.end = wayEnd(ways)
	if len(l.errs) > 0 {
		return
	}
	if err := a.try(roots, between); err != nil {
		l.fail(KeyCertChain, fmt.Errorf("no peer would accept a certificate of it: %w", err))
	}
}

// try signs a certificate and verifies it as peers do: that the issuer itself
// is good says nothing of path lengths and key usages above it.
func (a *Authority) try(roots, between *x509.CertPool) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := a.issue(key.Public(), &x509.Certificate{}, time.Minute)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return err
		}
	}
	return nil
}
