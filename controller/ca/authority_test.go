package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/hbone/identity"
)

var web = identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

func newCSR(t testing.TB, names ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.CertificateRequest{}
	for _, n := range names {
		u, err := url.Parse(n)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return encodePEM("CERTIFICATE REQUEST", der)
}

func newAuthority(t testing.TB, ttl time.Duration) *Authority {
	t.Helper()
	a, err := NewSelfSigned("cluster.local", ttl)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func leafOf(t testing.TB, chain []string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(chain[0]))
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

//ambit:feature identity-scope identity-clock
func TestSignGivesTheVerifiedIdentityOnly(t *testing.T) {
	a := newAuthority(t, RootTTL)
	chain, err := a.Sign(newCSR(t, "spiffe://cluster.local/ns/kube-system/sa/admin"), web, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 || chain[1] != string(a.RootPEM()) || !strings.HasSuffix(chain[0], "-----END CERTIFICATE-----\n") {
		t.Fatalf("chain of %d: %q", len(chain), chain)
	}
	leaf := leafOf(t, chain)
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != web.String() || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		t.Errorf("names %v %v", leaf.URIs, leaf.DNSNames)
	}
	if leaf.IsCA || leaf.Subject.String() != "" {
		t.Errorf("CA %v, subject %q", leaf.IsCA, leaf.Subject)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.RootPEM())
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Errorf("use %v: %v", use, err)
		}
	}
	if d := time.Until(leaf.NotAfter); d > MaxTTL || d < MaxTTL-time.Minute {
		t.Errorf("lives for %v", d)
	}
	if !leaf.NotBefore.Before(time.Now().Add(-time.Minute)) {
		t.Errorf("not backdated: %v", leaf.NotBefore)
	}
}

func TestSignRefuses(t *testing.T) {
	a := newAuthority(t, RootTTL)
	good := newCSR(t)
	block, _ := pem.Decode(good)
	forged := append([]byte(nil), block.Bytes...)
	forged[len(forged)-3] ^= 1
	cases := []struct {
		name string
		csr  []byte
		id   identity.ID
		ttl  time.Duration
		want error
		text string
	}{
		{"empty", nil, web, 0, ErrCSR, "no CERTIFICATE REQUEST"},
		{"garbage", []byte("hello"), web, 0, ErrCSR, "no CERTIFICATE REQUEST"},
		{"certificate instead", a.RootPEM(), web, 0, ErrCSR, "no CERTIFICATE REQUEST"},
		{"broken DER", encodePEM("CERTIFICATE REQUEST", []byte{0x30, 0x03}), web, 0, ErrCSR, "asn1"},
		{"key not held", encodePEM("CERTIFICATE REQUEST", forged), web, 0, ErrCSR, "signature"},
		{"too large", make([]byte, maxCSR+1), web, 0, ErrCSR, "at most"},
		{"too long", good, web, MaxTTL + time.Second, ErrTTL, "24h0m1s"},
		{"nobody", good, identity.ID{}, 0, nil, "no identity"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := a.Sign(c.csr, c.id, c.ttl)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v", err)
			}
		})
	}
}

func TestLeafNeverOutlivesItsIssuers(t *testing.T) {
	a := newAuthority(t, time.Hour)
	chain, err := a.Sign(newCSR(t), web, MaxTTL)
	if err != nil {
		t.Fatal(err)
	}
	if leaf := leafOf(t, chain); leaf.NotAfter.After(a.issuer.NotAfter) {
		t.Fatalf("leaf until %v, issuer until %v", leaf.NotAfter, a.issuer.NotAfter)
	}
}

func TestExpiredAuthoritySignsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, time.Hour)
		csr := newCSR(t)
		time.Sleep(2 * time.Hour) // fake time
		if _, err := a.Sign(csr, web, 0); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Fatalf("error %v", err)
		}
		if _, err := Load("ambit-ca-secret", a.SecretData()); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Fatalf("error %v", err)
		}
	})
}

func TestServerCertificateIsRenewedAtHalfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, RootTTL)
		get := func() *tls.Certificate {
			c, err := a.ServerCertificate("ambit-controller.ambit-system.svc")
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		first := get()
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(a.RootPEM())
		if _, err := first.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "ambit-controller.ambit-system.svc"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Hour)
		if get() != first {
			t.Error("renewed too early")
		}
		time.Sleep(2 * time.Hour)
		if get() == first {
			t.Error("not renewed")
		}
		if _, err := a.ServerCertificate(); err == nil {
			t.Error("a certificate without names")
		}
	})
}

