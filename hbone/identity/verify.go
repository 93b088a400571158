package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Cause says in one word why a peer's certificate was refused; it is fit for a
// metric label.
type Cause string

// The causes there are.
const (
	NoCertificate      Cause = "no_certificate"
	Expired            Cause = "expired"
	NotYetValid        Cause = "not_yet_valid"
	UnknownAuthority   Cause = "unknown_authority"
	TrustDomain        Cause = "trust_domain"
	UnexpectedIdentity Cause = "unexpected_identity"
	BadCertificate     Cause = "bad_certificate"
)

// VerifyError is why we refused a peer. errors.As finds it in what
// tls.Conn.Handshake returns on the side that refused.
type VerifyError struct {
	Cause Cause
	Peer  string // the SPIFFE URIs the peer's leaf claims, unverified; "" when it has none
	Err   error
}

func (e *VerifyError) Error() string {
	if e.Peer == "" {
		return fmt.Sprintf("verify peer: %s: %v", e.Cause, e.Err)
	}
	return fmt.Sprintf("verify peer %s: %s: %v", e.Peer, e.Cause, e.Err)
}

func (e *VerifyError) Unwrap() error { return e.Err }

func verifyClient(chain []*x509.Certificate, roots *x509.CertPool, self ID, terms *Terms) error {
	leaf, err := verifyChain(chain, roots, x509.ExtKeyUsageClientAuth, terms)
	if err != nil {
		return err
	}
	id, err := FromCertificate(leaf)
	if err != nil {
		return &VerifyError{BadCertificate, "", err}
	}
	// The identity policy will be decided on is the one that must belong to us.
	if !terms.SameDomain(id.TrustDomain, self.TrustDomain) {
		return &VerifyError{TrustDomain, id.String(), fmt.Errorf("trust domain %q is not %q", id.TrustDomain, self.TrustDomain)}
	}
	return nil
}

func verifyServer(chain []*x509.Certificate, roots *x509.CertPool, self ID, expect []ID, terms *Terms) error {
	leaf, err := verifyChain(chain, roots, x509.ExtKeyUsageServerAuth, terms)
	if err != nil {
		return err
	}
	for _, u := range leaf.URIs {
		id, err := Parse(u.String())
		if err != nil {
			continue
		}
		for _, want := range expect {
			if !want.IsZero() && terms.SameID(id, want, self.TrustDomain) {
				return nil
			}
		}
	}
	want := make([]string, len(expect))
	for i, id := range expect {
		want[i] = id.String()
	}
	return &VerifyError{UnexpectedIdentity, claimed(leaf), fmt.Errorf("expected one of [%s]", strings.Join(want, " "))}
}

// verifyChain checks everything about a chain that does not depend on who the
// peer is, and returns its leaf.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, terms *Terms) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, &VerifyError{NoCertificate, "", errors.New("peer presented no certificate")}
	}
	leaf := chain[0]
	if roots == nil {
		// x509 would take the system's roots for nil.
		return nil, &VerifyError{UnknownAuthority, claimed(leaf), errors.New("no trust anchors yet")}
	}
	if leaf.IsCA {
		// X509-SVID 5.2: a signing certificate never identifies a workload.
		return nil, &VerifyError{BadCertificate, claimed(leaf), errors.New("leaf is a CA certificate")}
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	now := time.Now()
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: inter,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return nil, &VerifyError{cause(err, leaf, now), claimed(leaf), err}
	}
	if r := terms.revoked(); r != nil {
		if err := r.check(chains); err != nil {
			if r.Refused != nil {
				r.Refused(usage == x509.ExtKeyUsageServerAuth)
			}
			return nil, err
		}
	}
	return leaf, nil
}

func cause(err error, leaf *x509.Certificate, now time.Time) Cause {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		if invalid.Cert != nil {
			leaf = invalid.Cert
		}
		// x509 has one reason for both ends of the validity period.
		if now.Before(leaf.NotBefore) {
			return NotYetValid
		}
		return Expired
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return UnknownAuthority
	}
	return BadCertificate
}

func claimed(leaf *x509.Certificate) string {
	var s []string
	for _, u := range leaf.URIs {
		if u.Scheme == "spiffe" {
			s = append(s, u.String())
		}
	}
	return strings.Join(s, ",")
}
