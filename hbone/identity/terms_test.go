package identity_test

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"

	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// Trust domains of both sides, with and without aliases.
//
//ambit:feature identity-trust-domain-aliases
func TestTrustDomains(t *testing.T) {
	const own, old, foreign = "mesh.example", "old.example", "foreign.example"
	ca := hbonetest.NewCA(t)
	in := func(domain, account string) identity.ID {
		return identity.ID{TrustDomain: domain, Namespace: "ns", ServiceAccount: account}
	}
	for _, c := range []struct {
		name           string
		client, server string // trust domains of the certificates
		expect         string // trust domain of the identity the client expects
		aliases        []string
		cause          identity.Cause // of the refusal
		refuses        string
	}{
		{"one domain", own, own, own, nil, "", ""},
		{"a client of another domain", foreign, own, own, nil, identity.TrustDomain, "server"},
		{"a server of another domain", own, foreign, own, nil, identity.UnexpectedIdentity, "client"},
		{"a client of an alias", old, own, own, []string{old}, "", ""},
		{"a server of an alias", own, old, own, []string{old}, "", ""},
		{"a server of the own domain, known by the alias", own, own, old, []string{old}, "", ""},
		{"a client of a domain that is no alias", foreign, own, own, []string{old}, identity.TrustDomain, "server"},
		{"a server of a domain that is no alias", own, foreign, own, []string{old}, identity.UnexpectedIdentity, "client"},
		{"one foreign identity that is expected", own, foreign, foreign, nil, "", ""},
		{"an alias of another identity", own, old, own, []string{old}, identity.UnexpectedIdentity, "client: other account"},
	} {
		t.Run(c.name, func(t *testing.T) {
			self, peer := in(own, "client"), in(own, "server")
			expect := in(c.expect, "server")
			if c.refuses == "client: other account" {
				expect = in(c.expect, "somebody")
			}
			terms := &identity.Terms{Aliases: func() []string { return c.aliases }}
			source := func(id identity.ID, domain string) identity.Source {
				cert := ca.Issue(in(domain, id.ServiceAccount), hbonetest.IssueOptions{})
				return hbonetest.Source{Trust: ca.Roots(), Certs: map[identity.ID]*tls.Certificate{id: &cert}, Asks: terms}
			}
			_, cerr, serr := overTCP(t, identity.ClientConfig(source(self, c.client), self, []identity.ID{expect}), identity.ServerConfig(source(peer, c.server), peer))
			err := cerr
			if c.refuses == "server" {
				err = serr
			}
			var v *identity.VerifyError
			switch {
			case c.cause == "" && (cerr != nil || serr != nil):
				t.Errorf("client %v, server %v", cerr, serr)
			case c.cause != "" && (!errors.As(err, &v) || v.Cause != c.cause):
				t.Errorf("%v, want %s", err, c.cause)
			}
		})
	}
}

