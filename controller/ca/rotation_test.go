package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func wish(a *Authority) *Wish { return &Wish{Source: "cacerts", Authority: a} }

// settled is a record with nothing under way.
func settled(a *Authority) *Record {
	return &Record{Source: "ambit-ca-secret", Signer: a, Longest: time.Hour}
}

//ambit:feature identity-root-change identity-root-stalled
func TestRotationStepByStep(t *testing.T) {
	old, young := newAuthority(t, RootTTL), newAuthority(t, RootTTL)
	at := func(d time.Duration, lacking ...string) Situation {
		return Situation{Now: began.Add(d), Leading: d, Wish: wish(young), Lacking: lacking, Timeout: 10 * time.Minute, TTL: time.Hour}
	}
	r := settled(old)
	step := func(s Situation, phase string, trusted ...*Authority) Outcome {
		t.Helper()
		out := r.Step(s)
		r = out.Record
		if r.Phase() != phase {
			t.Fatalf("phase %s, want %s: %v", r.Phase(), phase, out.Events)
		}
		for _, a := range []*Authority{old, young} {
			if got := bytes.Contains(r.Bundle(), a.RootPEM()); got != slices.Contains(trusted, a) {
				t.Fatalf("%s: root trusted %t, want %t", phase, got, !got)
			}
		}
		return out
	}
	// Lacking is about the bundle before: it does not count yet.
	step(at(0), rotation.PhaseDistributing, old, young)
	if r.Signer != old {
		t.Fatal("switched before anybody could know")
	}
	out := step(at(time.Second, "node-b"), rotation.PhaseDistributing, old, young)
	if !slices.Equal(out.Waiting, []string{"node-b"}) {
		t.Errorf("waiting for %v", out.Waiting)
	}
	step(at(10*time.Minute, "node-b"), rotation.PhaseStalled, old, young)
	// Everybody has it now, but after a stall only a command goes on.
	step(at(11*time.Minute), rotation.PhaseStalled, old, young)
	again := at(12*time.Minute, "node-b", "node-c")
	again.Command = Command{Verb: CommandContinue}
	step(again, rotation.PhaseDistributing, old, young)
	without := at(13*time.Minute, "node-b", "node-c")
	without.Command = Command{Verb: CommandWithout, Args: []string{"node-b"}}
	if out := step(without, rotation.PhaseDistributing, old, young); !slices.Equal(out.Waiting, []string{"node-c"}) {
		t.Errorf("waiting for %v", out.Waiting)
	}
	early := at(13*time.Minute, "node-b", "node-c")
	early.Command = Command{Verb: CommandRetire}
	if out := step(early, rotation.PhaseDistributing, old, young); out.Refused == nil {
		t.Error("the only root in use may be removed")
	}
	bundle := r.Bundle()
	step(at(14*time.Minute, "node-b"), rotation.PhaseRetiring, old, young)
	if r.Signer != young || r.Previous != old || r.server() != old || r.Source != "cacerts" {
		t.Error("the new key does not sign, or the old one not the server's certificate")
	}
	if !bytes.Equal(bundle, r.Bundle()) {
		t.Error("the switch changes what is trusted")
	}
	step(at(14*time.Minute+time.Hour+lag-time.Second), rotation.PhaseRetiring, old, young)
	step(at(14*time.Minute+time.Hour+lag), rotation.PhaseSettled, young)
	if r.Previous != nil {
		t.Error("the old key is kept")
	}
}

