package client

import (
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/hbone/identity"
)

func account(name string) identity.ID {
	return identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: name}
}

// signer is an authority in the same process, in the bubble's time.
type signer struct {
	authority *ca.Authority
	mu        sync.Mutex
	asked     []identity.ID
	fail      error
	hold      chan struct{} // requests wait for it when set
	ttl       time.Duration // of what is signed; 0: a day
	stale     *issued       // answered instead when set
}

func newSigner(t *testing.T) *signer {
	a, err := ca.NewSelfSigned("cluster.local", ca.RootTTL)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{authority: a}
}

func (s *signer) ask(ctx context.Context, id identity.ID) (*issued, error) {
	s.mu.Lock()
	s.asked = append(s.asked, id)
	fail, hold, ttl, stale := s.fail, s.hold, s.ttl, s.stale
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	if stale != nil {
		return stale, nil
	}
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, err
	}
	chain, err := s.authority.Sign([]byte(csr), id, ttl)
	if err != nil {
		return nil, err
	}
	return readAnswer(chain, key, id)
}

func (s *signer) set(fail error) {
	s.mu.Lock()
	s.fail = fail
	s.mu.Unlock()
}

// answer makes every answer c, or a fresh one again for nil.
func (s *signer) answer(c *issued) {
	s.mu.Lock()
	s.stale = c
	s.mu.Unlock()
}

func (s *signer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// inBubble runs test with a running source in fake time.
func inBubble(t *testing.T, test func(t *testing.T, s *Source, ca *signer)) {
	synctest.Test(t, func(t *testing.T) {
		ca := newSigner(t)
		s := New(Config{})
		s.ask = ca.ask
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		test(t, s, ca)
		cancel()
		<-done
	})
}

//ambit:feature identity-requests
func TestOneRequestServesAllWaiters(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, ca *signer) {
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				c, err := s.Certificate(t.Context(), account("web"))
				if err != nil || c.Leaf.URIs[0].String() != account("web").String() || len(c.Certificate) != 1 {
					t.Errorf("%v, %v", c, err)
				}
			})
		}
		all.Wait()
		if n := ca.count(); n != 1 {
			t.Errorf("%d requests", n)
		}
		if s.Roots() == nil {
			t.Error("no roots")
		}
	})
}

//ambit:feature identity-rotation identity-requests
func TestRefreshAtHalfOfValidity(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, ca *signer) {
		first, err := s.Certificate(t.Context(), account("web"))
		if err != nil {
			t.Fatal(err)
		}
		half := first.Leaf.NotBefore.Add(first.Leaf.NotAfter.Sub(first.Leaf.NotBefore) / 2)
		time.Sleep(time.Until(half) - time.Second)
		synctest.Wait()
		if n := ca.count(); n != 1 {
			t.Fatalf("%d requests before half", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := ca.count(); n != 2 {
			t.Fatalf("%d requests after half", n)
		}
		if second, _ := s.Certificate(t.Context(), account("web")); second == first {
			t.Fatal("still the first certificate")
		}
	})
}

//ambit:feature identity-ca-away
func TestOldCertificateIsKeptWhileTheCAIsAway(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, ca *signer) {
		first, err := s.Certificate(t.Context(), account("web"))
		if err != nil {
			t.Fatal(err)
		}
		ca.set(status.Error(codes.Unavailable, "away"))
		time.Sleep(time.Until(first.Leaf.NotAfter) - time.Second)
		synctest.Wait()
		if c, err := s.Certificate(t.Context(), account("web")); c != first {
			t.Fatalf("error %v", err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		var e *Error
		if _, err := s.Certificate(t.Context(), account("web")); !errors.As(err, &e) || e.Denied {
			t.Fatalf("an expired certificate, error %v", err)
		}
		ca.set(nil)
		time.Sleep(maxBackoff)
		synctest.Wait()
		if _, err := s.Certificate(t.Context(), account("web")); err != nil {
			t.Fatal(err)
		}
	})
}

//ambit:feature identity-ca-away identity-requests
func TestBackoffDoublesToItsCap(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, ca *signer) {
		ca.set(status.Error(codes.Unauthenticated, "no enrolled pod"))
		var e *Error
		if _, err := s.Certificate(t.Context(), account("web")); !errors.As(err, &e) || !e.Denied || !strings.Contains(err.Error(), "no enrolled pod") {
			t.Fatalf("error %v", err)
		}
		want := time.Second
		for range 12 {
			n, start := ca.count(), time.Now()
			for ca.count() == n {
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
			}
			if d := time.Since(start); d < want*8/10-20*time.Millisecond || d > want*12/10+20*time.Millisecond {
				t.Fatalf("waited %v, want about %v", d, want)
			}
			want = min(2*want, maxBackoff)
		}
		// Callers do not wait for the next attempt.
		start := time.Now()
		if _, err := s.Certificate(t.Context(), account("web")); err == nil || time.Since(start) != 0 {
			t.Fatalf("error %v after %v", err, time.Since(start))
		}
		if st := s.States(); len(st) != 1 || !strings.HasPrefix(st[0].State, "Unavailable: ") {
			t.Fatalf("states %+v", st)
		}
		ca.set(nil)
		time.Sleep(2 * maxBackoff)
		synctest.Wait()
		if st := s.States(); st[0].State != "Available" || len(st[0].Chain) != 1 || len(st[0].Roots) != 1 {
			t.Fatalf("states %+v", st)
		}
	})
}