// Real handshakes under each policy: what is agreed on, and who is refused.
//
//ambit:feature certificates-compliance
func TestCompliance(t *testing.T) {
	ca := hbonetest.NewCA(t)
	client, server := hbonetest.ID("client"), hbonetest.ID("server")
	with := func(terms *identity.Terms, id identity.ID) identity.Source {
		cert := ca.Issue(id, hbonetest.IssueOptions{})
		return hbonetest.Source{Trust: ca.Roots(), Certs: map[identity.ID]*tls.Certificate{id: &cert}, Asks: terms}
	}
	only := func(curve tls.CurveID, version uint16) func(*tls.Config) {
		return func(c *tls.Config) {
			c.CurvePreferences = []tls.CurveID{curve}
			c.MinVersion, c.MaxVersion = version, version
		}
	}
	for _, c := range []struct {
		name  string
		terms *identity.Terms
		peer  func(*tls.Config) // what the other side is able to do; nil: anything
		curve tls.CurveID       // agreed on; 0: refused
	}{
		{"no policy", nil, nil, tls.X25519MLKEM768},
		{"no policy, P-256", nil, only(tls.CurveP256, tls.VersionTLS13), tls.CurveP256},
		{"no policy, TLS 1.2", nil, only(tls.CurveP256, tls.VersionTLS12), 0},
		{"TLS 1.2 enabled", &identity.Terms{TLS12: true}, only(tls.CurveP256, tls.VersionTLS12), tls.CurveP256},
		{"TLS 1.2 enabled, with one that does both", &identity.Terms{TLS12: true}, nil, tls.X25519MLKEM768},
		{"pqc", &identity.Terms{Compliance: identity.PQC}, nil, tls.X25519MLKEM768},
		{"pqc, P-256", &identity.Terms{Compliance: identity.PQC}, only(tls.CurveP256, tls.VersionTLS13), 0},
		{"pqc, X25519", &identity.Terms{Compliance: identity.PQC}, only(tls.X25519, tls.VersionTLS13), 0},
		{"pqc, TLS 1.2 enabled all the same", &identity.Terms{Compliance: identity.PQC, TLS12: true}, only(tls.CurveP256, tls.VersionTLS12), 0},
		{"fips", &identity.Terms{Compliance: identity.FIPS140}, only(tls.CurveP256, tls.VersionTLS13), tls.CurveP256},
		{"fips, P-384", &identity.Terms{Compliance: identity.FIPS140}, only(tls.CurveP384, tls.VersionTLS13), tls.CurveP384},
		{"fips, X25519", &identity.Terms{Compliance: identity.FIPS140}, only(tls.X25519, tls.VersionTLS13), 0},
		{"fips, X25519 with ML-KEM", &identity.Terms{Compliance: identity.FIPS140}, only(tls.X25519MLKEM768, tls.VersionTLS13), 0},
		{"fips with fips", &identity.Terms{Compliance: identity.FIPS140}, (&identity.Terms{Compliance: identity.FIPS140}).Restrict, tls.SecP256r1MLKEM768},
		{"fips with no policy", &identity.Terms{Compliance: identity.FIPS140}, func(*tls.Config) {}, tls.CurveP256},
	} {
		for _, side := range []string{"client", "server"} {
			t.Run(c.name+", "+side, func(t *testing.T) {
				terms := [2]*identity.Terms{c.terms, {TLS12: true}}
				if side == "server" {
					terms[0], terms[1] = terms[1], terms[0]
				}
				cc := identity.ClientConfig(with(terms[0], client), client, []identity.ID{server})
				sc := identity.ServerConfig(with(terms[1], server), server)
				if c.peer != nil {
					other := sc
					if side == "server" {
						other = cc
					}
					c.peer(other)
				}
				cs, cerr, serr := overTCP(t, cc, sc)
				switch {
				case c.curve == 0 && cerr == nil && serr == nil:
					t.Errorf("agreed on %v, %s", cs.CurveID, tls.VersionName(cs.Version))
				case c.curve != 0 && (cerr != nil || serr != nil):
					t.Errorf("client %v, server %v", cerr, serr)
				case c.curve != 0 && cs.CurveID != c.curve:
					t.Errorf("agreed on %v, want %v", cs.CurveID, c.curve)
				}
			})
		}
	}
}

// overTCP is handshake where messages cross, as they do after a retry request.
func overTCP(t *testing.T, cc, sc *tls.Config) (cs tls.ConnectionState, cerr, serr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err != nil {
			serr = err
			return
		}
		defer nc.Close()
		s := tls.Server(nc, sc)
		if serr = s.Handshake(); serr == nil {
			_, serr = s.Write([]byte{1})
		}
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(nc, cc)
	if cerr = c.Handshake(); cerr == nil {
		_, cerr = c.Read(make([]byte, 1))
	}
	nc.Close()
	<-done
	return c.ConnectionState(), cerr, serr
}