// TestDeadlineWaitsForANewLeader: one that takes over after the deadline has
// heard of nobody yet; it gives those it waits for the time to come back.
//
//ambit:feature identity-root-stalled
func TestDeadlineWaitsForANewLeader(t *testing.T) {
	old, young := newAuthority(t, RootTTL), newAuthority(t, RootTTL)
	for _, timeout := range []time.Duration{2 * time.Second, time.Hour} {
		r := settled(old).Step(Situation{Now: began, Wish: wish(young), Timeout: timeout, TTL: time.Hour}).Record
		back := began.Add(3 * timeout) // nobody led for long
		at := func(d time.Duration, lacking ...string) string {
			out := r.Step(Situation{Now: back.Add(d), Leading: d, Wish: wish(young), Lacking: lacking, Timeout: timeout, TTL: time.Hour})
			return out.Record.Phase()
		}
		patience := min(timeout, comeback)
		if got := at(0, "node-b"); got != rotation.PhaseDistributing {
			t.Errorf("%v: at once: %s", timeout, got)
		}
		if got := at(patience-1, "node-b"); got != rotation.PhaseDistributing {
			t.Errorf("%v: before they can be back: %s", timeout, got)
		}
		if got := at(patience - 1); got != rotation.PhaseRetiring {
			t.Errorf("%v: when all are back: %s", timeout, got)
		}
		if got := at(patience, "node-b"); got != rotation.PhaseStalled {
			t.Errorf("%v: one did not come: %s", timeout, got)
		}
	}
}

