package netns_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A certificate is revoked while a connection is open, first the client's at the
// server's ztunnel, then the server's at the client's: the connection ends, new ones
// are refused, plaintext is not concerned, and an empty list ends all of it.
//
//ambit:feature certificates-crl certificates-crl-file
func TestRevocation(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, onlyIPv4)
	lists := map[*node]string{}
	for _, n := range []*node{w.a, w.b} {
		lists[n] = t.TempDir() + "/ca-crl.pem"
		n.zt.kill()
		n.zt = n.startZtunnel([]string{"CRL_PATH=" + lists[n]})
	}
	w.waitReady(w.a, w.b)
	client, server, plain := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.a, "plain")
	server.listen(9000, echo)
	w.enrol(client, server)
	data := w.control.authority.SecretData()
	issuer, err := tls.X509KeyPair(data["ca-cert.pem"], data["ca-key.pem"])
	if err != nil {
		t.Fatal(err)
	}
	number := int64(0)
	revoke := func(n *node, serials ...*big.Int) {
		t.Helper()
		number++
		l := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
		for _, s := range serials {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
		}
		der, err := x509.CreateRevocationList(rand.Reader, l, issuer.Leaf, issuer.PrivateKey.(*ecdsa.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		tmp := filepath.Join(filepath.Dir(lists[n]), "new")
		if err := os.WriteFile(tmp, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, lists[n]); err != nil {
			t.Fatal(err)
		}
	}
	open := plain.mustDial(t, server.at(9000))
	pingPong(t, open, "plaintext")
	for _, c := range []struct {
		knows, of *node
		peer      *pod
		reporter  string
	}{
		{w.b, w.a, client, "destination"},
		{w.a, w.b, server, "source"},
	} {
		conn := client.mustDial(t, server.at(9000))
		pingPong(t, conn, "before")
		revoke(c.knows, serialOf(t, c.of, c.peer))
		began := time.Now()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: read %v, not a reset", c.reporter, err)
		}
		t.Logf("%s: ended after %s", c.reporter, time.Since(began).Round(time.Millisecond))
		c.knows.zt.wantLog(t, "connection complete", `reason="certificate_revoked"`)
		if _, err := client.curl(server.at(9000), "again"); err == nil {
			t.Errorf("%s: a new connection is served", c.reporter)
		}
		if n := c.knows.metric(t, "istio_crl_policy_rejections_total", `reporter="`+c.reporter+`"`); n == 0 {
			t.Errorf("%s: no refusal was counted", c.reporter)
		}
		if n := c.knows.metric(t, "istio_tcp_connections_failed_total", `response_flags="CERT_REVOKED"`); n == 0 {
			t.Errorf("%s: no connection failed with CERT_REVOKED", c.reporter)
		}
		pingPong(t, open, "plaintext goes on")
		revoke(c.knows)
		eventually(t, "an empty list takes it back", func() error {
			conn, err := client.dial(server.at(9000))
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			return exchange(conn, "back")
		})
	}
}

// serialOf is the number of the certificate that a node holds for a pod.
func serialOf(t *testing.T, n *node, p *pod) *big.Int {
	t.Helper()
	text, err := n.get("127.0.0.1:15000", "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	var dump struct {
		Certificates []struct {
			Identity  string
			CertChain []struct{ SerialNumber string }
		}
	}
	if err := json.Unmarshal([]byte(text), &dump); err != nil {
		t.Fatal(err)
	}
	for _, c := range dump.Certificates {
		if c.Identity == p.id().String() && len(c.CertChain) > 0 {
			if s, ok := new(big.Int).SetString(c.CertChain[0].SerialNumber, 10); ok {
				return s
			}
		}
	}
	t.Fatal(fmt.Errorf("%s has no certificate of %s", n.name, p.id()))
	return nil
}