//ambit:feature identity-requests
func TestConnectionsGoBeforePrefetches(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, ca *signer) {
		ca.hold = make(chan struct{})
		for i := range parallel + 20 {
			s.Prefetch(account(fmt.Sprint("warm", i)))
		}
		synctest.Wait()
		if n := ca.count(); n != parallel {
			t.Fatalf("%d requests at once", n)
		}
		got := make(chan error, 1)
		go func() { _, err := s.Certificate(t.Context(), account("urgent")); got <- err }()
		synctest.Wait()
		ca.hold <- struct{}{} // one request ends, one place is free
		synctest.Wait()
		if n := ca.count(); n != parallel+1 || ca.asked[parallel] != account("urgent") {
			t.Errorf("%d requests, the last for %v", n, ca.asked[n-1])
		}
		close(ca.hold)
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	})
}

//ambit:feature identity-prefetch
func TestForget(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, ca *signer) {
		if _, err := s.Certificate(t.Context(), account("web")); err != nil {
			t.Fatal(err)
		}
		s.Forget(account("web"))
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		if n := ca.count(); n != 1 || len(s.States()) != 0 {
			t.Errorf("%d requests, states %v", n, s.States())
		}
		ca.hold = make(chan struct{})
		got := make(chan error, 1)
		go func() { _, err := s.Certificate(t.Context(), account("late")); got <- err }()
		synctest.Wait()
		s.Forget(account("late"))
		if err := <-got; !errors.Is(err, errForgotten) {
			t.Errorf("error %v", err)
		}
		close(ca.hold)
		synctest.Wait()
		if len(s.States()) != 0 {
			t.Errorf("a late answer came back: %v", s.States())
		}
	})
}

func TestWaitersEndWithTheirContextAndWithRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newSigner(t)
		ca.hold = make(chan struct{})
		s := New(Config{})
		s.ask = ca.ask
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		short, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if _, err := s.Certificate(short, account("web")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		got := make(chan error, 1)
		go func() { _, err := s.Certificate(t.Context(), account("web")); got <- err }()
		synctest.Wait()
		cancel()
		<-done
		if err := <-got; !errors.Is(err, errStopped) {
			t.Errorf("error %v", err)
		}
		if _, err := s.Certificate(t.Context(), account("new")); !errors.Is(err, errStopped) {
			t.Errorf("error %v", err)
		}
	})
}

// The structure of the request is a wire fact other CAs rely on.
//
//ambit:feature identity-answers
func TestRequestStructure(t *testing.T) {
	_, text, err := newRequest(account("web"))
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 || len(block.Headers) != 0 {
		t.Fatalf("PEM %q", text)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
	if csr.SignatureAlgorithm != x509.ECDSAWithSHA256 || csr.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("algorithms %v, %v", csr.SignatureAlgorithm, csr.PublicKeyAlgorithm)
	}
	if string(csr.RawSubject) != "0\x00" {
		t.Errorf("subject %x", csr.RawSubject)
	}
	if c, ok := csr.PublicKey.(interface{ Params() *elliptic.CurveParams }); ok && c.Params().Name != "P-256" {
		t.Errorf("curve %s", c.Params().Name)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
		t.Fatalf("extensions %v", csr.Extensions)
	}
	// GeneralNames with one uniformResourceIdentifier [6].
	name := "spiffe://cluster.local/ns/shop/sa/web"
	want := append([]byte{0x30, byte(len(name) + 2), 0x86, byte(len(name))}, name...)
	if string(csr.Extensions[0].Value) != string(want) {
		t.Errorf("SAN %x, want %x", csr.Extensions[0].Value, want)
	}
}

//ambit:feature identity-answers
func TestAnswerIsChecked(t *testing.T) {
	a, err := ca.NewSelfSigned("cluster.local", ca.RootTTL)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ca.NewSelfSigned("cluster.local", ca.RootTTL)
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := newRequest(account("web"))
	if err != nil {
		t.Fatal(err)
	}
	otherKey, _, err := newRequest(account("web"))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign([]byte(csr), account("web"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAnswer(chain, key, account("web")); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name  string
		chain []string
		id    identity.ID
		key   bool
		want  string
	}{
		{"empty", nil, account("web"), true, "no root"},
		{"leaf alone", chain[:1], account("web"), true, "no root"},
		{"another identity", chain, account("db"), true, "want spiffe://cluster.local/ns/shop/sa/db"},
		{"another key", chain, account("web"), false, "another key"},
		{"root of another", []string{chain[0], string(foreign.RootPEM())}, account("web"), true, "does not lead"},
		{"garbage leaf", []string{"x", chain[1]}, account("web"), true, "cert_chain[0]"},
		{"garbage root", []string{chain[0], "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"}, account("web"), true, "cert_chain[1]"},
		{"empty root", []string{chain[0], " "}, account("web"), true, "cert_chain[1]: empty"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			k := key
			if !c.key {
				k = otherKey
			}
			if _, err := readAnswer(c.chain, k, c.id); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v", err)
			}
		})
	}
}
