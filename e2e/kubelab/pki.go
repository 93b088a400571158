package kubelab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is a cluster's certificates, as files below dir. One authority for
// everything, a second for the front proxy, whose clients the API server must
// not take for its own.
type pki struct {
	dir   string
	ca    *authority
	front *authority
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// validity is long enough for any run and short enough to be worthless later.
const validity = 10 * 24 * time.Hour

func newPKI(state string, nodes int) (*pki, error) {
	p := &pki{dir: filepath.Join(state, "pki")}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if p.ca, err = p.authority("ca", "kubelab-ca"); err != nil {
		return nil, err
	}
	if p.front, err = p.authority("front-ca", "kubelab-front-proxy-ca"); err != nil {
		return nil, err
	}
	if err := p.serviceAccountKey(); err != nil {
		return nil, err
	}
	certs := []struct {
		by      *authority
		file    string
		subject pkix.Name
		dns     []string
		ips     []net.IP
		client  bool // also a kubeconfig
	}{
		{by: p.ca, file: "apiserver", subject: pkix.Name{CommonName: "kube-apiserver"},
			dns: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
			ips: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1), controlPlaneIP.AsSlice(),
				net.ParseIP("fd96::1"), controlPlaneIP6.AsSlice()}},
		{by: p.ca, file: "admin", subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}, client: true},
		{by: p.ca, file: "kubelet-client", subject: pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}},
		{by: p.ca, file: "controller-manager", subject: pkix.Name{CommonName: "system:kube-controller-manager"}, client: true},
		{by: p.ca, file: "scheduler", subject: pkix.Name{CommonName: "system:kube-scheduler"}, client: true},
		{by: p.ca, file: "proxy", subject: pkix.Name{CommonName: "system:kube-proxy"}, client: true},
		{by: p.front, file: "front-proxy", subject: pkix.Name{CommonName: "front-proxy-client"}},
	}
	for i := 1; i <= nodes; i++ {
		name := fmt.Sprintf("node%d", i)
		c := certs[1]
		c.file, c.subject = name, pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}
		c.dns, c.ips = []string{name}, []net.IP{nodeIP(i).AsSlice(), nodeIP6(i).AsSlice()}
		certs = append(certs, c)
	}
	for _, c := range certs {
		if err := p.issue(c.by, c.file, c.subject, c.dns, c.ips); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", c.file, err)
		}
		if c.client {
			if err := p.writeKubeconfig(p.path(c.file+".kubeconfig"), c.file, apiAddress); err != nil {
				return nil, fmt.Errorf("kubeconfig %s: %w", c.file, err)
			}
		}
	}
	return p, nil
}

func (p *pki) path(file string) string { return filepath.Join(p.dir, file) }

func (p *pki) authority(file, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template(pkix.Name{CommonName: name})
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	id, err := keyID(key.Public())
	if err != nil {
		return nil, err
	}
	t.SubjectKeyId = id
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	return a, p.write(file, a.pem, key)
}

func (p *pki) issue(by *authority, file string, subject pkix.Name, dns []string, ips []net.IP) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := template(subject)
	t.DNSNames, t.IPAddresses = dns, ips
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, key.Public(), by.key)
	if err != nil {
		return err
	}
	return p.write(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key)
}

func template(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity)}
}

func (p *pki) write(file string, cert []byte, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.path(file+".crt"), cert, 0o644); err != nil {
		return err
	}
	return os.WriteFile(p.path(file+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// serviceAccountKey is RSA: the issuer's JWKS and its users expect RS256.
func (p *pki) serviceAccountKey() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.path("sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), 0o644); err != nil {
		return err
	}
	return os.WriteFile(p.path("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600)
}

func (p *pki) writeKubeconfig(path, cert, server string) error {
	crt, err := os.ReadFile(p.path(cert + ".crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(p.path(cert + ".key"))
	if err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: kubelab
  cluster: {server: "https://%s", certificate-authority-data: %s}
users:
- name: kubelab
  user: {client-certificate-data: %s, client-key-data: %s}
contexts:
- name: kubelab
  context: {cluster: kubelab, user: kubelab}
current-context: kubelab
`, server, b64(p.ca.pem), b64(crt), b64(key))
	return os.WriteFile(path, []byte(text), 0o600)
}

// clientTLS is an administrator's connection to the API server.
func (p *pki) clientTLS() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(p.path("admin.crt"), p.path("admin.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(p.ca.cert)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13}, nil
}

func keyID(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}