//ambit:feature identity-root-change identity-root-abort
func TestRotationByWay(t *testing.T) {
	old, young, third := newAuthority(t, RootTTL), newAuthority(t, RootTTL), newAuthority(t, RootTTL)
	renewed := reissue(t, old)
	underWay := settled(old).Step(Situation{Now: began, Wish: wish(young), Timeout: time.Minute, TTL: time.Hour}).Record
	retiring := underWay.Step(Situation{Now: began, Wish: wish(young), Timeout: time.Minute, TTL: time.Hour}).Record
	for _, c := range []struct {
		name    string
		from    *Record
		s       Situation
		phase   string
		signer  *Authority
		trusted []*Authority
		refused string
	}{
		{"as it is", settled(old), Situation{Wish: wish(old)}, rotation.PhaseSettled, old, []*Authority{old}, ""},
		{"Secret gone", settled(old), Situation{}, rotation.PhaseSettled, old, []*Authority{old}, ""},
		{"Secret damaged", settled(old), Situation{Wish: &Wish{Source: "cacerts", Err: errors.New("no")}}, rotation.PhaseSettled, old, []*Authority{old}, ""},
		{"damaged under way", underWay, Situation{Wish: &Wish{Source: "cacerts", Err: errors.New("no")}}, rotation.PhaseDistributing, old, []*Authority{old, young}, ""},
		{"gone under way", underWay, Situation{}, rotation.PhaseSettled, old, []*Authority{old}, ""},
		{"taken back under way", underWay, Situation{Wish: wish(old)}, rotation.PhaseSettled, old, []*Authority{old}, ""},
		{"another under way", underWay, Situation{Wish: wish(third)}, rotation.PhaseDistributing, old, []*Authority{old, third}, ""},
		{"another while the old root goes", retiring, Situation{Wish: wish(third)}, rotation.PhaseDistributing, young, []*Authority{old, young, third}, ""},
		{"back while the old root goes", retiring, Situation{Wish: wish(old)}, rotation.PhaseDistributing, young, []*Authority{old, young}, ""},
		{"the same root, a new certificate of it", settled(old), Situation{Wish: wish(renewed)}, rotation.PhaseDistributing, old, []*Authority{old}, ""},
		{"told to go on with nothing", settled(old), Situation{Wish: wish(old), Command: Command{Verb: CommandContinue}}, rotation.PhaseSettled, old, []*Authority{old}, "no change"},
		{"told to remove nothing", settled(old), Situation{Wish: wish(old), Command: Command{Verb: CommandRetire}}, rotation.PhaseSettled, old, []*Authority{old}, "no old root"},
		{"told to remove before the switch", underWay, Situation{Wish: wish(young), Lacking: []string{"n"}, Command: Command{Verb: CommandRetire}}, rotation.PhaseDistributing, old, []*Authority{old, young}, "does not sign yet"},
		{"told to remove after it", retiring, Situation{Wish: wish(young), Command: Command{Verb: CommandRetire}}, rotation.PhaseSettled, young, []*Authority{young}, ""},
		{"told to go on without a stranger", underWay, Situation{Wish: wish(young), Lacking: []string{"node a"}, Command: Command{Verb: CommandWithout, Args: []string{"node a", "nodeb"}}},
			rotation.PhaseDistributing, old, []*Authority{old, young}, `"nodeb" is not among those that lack the new root: node a`},
		{"told to go on without", underWay, Situation{Wish: wish(young), Lacking: []string{"node a"}, Command: Command{Verb: CommandWithout, Args: []string{"node a"}}},
			rotation.PhaseRetiring, young, []*Authority{old, young}, ""},
		{"nonsense", settled(old), Situation{Wish: wish(old), Command: Command{Verb: "x"}}, rotation.PhaseSettled, old, []*Authority{old}, "no such command"},
		{"signer expired", settled(old), Situation{Now: began.AddDate(20, 0, 0), Wish: wish(young)}, rotation.PhaseRetiring, young, []*Authority{old, young}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.s.Now.IsZero() {
				c.s.Now = began.Add(time.Second)
			}
			c.s.Timeout, c.s.TTL = time.Minute, time.Hour
			before := *c.from
			out := c.from.Step(c.s)
			if !reflect.DeepEqual(before, *c.from) {
				t.Error("the record itself was changed")
			}
			r := out.Record
			if r.Phase() != c.phase || r.Signer.Fingerprint() != c.signer.Fingerprint() {
				t.Errorf("phase %s with signer %s: %v", r.Phase(), r.Signer.Fingerprint(), out.Events)
			}
			for _, a := range []*Authority{old, young, third} {
				if got := bytes.Contains(r.Bundle(), a.RootPEM()); got != slices.Contains(c.trusted, a) {
					t.Errorf("root %s trusted: %t", a.Fingerprint(), got)
				}
			}
			if text := fmt.Sprint(out.Refused); (out.Refused == nil) != (c.refused == "") || !strings.Contains(text, c.refused) {
				t.Errorf("refused: %v, want %q", out.Refused, c.refused)
			}
			// What was decided survives being written down.
			data, err := r.SecretData()
			if err != nil {
				t.Fatal(err)
			}
			again, err := LoadRecord("ns/state", data)
			if err != nil || again.Phase() != r.Phase() || !bytes.Equal(again.Bundle(), r.Bundle()) || again.Longest != r.Longest ||
				again.server().Fingerprint() != r.server().Fingerprint() || again.Source != r.Source {
				t.Errorf("read again: %+v, %v, want %+v", again, err, r)
			}
			if data, _ := again.SecretData(); !reflect.DeepEqual(data, must(r.SecretData())) {
				t.Error("written again it differs")
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// reissue is an intermediate of a's root: another signer, the same root.
func reissue(t *testing.T, a *Authority) *Authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "issuer"},
		NotBefore: a.issuer.NotBefore, NotAfter: a.issuer.NotAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign},
		a.issuer, key.Public(), a.key))
	return must(Load("ns/cacerts", map[string][]byte{
		KeyCACert: encodePEM("CERTIFICATE", der), KeyCAKey: encodePEM("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key))),
		KeyCertChain: encodePEM("CERTIFICATE", der), KeyRootCert: a.RootPEM(),
	}))
}

