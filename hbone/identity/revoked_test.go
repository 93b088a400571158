package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// authority is a CA that may revoke, with a certificate that another one made.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB, name string, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	a := &authority{t: t, key: key}
	tmpl := &x509.Certificate{SerialNumber: n, Subject: pkix.Name{Organization: []string{name}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	parent, signer := tmpl, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue makes a leaf that is presented with between.
func (a *authority) issue(id identity.ID, between ...*authority) *tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	n, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	tmpl := &x509.Certificate{SerialNumber: n, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	tmpl.URIs = append(tmpl.URIs, id.URL())
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	out := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	for _, b := range between {
		out.Certificate = append(out.Certificate, b.cert.Raw)
	}
	return out
}

// revoke makes a list, in PEM.
func (a *authority) revoke(certs ...*x509.Certificate) []byte {
	a.t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(-time.Hour)} // expired: it counts
	for _, c := range certs {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func set(t testing.TB, r *identity.Revocations, text ...[]byte) {
	t.Helper()
	lists, err := identity.ParseRevocations(bytes.Join(text, nil))
	if err != nil {
		t.Fatal(err)
	}
	r.Set(lists)
}

// Handshakes of both sides under every list there may be.
//
//ambit:feature certificates-crl
func TestRevokedPeers(t *testing.T) {
	root := newAuthority(t, "mesh", nil)
	twin := newAuthority(t, "mesh", nil) // another root of the same name, as self-signed ones have
	inter := newAuthority(t, "cluster", root)
	client, server := hbonetest.ID("client"), hbonetest.ID("server")
	pool := x509.NewCertPool()
	pool.AddCert(root.cert)
	pool.AddCert(twin.cert)
	type pair struct{ client, server *tls.Certificate }
	direct := pair{root.issue(client), root.issue(server)}
	chained := pair{inter.issue(client, inter), inter.issue(server, inter)}
	for _, c := range []struct {
		name  string
		certs pair
		lists [][]byte
		who   string // is refused: client, server, both
	}{
		{"no list", direct, nil, ""},
		{"an empty list", direct, [][]byte{root.revoke()}, ""},
		{"the client's leaf", direct, [][]byte{root.revoke(direct.client.Leaf)}, "client"},
		{"the server's leaf", direct, [][]byte{root.revoke(direct.server.Leaf)}, "server"},
		{"a leaf behind an intermediate", chained, [][]byte{inter.revoke(chained.client.Leaf)}, "client"},
		{"the intermediate", chained, [][]byte{root.revoke(inter.cert)}, "both"},
		{"somebody else", direct, [][]byte{root.revoke(chained.client.Leaf, inter.cert)}, ""},
		{"a list of an issuer that has not signed it", direct, [][]byte{twin.revoke(direct.client.Leaf)}, ""},
		{"the second of two lists of one name", direct, [][]byte{twin.revoke(), root.revoke(direct.client.Leaf)}, "client"},
		{"the same serial at another issuer", chained, [][]byte{root.revoke(chained.client.Leaf)}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused := map[bool]int{}
			var strange []string
			trust := func(self identity.ID, cert *tls.Certificate) hbonetest.Source {
				r := &identity.Revocations{
					Refused: func(client bool) { refused[client]++ },
					Strange: func(list string, _ error) { strange = append(strange, list) },
				}
				set(t, r, c.lists...)
				return hbonetest.Source{Trust: pool, Certs: map[identity.ID]*tls.Certificate{self: cert}, Asks: &identity.Terms{Revoked: r}}
			}
			_, cerr, serr := overTCP(t, identity.ClientConfig(trust(client, c.certs.client), client, []identity.ID{server}),
				identity.ServerConfig(trust(server, c.certs.server), server))
			var v *identity.VerifyError
			switch c.who {
			case "":
				if cerr != nil || serr != nil {
					t.Fatal(cerr, serr)
				}
			case "client":
				if !errors.As(serr, &v) || v.Cause != identity.Revoked || refused[false] != 1 {
					t.Errorf("server: %v, counted %v", serr, refused)
				}
			default:
				if !errors.As(cerr, &v) || v.Cause != identity.Revoked || refused[true] != 1 {
					t.Errorf("client: %v, counted %v", cerr, refused)
				}
			}
			if want := strings.HasPrefix(c.name, "a list of an issuer"); want != (len(strange) > 0) {
				t.Errorf("strange lists %v", strange)
			}
		})
	}
}

// Whoever runs the mesh sees that a list does not count, and before it is needed.
//
//ambit:feature certificates-crl-standing
func TestListsThatDoNotCount(t *testing.T) {
	root := newAuthority(t, "mesh", nil)
	twin := newAuthority(t, "mesh", nil)
	inter := newAuthority(t, "cluster", root)
	mute := newAuthority(t, "mute", nil) // its certificate does not allow it to sign lists
	tmpl := *mute.cert
	tmpl.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, root.cert, mute.key.Public(), root.key)
	if err != nil {
		t.Fatal(err)
	}
	entitled := mute.cert // same key and name
	if mute.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root.cert)
	pool.AddCert(twin.cert)
	leaf := func(a *authority, between ...*authority) (chain []*x509.Certificate) {
		chain = append(chain, a.issue(hbonetest.ID("a"), between...).Leaf)
		for _, b := range between {
			chain = append(chain, b.cert)
		}
		return chain
	}
	of := func(a *authority, cert *x509.Certificate, certs ...*x509.Certificate) []byte {
		return (&authority{t: t, key: a.key, cert: cert}).revoke(certs...)
	}
	muted := leaf(mute, mute)
	for _, c := range []struct {
		name                     string
		list                     []byte
		peers                    [][]*x509.Certificate
		accepted, refused, unmet int
		said                     string
	}{
		{"nobody of the issuer has come", inter.revoke(), [][]*x509.Certificate{leaf(root)}, 0, 0, 1, ""},
		{"its own", inter.revoke(), [][]*x509.Certificate{leaf(inter, inter)}, 1, 0, 0, ""},
		{"of another of the same name", twin.revoke(), [][]*x509.Certificate{leaf(root)}, 0, 1, 0, ""},
		{"of one of two of the same name", twin.revoke(), [][]*x509.Certificate{leaf(root), leaf(twin)}, 1, 0, 0, ""},
		{"of one that may not", of(mute, entitled), [][]*x509.Certificate{leaf(mute, mute), leaf(mute, mute)}, 0, 1, 0, "cRLSign"},
		{"of one that may not, with the peer on it", of(mute, entitled, muted[0]), [][]*x509.Certificate{muted, muted}, 0, 1, 0, "cRLSign"},
	} {
		var said []string
		r := &identity.Revocations{Strange: func(list string, why error) { said = append(said, list+": "+why.Error()) }}
		set(t, r, c.list)
		for _, chain := range c.peers {
			stop, err := r.Watch(chain, pool, func(err error) { t.Errorf("%s: ended: %v", c.name, err) })
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
		}
		if a, b, u := r.Standing(); a != c.accepted || b != c.refused || u != c.unmet {
			t.Errorf("%s: %d accepted, %d refused, %d unmet", c.name, a, b, u)
		}
		if len(said) > 1 || (len(said) == 1) != (c.said != "") || len(said) == 1 && !strings.Contains(said[0], c.said) {
			t.Errorf("%s: said %q", c.name, said)
		}
	}
}

