package client

import (
	"crypto/x509"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/controller/ca"
)

// trusts says of which of the authorities a certificate would be accepted.
func trusts(t *testing.T, s *Source, all ...*ca.Authority) []bool {
	t.Helper()
	var out []bool
	for _, a := range all {
		_, err := a.Roots()[0].Verify(x509.VerifyOptions{Roots: s.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		out = append(out, err == nil)
	}
	return out
}

//ambit:feature identity-root-change
func TestRootsOfBothChannels(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, signer *signer) {
		old := signer.authority
		young, err := ca.NewSelfSigned("cluster.local", ca.RootTTL)
		if err != nil {
			t.Fatal(err)
		}
		want := func(when string, of ...bool) {
			t.Helper()
			if got := trusts(t, s, old, young); !slices.Equal(got, of) {
				t.Errorf("%s: trusts %v, want %v", when, got, of)
			}
		}
		if s.Roots() != nil {
			t.Error("roots before anything came: nil is what keeps peers out")
		}
		both := append(slices.Clone(old.RootPEM()), young.RootPEM()...)
		if err := s.SetRoots(old.RootPEM()); err != nil {
			t.Fatal(err)
		}
		want("pushed before any certificate", true, false)
		if _, err := s.Certificate(t.Context(), account("web")); err != nil {
			t.Fatal(err)
		}
		if err := s.SetRoots(both); err != nil {
			t.Fatal(err)
		}
		want("both pushed", true, true)
		for _, bad := range []string{"", "x", string(both[:len(both)-40])} {
			if err := s.SetRoots([]byte(bad)); err == nil {
				t.Errorf("%.10q was taken", bad)
			}
		}
		want("after bad ones", true, true)
		// The CA hears of the next root before this node's stream does.
		if err := s.SetRoots(old.RootPEM()); err != nil {
			t.Fatal(err)
		}
		signer.authority = young
		if _, err := s.Certificate(t.Context(), account("db")); err != nil {
			t.Fatal(err)
		}
		want("pushed the old, answered with the new", true, true)
		if err := s.SetRoots(young.RootPEM()); err != nil {
			t.Fatal(err)
		}
		want("the old one removed", false, true)
	})
}

// TestClockOfTheNode: a certificate that is over by our clock is no answer; the
// error says what is the matter, and the attempts go on.
//
//ambit:feature identity-clock
func TestClockOfTheNode(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, signer *signer) {
		stale, err := signer.ask(t.Context(), account("web"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Hour) // now it is what a CA signs whose clock is behind
		signer.answer(stale)
		if _, err := s.Certificate(t.Context(), account("web")); err == nil || !strings.Contains(err.Error(), "clock is ahead of the CA's by at least 1h0m") {
			t.Errorf("error %v", err)
		}
		signer.answer(nil)
		time.Sleep(maxBackoff)
		synctest.Wait()
		if _, err := s.Certificate(t.Context(), account("web")); err != nil {
			t.Error(err)
		}
	})
}

// TestClockBehind: what is signed a little in the past can be used where the
// clock is a little behind; farther behind is said.
//
//ambit:feature identity-clock
func TestClockBehind(t *testing.T) {
	var said strings.Builder
	s := New(Config{Logger: slog.New(slog.NewTextHandler(&said, nil))})
	synctest.Test(t, func(t *testing.T) {
		got, err := newSigner(t).ask(t.Context(), account("web"))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			behind time.Duration
			said   bool
		}{{0, false}, {time.Minute, false}, {119 * time.Second, false}, {10 * time.Minute, true}} {
			said.Reset()
			err := s.judgeClock(got.certificate.Leaf, time.Now().Add(-c.behind))
			if err != nil || (said.Len() > 0) != c.said || c.said && !strings.Contains(said.String(), "by_at_least=8m") {
				t.Errorf("%v behind: %v, %s", c.behind, err, &said)
			}
		}
	})
}

// TestAttemptsLeaveTimeForOthers: a replica of the CA that never answers costs
// a part of what is left, not all of it, and it shows that something is wrong
// while the old certificate is good.
//
//ambit:feature identity-ca-away
func TestAttemptsLeaveTimeForOthers(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Source, signer *signer) {
		signer.ttl = 30 * time.Second
		first, err := s.Certificate(t.Context(), account("web"))
		if err != nil {
			t.Fatal(err)
		}
		signer.mu.Lock()
		signer.hold = make(chan struct{}) // nobody closes it: answers never come
		signer.mu.Unlock()
		time.Sleep(time.Until(first.Leaf.NotAfter) - time.Second)
		synctest.Wait()
		if n := signer.count(); n < 4 {
			t.Errorf("%d requests in a life of 30 s, want the first and three more at least", n)
		}
		if good, overdue, end := s.survey(time.Now()); good != 1 || overdue != 1 || !end.Equal(first.Leaf.NotAfter) {
			t.Errorf("%d good, %d overdue, first ends %v", good, overdue, end)
		}
		if st := s.States(); !strings.HasPrefix(st[0].State, "Available, not renewed: ") {
			t.Errorf("state %q", st[0].State)
		}
	})
}