// plugged makes a Secret as a user of cacerts would: root, intermediate,
// issuer.
func plugged(t *testing.T) map[string][]byte {
	t.Helper()
	make1 := func(cn string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(48 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		if parent == nil {
			parent, parentKey = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, key
	}
	root, rootKey := make1("root", nil, nil)
	middle, middleKey := make1("middle", root, rootKey)
	issuer, issuerKey := make1("issuer", middle, middleKey)
	der, err := x509.MarshalECPrivateKey(issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	join := func(certs ...*x509.Certificate) (out []byte) {
		for _, c := range certs {
			out = append(out, encodePEM("CERTIFICATE", c.Raw)...)
		}
		return out
	}
	return map[string][]byte{
		KeyCACert: join(issuer), KeyCAKey: encodePEM("EC PRIVATE KEY", der),
		KeyCertChain: join(issuer, middle, root), KeyRootCert: join(root),
	}
}

//ambit:feature identity-plugged-in
func TestPluggedInAuthority(t *testing.T) {
	a, err := Load("cacerts", plugged(t))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign(newCSR(t), web, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 4 { // leaf, issuer, middle, root
		t.Fatalf("chain of %d", len(chain))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(chain[3]))
	between.AppendCertsFromPEM([]byte(chain[1]))
	between.AppendCertsFromPEM([]byte(chain[2]))
	if _, err := leafOf(t, chain).Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		t.Fatal(err)
	}
	again, err := Load("cacerts", a.SecretData())
	if err != nil || again.Fingerprint() != a.Fingerprint() {
		t.Fatalf("saved and loaded: %v", err)
	}
}

//ambit:feature identity-secret-damaged
func TestLoadNamesSecretAndKey(t *testing.T) {
	other := newAuthority(t, RootTTL).SecretData()
	cases := []struct {
		name   string
		change func(map[string][]byte)
		want   string
	}{
		{"no certificate", func(d map[string][]byte) { delete(d, KeyCACert) }, "secret cacerts: key ca-cert.pem: missing"},
		{"no key", func(d map[string][]byte) { delete(d, KeyCAKey) }, "secret cacerts: key ca-key.pem: missing"},
		{"certificate is text", func(d map[string][]byte) { d[KeyCACert] = []byte("x") }, "key ca-cert.pem: not PEM"},
		{"key is text", func(d map[string][]byte) { d[KeyCAKey] = []byte("x") }, "key ca-key.pem: not PEM"},
		{"key where certificate belongs", func(d map[string][]byte) { d[KeyCACert] = d[KeyCAKey] }, "key ca-cert.pem: holds a EC PRIVATE KEY"},
		{"encrypted key", func(d map[string][]byte) { d[KeyCAKey] = encodePEM("ENCRYPTED PRIVATE KEY", []byte{1}) }, "key ca-key.pem: holds a ENCRYPTED"},
		{"key of another", func(d map[string][]byte) { d[KeyCAKey] = other[KeyCAKey] }, "key ca-key.pem: does not belong"},
		{"root of another", func(d map[string][]byte) { d[KeyRootCert] = other[KeyRootCert] }, "key cert-chain.pem: does not lead"},
		{"chain is cut", func(d map[string][]byte) { d[KeyCertChain] = nil }, "key cert-chain.pem: does not lead"},
		{"no root", func(d map[string][]byte) { d[KeyRootCert] = nil }, "key root-cert.pem: missing"},
		{"trailing garbage", func(d map[string][]byte) { d[KeyRootCert] = append(d[KeyRootCert], "tail"...) }, "key root-cert.pem: not PEM"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := plugged(t)
			c.change(d)
			if _, err := Load("cacerts", d); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
		})
	}
	if _, err := Load("cacerts", nil); err == nil || !strings.Contains(err.Error(), "ca-cert.pem") || !strings.Contains(err.Error(), "ca-key.pem") {
		t.Fatalf("not all problems at once: %v", err)
	}
}

func FuzzSign(f *testing.F) {
	a, err := NewSelfSigned("cluster.local", RootTTL)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(newCSR(f))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, csr []byte) {
		chain, err := a.Sign(csr, web, 0)
		if err == nil && leafOf(t, chain).URIs[0].String() != web.String() {
			t.Fatal("signed for somebody else")
		}
	})
}