// TestNobodyMeetsAStranger drives many nodes, which hear of a new bundle late
// and renew their certificates when they like, through changes at random
// moments, and asks the obvious: is every certificate in use of a root that
// every node trusts?
//
//ambit:feature identity-root-change
func TestNobodyMeetsAStranger(t *testing.T) {
	const nodes, ttl = 5, 30 * time.Second
	authorities := make([]*Authority, 4)
	for i := range authorities {
		authorities[i] = newAuthority(t, RootTTL)
	}
	switches, removals := 0, 0
	known := map[[2]string]bool{}
	trusts := func(bundle string, a *Authority) bool {
		k := [2]string{bundle, a.Fingerprint()}
		if _, ok := known[k]; !ok {
			known[k] = strings.Contains(bundle, string(a.RootPEM()))
		}
		return known[k]
	}
	for seed := range uint64(20) {
		rnd := mathrand.New(mathrand.NewPCG(seed, 1))
		type node struct {
			bundle  string
			signer  *Authority
			expires time.Time
		}
		now := began
		r := &Record{Source: "a", Signer: authorities[0], Longest: ttl}
		want := authorities[0]
		seen := r // what a slow replica believes, for at most lag
		seenAt := now
		bundle := string(r.Bundle())
		all := make([]node, nodes)
		for i := range all {
			all[i] = node{bundle, r.Signer, now.Add(ttl)}
		}
		for range 2000 {
			now = now.Add(time.Duration(rnd.IntN(1000)) * time.Millisecond)
			if rnd.IntN(200) == 0 {
				want = authorities[rnd.IntN(len(authorities))]
			}
			for i := range all {
				if rnd.IntN(4) == 0 {
					all[i].bundle = bundle
				}
				// A certificate is renewed before it ends, by either replica.
				if rnd.IntN(10) == 0 || !now.Add(time.Second).Before(all[i].expires) {
					by := r.Signer
					if rnd.IntN(2) == 0 {
						by = seen.Signer
					}
					all[i].signer, all[i].expires = by, now.Add(ttl)
				}
			}
			if now.Sub(seenAt) > reviewTTL-2*time.Second || rnd.IntN(50) == 0 {
				seen, seenAt = r, now
			}
			var lacking []string
			for i := range all {
				if all[i].bundle != bundle {
					lacking = append(lacking, fmt.Sprint(i))
				}
			}
			out := r.Step(Situation{Now: now, Wish: &Wish{Source: "a", Authority: want}, Lacking: lacking, Timeout: time.Hour, TTL: ttl})
			if out.Record.Signer != r.Signer {
				switches++
			}
			if len(out.Record.Retired) < len(r.Retired) {
				removals++
			}
			r, bundle = out.Record, string(out.Record.Bundle())
			for i := range all {
				for j := range all {
					if !trusts(all[j].bundle, all[i].signer) {
						t.Fatalf("seed %d: node %d meets a certificate of node %d it does not know; phase %s", seed, j, i, r.Phase())
					}
				}
				if !trusts(all[i].bundle, r.server()) {
					t.Fatalf("seed %d: node %d does not know the controller; phase %s", seed, i, r.Phase())
				}
			}
		}
	}
	if switches < 50 || removals < 20 {
		t.Errorf("only %d switches and %d removals were tried", switches, removals)
	}
}

// TestKeyWhoseCertificatesNobodyAccepts: an issuer that is good itself, below
// something that does not let it issue what the mesh needs, is not adopted.
//
//ambit:feature identity-secret-damaged
func TestKeyWhoseCertificatesNobodyAccepts(t *testing.T) {
	certificate := func(tmpl, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
		if parent == nil {
			parent = tmpl
		}
		return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer))))
	}
	for _, c := range []struct {
		name   string
		length int // of paths below the root; -1: any
		usage  []x509.ExtKeyUsage
		good   bool
	}{
		{"any", -1, nil, true},
		{"room for an intermediate", 1, nil, true},
		{"no room for an intermediate", 0, nil, false},
		{"both ends of TLS", -1, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, true},
		{"only clients", -1, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, false},
	} {
		rootKey, key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		root := certificate(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, MaxPathLen: c.length, MaxPathLenZero: c.length == 0},
			nil, rootKey, rootKey)
		issuer := certificate(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "issuer"}, MaxPathLen: -1, ExtKeyUsage: c.usage},
			root, key, rootKey)
		_, err := Load("ns/cacerts", map[string][]byte{
			KeyCACert: encodePEM("CERTIFICATE", issuer.Raw), KeyCAKey: encodePEM("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key))),
			KeyCertChain: encodePEM("CERTIFICATE", issuer.Raw), KeyRootCert: encodePEM("CERTIFICATE", root.Raw),
		})
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "secret ns/cacerts: key "+KeyCertChain) {
			t.Errorf("%s: the Secret and its key are not named: %v", c.name, err)
		}
	}
}