// A connection is ended by lists that come later, at once by those that came
// before it was watched, and not after its end.
//
//ambit:feature certificates-crl
func TestRevokedWhileOpen(t *testing.T) {
	root := newAuthority(t, "mesh", nil)
	inter := newAuthority(t, "cluster", root)
	leaf := inter.issue(hbonetest.ID("a"), inter)
	chain := []*x509.Certificate{leaf.Leaf, inter.cert}
	pool := x509.NewCertPool()
	pool.AddCert(root.cert)
	r := &identity.Revocations{}
	ended := 0
	end := func(err error) {
		ended++
		var v *identity.VerifyError
		if !errors.As(err, &v) || v.Cause != identity.Revoked {
			t.Errorf("error %v", err)
		}
	}
	stop, err := r.Watch(chain, pool, end)
	if err != nil {
		t.Fatal(err)
	}
	if set(t, r, inter.revoke(), root.revoke()); ended != 0 {
		t.Fatal("ended by empty lists")
	}
	if set(t, r, root.revoke(inter.cert)); ended != 1 {
		t.Fatalf("ended %d times", ended)
	}
	stop()
	if set(t, r, root.revoke(inter.cert)); ended != 1 {
		t.Error("ended after it was no longer watched")
	}
	if stop, err = r.Watch(chain, pool, end); err != nil || ended != 2 {
		t.Errorf("a list that was there before: ended %d times, %v", ended, err)
	}
	stop()
	if _, err := r.Watch(nil, pool, end); err == nil {
		t.Error("a peer without a certificate is watched")
	}
}

