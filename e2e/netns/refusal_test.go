package netns_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// forged makes certificates with the mesh's own key: what is wrong with them
// is what a test wants to be wrong, not their signature.
func (c *control) forged(t testing.TB, id identity.ID, notBefore, notAfter time.Time) tls.Certificate {
	t.Helper()
	data := c.authority.SecretData()
	issuer, err := tls.X509KeyPair(data["ca-cert.pem"], data["ca-key.pem"])
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{}, URIs: []*url.URL{id.URL()},
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, err := x509.ParseCertificate(issuer.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, issuer.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Every refusal on port 15008 has its own reason, in the log and in the
// metric.
//
//ambit:feature hbone-answers
func TestRefusals(t *testing.T) { each(t, refusals, onlyIPv4, onlyIPv6) }

func refusals(t *testing.T, f families) {
	w := newWorldOf(t, f)
	server, stranger := w.newPod(w.b, "server"), w.newPod(w.a, "stranger")
	server.serveHTTP(8080)
	w.enrol(server)
	now := time.Now()
	hour := now.Add(time.Hour)
	mallory := identity.ID{TrustDomain: "evil.example", Namespace: "demo", ServiceAccount: "client"}
	known := identity.ID{TrustDomain: "cluster.local", Namespace: "demo", ServiceAccount: "client"}
	selfSigned, err := newForeignCA(t)
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name, reason string
		certs        []tls.Certificate
	}{
		{"no certificate", "no_certificate", nil},
		{"other trust domain", "trust_domain", []tls.Certificate{w.control.forged(t, mallory, now.Add(-time.Minute), hour)}},
		{"expired", "certificate_expired", []tls.Certificate{w.control.forged(t, known, now.Add(-time.Hour), now.Add(-time.Minute))}},
		{"not yet valid", "certificate_not_yet_valid", []tls.Certificate{w.control.forged(t, known, hour, hour.Add(time.Hour))}},
		{"unknown authority", "unknown_authority", []tls.Certificate{selfSigned(known)}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			nc := stranger.mustDial(t, server.at(15008))
			tc := tls.Client(nc, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if len(c.certs) == 0 {
						return &tls.Certificate{}, nil
					}
					return &c.certs[0], nil
				}})
			// TLS 1.3: the server's verdict comes after the client's handshake.
			err := tc.Handshake()
			if err == nil {
				_, err = tc.Read(make([]byte, 1))
			}
			if err == nil {
				t.Fatal("accepted")
			}
			w.refused(t, server, stranger, c.reason)
		})
	}
	t.Run("not TLS", func(t *testing.T) {
		nc := stranger.mustDial(t, server.at(15008))
		fmt.Fprintf(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		nc.Read(make([]byte, 1024))
		w.refused(t, server, stranger, "not_tls")
	})

	good := w.control.forged(t, known, now.Add(-time.Minute), hour)
	open := func(t *testing.T, r hbone.Request) error {
		nc := stranger.mustDial(t, server.at(15008))
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := hbone.NewClient(ctx, nc, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
			InsecureSkipVerify: true, Certificates: []tls.Certificate{good}}, hbone.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := c.Open(ctx, r)
		if err == nil {
			s.Cancel()
		}
		return err
	}
	t.Run("CONNECT to another address", func(t *testing.T) {
		wantStatus(t, open(t, hbone.Request{Authority: stranger.at(8080)}), 400)
		w.b.zt.wantLog(t, "connection failed", fmt.Sprintf("ip mismatch: %s != %s", server.addr, stranger.addr))
		w.refused(t, server, stranger, "address_mismatch")
	})
	t.Run("CONNECT to our own port", func(t *testing.T) {
		wantStatus(t, open(t, hbone.Request{Authority: server.at(15008)}), 503)
		w.refused(t, server, stranger, "self_call")
	})
	t.Run("CONNECT to nonsense", func(t *testing.T) {
		wantStatus(t, open(t, hbone.Request{Authority: "not:an:address"}), 400)
		w.refused(t, server, stranger, "bad_authority")
	})
	t.Run("and one that is right", func(t *testing.T) {
		if err := open(t, hbone.Request{Authority: server.at(8080)}); err != nil {
			t.Fatal(err)
		}
	})
}

func wantStatus(t *testing.T, err error, status int) {
	t.Helper()
	var s *hbone.StreamError
	if !errors.As(err, &s) || s.Status != status {
		t.Errorf("%v, want status %d", err, status)
	}
}

// refused wants one log line and one count for a refusal.
func (w *world) refused(t *testing.T, server, client *pod, reason string) {
	t.Helper()
	w.b.zt.wantLog(t, "connection failed", "src.addr="+client.host(), `direction="inbound"`, `reason="`+reason+`"`)
	if n := server.node.metric(t, "ambit_connections_failed_total", `reporter="destination"`, `reason="`+reason+`"`); n != 1 {
		t.Errorf("ambit_connections_failed_total for %s is %v", reason, n)
	}
}

// newForeignCA is an authority nobody here trusts.
func newForeignCA(t testing.TB) (func(identity.ID) tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	return func(id identity.ID) tls.Certificate {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), URIs: []*url.URL{id.URL()}, NotBefore: now.Add(-time.Hour),
			NotAfter: now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}, nil
}

// A ztunnel is given certificates only for identities with an enrolled pod on
// its node.
func TestIdentityNeedsAPodOnTheNode(t *testing.T) {
	w := newWorld(t)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	server.serveHTTP(8080)
	w.enrol(client, server)
	client.mustCurl(t, server.at(8080), "as-it-should-be")

	// The mesh says that the pod runs under an account that, for the CA, has
	// no pod on this node.
	liar := w.newPod(w.a, "liar")
	w.control.deny(liar.id())
	liar.node.agent.enrol(liar)
	w.announce(liar, true)
	w.control.settled(t)
	c, err := liar.dial(server.at(8080))
	if err == nil {
		if _, err = c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %v, not a reset", err)
		}
		c.Close()
	}
	w.a.zt.wantLog(t, "connection complete", `src.workload="liar"`, `reason="identity_denied"`)
	if n := w.a.metric(t, "ambit_connections_failed_total", `reporter="source"`, `reason="identity_denied"`); n != 1 {
		t.Errorf("ambit_connections_failed_total is %v", n)
	}
	if n := w.a.metric(t, "istio_tcp_connections_failed_total", `response_flags="IDENTITY_ERROR"`); n != 1 {
		t.Errorf("istio_tcp_connections_failed_total is %v", n)
	}
}

// An application cannot reach ztunnel's own ports through capture.
func TestOwnPortsAreRefused(t *testing.T) { each(t, ownPortsAreRefused) }

func ownPortsAreRefused(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, server := w.newPod(w.a, "client"), w.newPod(w.b, "server")
	w.enrol(client, server)
	for _, to := range []string{server.at(15001), server.at(15006), server.at(15008), client.at(15001)} {
		c, err := client.dial(to)
		if err != nil {
			continue
		}
		c.SetDeadline(time.Now().Add(patience))
		var n net.Error
		if k, err := c.Read(make([]byte, 1)); k > 0 || err == nil || errors.As(err, &n) && n.Timeout() {
			t.Errorf("%s: read %d bytes, %v", to, k, err)
		}
		c.Close()
	}
}