// TestOverlappingRoots: how long another root lives, which is there for the time
// of a change, does not make certificates of this one live longer.
//
//ambit:feature identity-secret-damaged
func TestOverlappingRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sign := func(serial int64, ttl time.Duration, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
			key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint(serial)}, NotBefore: time.Now(), NotAfter: time.Now().Add(ttl),
				IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
			if parent == nil {
				parent, signer = tmpl, key
			}
			return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)))), key
		}
		root, rootKey := sign(1, time.Hour, nil, nil)
		other, _ := sign(2, RootTTL, nil, nil)
		issuer, key := sign(3, RootTTL, root, rootKey)
		data := map[string][]byte{
			KeyCACert: encodePEM("CERTIFICATE", issuer.Raw), KeyCAKey: encodePEM("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key))),
			KeyCertChain: encodePEM("CERTIFICATE", issuer.Raw), KeyRootCert: certificatesPEM([]*x509.Certificate{root, other}),
		}
		a := must(Load("ns/cacerts", data))
		if _, end := a.Expiry(); !end.Equal(root.NotAfter) {
			t.Errorf("the chain ends at %v, its root at %v", end, root.NotAfter)
		}
		c := must(a.ServerCertificate("x"))
		if c.Leaf.NotAfter.After(root.NotAfter) {
			t.Errorf("issued until %v, which the root does not live to see", c.Leaf.NotAfter)
		}
		time.Sleep(2 * time.Hour) // fake time
		if _, err := Load("ns/cacerts", data); !errors.Is(err, ErrExpired) {
			t.Errorf("expired: %v", err)
		}
	})
}

//ambit:feature identity-secret-damaged
func TestDamagedRecordIsNamed(t *testing.T) {
	r := settled(newAuthority(t, RootTTL)).Step(Situation{Now: began, Wish: wish(newAuthority(t, RootTTL)), Timeout: time.Minute, TTL: time.Hour}).Record
	for _, c := range []struct{ key, value, want string }{
		{KeyRotation, "", KeyRotation},
		{KeyRotation, "{}", "source is missing"},
		{KeyRotation, `{"source":"x","longestLifetime":"1"}`, "longestLifetime"},
		{KeyRotation, `{"source":"x","longestLifetime":"48h"}`, "longestLifetime"},
		{KeyRotation, `{"source":"x","longestLifetime":"1h","next":{}}`, "next.roots"},
		{KeyRotation, `{"source":"x","longestLifetime":"1h","retired":[{"root":"x"}]}`, "retired[0].root"},
		{KeyCAKey, "x", KeyCAKey},
		{KeyRootCert, "x", KeyRootCert},
	} {
		data := must(r.SecretData())
		data[c.key] = []byte(c.value)
		if _, err := LoadRecord("ns/state", data); err == nil || !strings.Contains(err.Error(), "ns/state") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %q: %v", c.key, c.value, err)
		}
	}
}

func FuzzLoadRecord(f *testing.F) {
	r := settled(must(NewSelfSigned("cluster.local", RootTTL)))
	data := must(r.SecretData())
	f.Add(data[KeyRotation])
	f.Add([]byte(`{"source":"x","longestLifetime":"1h","next":{"roots":""},"retired":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d := map[string][]byte{KeyRotation: text}
		for k, v := range data {
			if k != KeyRotation {
				d[k] = v
			}
		}
		r, err := LoadRecord("ns/state", d)
		if err != nil {
			return
		}
		r.Bundle()
		if _, err := LoadRecord("ns/state", must(r.SecretData())); err != nil {
			t.Errorf("cannot be read again: %v", err)
		}
	})
}