func TestParseRevocations(t *testing.T) {
	a := newAuthority(t, "mesh", nil)
	text := a.revoke(a.cert)
	block, _ := pem.Decode(text)
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	for _, c := range []struct {
		name string
		in   []byte
		n    int
		bad  bool
	}{
		{"nothing", nil, 0, false},
		{"white space", []byte("\n \n"), 0, false},
		{"PEM", text, 1, false},
		{"DER", block.Bytes, 1, false},
		{"two, among other things", bytes.Join([][]byte{certificate, text, []byte("words\n"), text}, nil), 2, false},
		{"other things alone", certificate, 0, false},
		{"words", []byte("words"), 0, true},
		{"half of DER", block.Bytes[:len(block.Bytes)/2], 0, true},
		{"half of PEM", text[:len(text)/2], 0, true},
		{"one and a half", append(bytes.Clone(text), text[:len(text)/2]...), 0, true},
		{"a block of something else by that name", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: a.cert.Raw}), 0, true},
	} {
		lists, err := identity.ParseRevocations(c.in)
		if len(lists) != c.n || (err != nil) != c.bad {
			t.Errorf("%s: %d lists, %v", c.name, len(lists), err)
		}
	}
}

func FuzzParseRevocations(f *testing.F) {
	a := newAuthority(f, "mesh", nil)
	text := a.revoke(a.cert)
	block, _ := pem.Decode(text)
	f.Add(text)
	f.Add(block.Bytes)
	f.Add(append(bytes.Clone(text), text[:40]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		lists, err := identity.ParseRevocations(b)
		if err != nil && lists != nil {
			t.Error("lists beside an error")
		}
		r := &identity.Revocations{}
		r.Set(lists)
		if n, _ := r.Len(); n != len(lists) {
			t.Errorf("%d lists became %d", len(lists), n)
		}
		_ = r.String()
	})
}

// The file as Kubernetes keeps it: a link to a file in a directory that is
// reached by a link, which is turned to another directory.
//
//ambit:feature certificates-crl-file
func TestRevocationFile(t *testing.T) {
	a := newAuthority(t, "mesh", nil)
	dir := t.TempDir()
	version := func(name string, content []byte) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "ca-crl.pem"), content, 0o644); err != nil {
			t.Fatal(err)
		}
		tmp := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(name, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := &identity.Revocations{}
		f := &identity.File{Path: filepath.Join(dir, "ca-crl.pem"), Revocations: r, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		f.Look()
		go func() { done <- f.Run(ctx) }()
		want := func(what string, certificates int, failures uint64) {
			t.Helper()
			time.Sleep(1100 * time.Millisecond) // of the test's own time
			synctest.Wait()
			if _, n := r.Len(); n != certificates || f.Failures() != failures {
				t.Errorf("%s: %d certificates, %d failures", what, n, f.Failures())
			}
		}
		want("no file yet", 0, 0)
		version("..1", a.revoke(a.cert))
		if err := os.Symlink("..data/ca-crl.pem", f.Path); err != nil {
			t.Fatal(err)
		}
		want("the first version", 1, 0)
		version("..2", []byte("not a list"))
		want("a bad version", 1, 1)
		want("still", 1, 1) // and it is said once
		version("..3", a.revoke(a.cert, newAuthority(t, "x", nil).cert))
		want("another good one", 2, 1)
		if err := os.Remove(f.Path); err != nil {
			t.Fatal(err)
		}
		want("gone", 2, 1)
		if err := os.Symlink("..data/ca-crl.pem", f.Path); err != nil {
			t.Fatal(err)
		}
		version("..4", nil)
		want("empty", 0, 1)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "cannot be used"); n != 1 {
			t.Errorf("the bad version was said %d times:\n%s", n, &log)
		}
	})
}
