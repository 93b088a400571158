package client

import (
	"crypto/x509"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// anchors are the roots one party named.
type anchors struct {
	pem   string
	roots []*x509.Certificate
}

// Roots implements identity.Source. Trusted are the roots that were pushed
// last, and on top of them those of an answer of the CA that came since: of the
// two channels either may be the one that hears of a new root first.
func (s *Source) Roots() *x509.CertPool { return s.roots.Load() }

// Terms implements identity.Source.
func (s *Source) Terms() *identity.Terms { return s.config.Terms }

// SetRoots takes all that the mesh trusts, in PEM. What answers of the CA named
// before does not count any more, so that a root that is removed is gone.
func (s *Source) SetRoots(pem []byte) error {
	roots, err := parsePEM(string(pem))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pushed, s.answer = anchors{string(pem), roots}, anchors{}
	s.trustLocked("pushed")
	return nil
}

// trustLocked puts the two together for those who verify.
func (s *Source) trustLocked(from string) {
	pool := x509.NewCertPool()
	count := 0
	seen := map[string]bool{}
	for _, c := range append(s.pushed.roots[:len(s.pushed.roots):len(s.pushed.roots)], s.answer.roots...) {
		if !seen[string(c.Raw)] {
			seen[string(c.Raw)] = true
			pool.AddCert(c)
			count++
		}
	}
	s.roots.Store(pool)
	s.config.Logger.Info("trust anchors received", "count", count, "from", from)
}
