package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

var (
	server = identity.ID{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "server"}
	client = identity.ID{TrustDomain: "cluster.local", Namespace: "b", ServiceAccount: "client"}
)

// handshake runs one over memory and returns what both sides say.
func handshake(t *testing.T, cc, sc *tls.Config) (c, s *tls.Conn, cerr, serr error) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	deadline := time.Now().Add(time.Minute)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	c, s = tls.Client(a, cc), tls.Server(b, sc)
	done := make(chan struct{})
	go func() {
		serr = s.Handshake()
		if serr != nil {
			b.Close()
		} else {
			s.Write([]byte{1})
		}
		close(done)
	}()
	cerr = c.Handshake()
	if cerr == nil {
		_, cerr = c.Read(make([]byte, 1)) // TLS 1.3: the server judges us later
	} else {
		a.Close()
	}
	<-done
	return
}

//ambit:feature hbone-identity
func TestHandshake(t *testing.T) {
	ca := hbonetest.NewCA(t)
	src := ca.Source(server, client)
	c, s, cerr, serr := handshake(t, identity.ClientConfig(src, client, []identity.ID{{}, server}), identity.ServerConfig(src, server))
	if cerr != nil || serr != nil {
		t.Fatalf("client %v, server %v", cerr, serr)
	}
	cs, ss := c.ConnectionState(), s.ConnectionState()
	if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" || ss.ServerName != "" {
		t.Errorf("version %x protocol %q SNI %q", cs.Version, cs.NegotiatedProtocol, ss.ServerName)
	}
	if cs.CurveID != tls.X25519MLKEM768 {
		t.Errorf("key exchange %v", cs.CurveID)
	}
	if id, err := identity.PeerID(&ss); err != nil || id != client {
		t.Errorf("client is %v, %v", id, err)
	}
	if id, err := identity.PeerID(&cs); err != nil || id != server {
		t.Errorf("server is %v, %v", id, err)
	}
}

//ambit:feature hbone-identity
func TestRefusals(t *testing.T) {
	ca, other := hbonetest.NewCA(t), hbonetest.NewCA(t)
	day := 24 * time.Hour
	foreign := identity.ID{TrustDomain: "elsewhere.example", Namespace: "b", ServiceAccount: "client"}
	issue := func(from *hbonetest.CA, id identity.ID, o hbonetest.IssueOptions) *tls.Certificate {
		c := from.Issue(id, o)
		return &c
	}
	for _, tc := range []struct {
		name   string
		cert   func(id identity.ID) *tls.Certificate
		client identity.Cause // the server's verdict on it as a client certificate
		server identity.Cause // the client's verdict on it as a server certificate
	}{
		{"expired", func(id identity.ID) *tls.Certificate {
			return issue(ca, id, hbonetest.IssueOptions{NotBefore: time.Now().Add(-2 * day), NotAfter: time.Now().Add(-day)})
		}, identity.Expired, identity.Expired},
		{"not yet valid", func(id identity.ID) *tls.Certificate {
			return issue(ca, id, hbonetest.IssueOptions{NotBefore: time.Now().Add(day), NotAfter: time.Now().Add(2 * day)})
		}, identity.NotYetValid, identity.NotYetValid},
		{"unknown authority", func(id identity.ID) *tls.Certificate {
			return issue(other, id, hbonetest.IssueOptions{})
		}, identity.UnknownAuthority, identity.UnknownAuthority},
		{"other trust domain", func(identity.ID) *tls.Certificate {
			return issue(ca, foreign, hbonetest.IssueOptions{})
		}, identity.TrustDomain, identity.UnexpectedIdentity},
		{"no SPIFFE URI", func(id identity.ID) *tls.Certificate {
			return issue(ca, id, hbonetest.IssueOptions{URIs: []string{"https://example.com"}})
		}, identity.BadCertificate, identity.UnexpectedIdentity},
		{"SPIFFE URI of another form", func(id identity.ID) *tls.Certificate {
			return issue(ca, id, hbonetest.IssueOptions{URIs: []string{"spiffe://cluster.local/workload/x"}})
		}, identity.BadCertificate, identity.UnexpectedIdentity},
		{"code signing only", func(id identity.ID) *tls.Certificate {
			return issue(ca, id, hbonetest.IssueOptions{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
		}, identity.BadCertificate, identity.BadCertificate},
		{"a CA", func(id identity.ID) *tls.Certificate {
			return issue(ca, id, hbonetest.IssueOptions{IsCA: true})
		}, identity.BadCertificate, identity.BadCertificate},
		{"another workload", func(identity.ID) *tls.Certificate {
			return issue(ca, identity.ID{TrustDomain: "cluster.local", Namespace: "x", ServiceAccount: "y"}, hbonetest.IssueOptions{})
		}, "", identity.UnexpectedIdentity},
	} {
		good := ca.Source(server, client)
		with := func(id identity.ID) identity.Source {
			return hbonetest.Source{Trust: ca.Roots(), Certs: map[identity.ID]*tls.Certificate{id: tc.cert(id)}}
		}
		t.Run("client "+tc.name, func(t *testing.T) {
			_, _, cerr, serr := handshake(t, identity.ClientConfig(with(client), client, []identity.ID{server}), identity.ServerConfig(good, server))
			wantCause(t, serr, tc.client)
			if (cerr == nil) != (tc.client == "") {
				t.Errorf("client: %v", cerr)
			}
		})
		t.Run("server "+tc.name, func(t *testing.T) {
			_, _, cerr, serr := handshake(t, identity.ClientConfig(good, client, []identity.ID{server}), identity.ServerConfig(with(server), server))
			wantCause(t, cerr, tc.server)
			if (serr == nil) != (tc.server == "") {
				t.Errorf("server: %v", serr)
			}
		})
	}
}

func wantCause(t *testing.T, err error, want identity.Cause) {
	t.Helper()
	var ve *identity.VerifyError
	switch {
	case want == "" && err != nil:
		t.Errorf("error %v, want none", err)
	case want != "" && (!errors.As(err, &ve) || ve.Cause != want):
		t.Errorf("error %v, want cause %s", err, want)
	}
}

func TestNoClientCertificate(t *testing.T) {
	src := hbonetest.NewCA(t).Source(server)
	cc := identity.ClientConfig(src, client, []identity.ID{server})
	cc.GetClientCertificate = nil
	_, _, cerr, serr := handshake(t, cc, identity.ServerConfig(src, server))
	wantCause(t, serr, identity.NoCertificate)
	if cerr == nil {
		t.Error("client was served")
	}
}

//ambit:feature hbone-identity
func TestNothingExpectedNeverVerifies(t *testing.T) {
	src := hbonetest.NewCA(t).Source(server, client)
	for _, expect := range [][]identity.ID{nil, {}, {{}}} {
		_, _, cerr, _ := handshake(t, identity.ClientConfig(src, client, expect), identity.ServerConfig(src, server))
		wantCause(t, cerr, identity.UnexpectedIdentity)
	}
}

// TestNoRootsYet: without trust anchors nobody is trusted. To crypto/x509 no pool
// means the system's, so the machine is made to trust this very CA.
//
//ambit:feature security-no-roots
func TestNoRootsYet(t *testing.T) {
	ca := hbonetest.NewCA(t)
	trusted := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", trusted)
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	good := ca.Source(server, client)
	none := hbonetest.Source{Certs: good.(hbonetest.Source).Certs}
	_, _, cerr, _ := handshake(t, identity.ClientConfig(none, client, []identity.ID{server}), identity.ServerConfig(good, server))
	wantCause(t, cerr, identity.UnknownAuthority)
	_, _, _, serr := handshake(t, identity.ClientConfig(good, client, []identity.ID{server}), identity.ServerConfig(none, server))
	wantCause(t, serr, identity.UnknownAuthority)
}

func TestSourceErrorEndsTheHandshake(t *testing.T) {
	src := hbonetest.NewCA(t).Source(client)
	_, _, cerr, serr := handshake(t, identity.ClientConfig(src, client, []identity.ID{server}), identity.ServerConfig(src, server))
	if cerr == nil || serr == nil {
		t.Errorf("client %v, server %v", cerr, serr)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	src := hbonetest.NewCA(t).Source(server, client)
	cc := identity.ClientConfig(src, client, []identity.ID{server})
	cc.MinVersion, cc.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, _, cerr, serr := handshake(t, cc, identity.ServerConfig(src, server)); cerr == nil || serr == nil {
		t.Errorf("client %v, server %v", cerr, serr)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"spiffe://cluster.local/ns/a/sa/b", "spiffe://x/ns//sa/b", "spiffe:///ns/a/sa/b", "https://x", "spiffe://a/ns/b/sa/c/d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.Parse(s)
		if err == nil && id.String() != s {
			t.Errorf("%q became %q", s, id)
		}
		if err != nil && !id.IsZero() {
			t.Errorf("%q: an error and an identity", s)
		}
	})
}
