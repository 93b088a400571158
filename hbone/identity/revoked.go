package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Revoked is the Cause of a certificate on a revocation list.
const Revoked Cause = "revoked"

// Revocations are the certificates that are good no more, and the connections
// that end when theirs becomes one of them. The zero Revocations has no lists.
type Revocations struct {
	// Strange, if set before use, is told of a list that does not count for an
	// issuer of its name, and why: once for each that may not sign it, and of one
	// that has not signed it once a certificate of it is on the list.
	Strange func(list string, why error)
	// Refused, if set before use, is told of every peer that a handshake refuses
	// for being revoked, and whether we are the client.
	Refused func(client bool)

	mu      sync.Mutex
	lists   map[string][]*revocationList // guarded by mu; by issuer's name, as encoded
	size    int                          // guarded by mu; revoked certificates
	watched map[*watched]struct{}        // guarded by mu
}

// revocationList is one list. Its map is immutable.
type revocationList struct {
	list    *x509.RevocationList
	serials map[string]struct{}

	mu    sync.Mutex
	found map[[32]byte]*finding // guarded by mu; by issuer's certificate
}

// finding is what a list is to an issuer of its name.
type finding struct {
	counts   bool
	disputed bool // signed with the issuer's key, but its certificate does not say it may
	told     bool
}

// watched is one connection and the ways its peer's certificate was verified by.
type watched struct {
	chain []*x509.Certificate
	roots *x509.CertPool
	since time.Time
	end   func(error)
}

// ParseRevocations reads lists in PEM, other blocks of which are skipped, or one
// in DER (RFC 5280). Nothing at all is no lists.
func ParseRevocations(b []byte) ([]*x509.RevocationList, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, nil
	}
	if !bytes.Contains(b, []byte("-----BEGIN")) {
		l, err := x509.ParseRevocationList(b)
		if err != nil {
			return nil, fmt.Errorf("revocation list, not PEM: %w", err)
		}
		return []*x509.RevocationList{l}, nil
	}
	var out []*x509.RevocationList
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		b = rest
		if block.Type != "X509 CRL" {
			continue
		}
		l, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("revocation list %d: %w", len(out)+1, err)
		}
		out = append(out, l)
	}
	if bytes.Contains(b, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("after %d revocation lists: a PEM block that does not end", len(out))
	}
	return out, nil
}

// removeFromCRL is the reason code of RFC 5280 5.3.1 by which a delta list takes
// a certificate off the list.
const removeFromCRL = 8

// Set replaces all lists, and ends the connections whose peer is revoked by them.
// A list that has expired counts as before: there is no newer word.
func (r *Revocations) Set(lists []*x509.RevocationList) {
	next := make(map[string][]*revocationList, len(lists))
	size := 0
	for _, l := range lists {
		x := &revocationList{list: l, serials: make(map[string]struct{}, len(l.RevokedCertificateEntries)), found: make(map[[32]byte]*finding)}
		for i := range l.RevokedCertificateEntries {
			if e := &l.RevokedCertificateEntries[i]; e.ReasonCode != removeFromCRL {
				x.serials[string(e.SerialNumber.Bytes())] = struct{}{}
			}
		}
		next[string(l.RawIssuer)] = append(next[string(l.RawIssuer)], x)
		size += len(x.serials)
	}
	r.mu.Lock()
	r.lists, r.size = next, size
	all := make([]*watched, 0, len(r.watched))
	for w := range r.watched {
		all = append(all, w)
	}
	r.mu.Unlock()
	for _, w := range all {
		r.judge(w)
	}
}

// judge ends the connection if its peer is revoked. The ways to the roots are
// looked for only now: that is work, and most connections end in peace.
func (r *Revocations) judge(w *watched) {
	chains, err := ways(w.chain, w.roots, w.since)
	if err == nil {
		err = r.check(chains)
	}
	if err != nil {
		w.end(err)
	}
}

// Len counts lists and the certificates on them.
func (r *Revocations) Len() (lists, certificates int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lists {
		lists += len(l)
	}
	return lists, r.size
}

// check refuses a peer none of whose chains is free of revoked certificates.
// What no list of its issuer speaks of is good.
func (r *Revocations) check(chains [][]*x509.Certificate) error {
	var first error
	for _, chain := range chains {
		err := r.checkChain(chain)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (r *Revocations) checkChain(chain []*x509.Certificate) error {
	for i := range len(chain) - 1 {
		c, issuer := chain[i], chain[i+1]
		r.mu.Lock()
		lists := r.lists[string(c.RawIssuer)]
		r.mu.Unlock()
		for _, l := range lists {
			// The name alone does not make the issuer: every self-signed root of
			// Istio has the same one. It is found out before it is needed: whoever
			// runs the mesh must see that a list does not count while it revokes
			// nobody yet.
			_, on := l.serials[string(c.SerialNumber.Bytes())]
			counts, why := l.counts(issuer, c, on)
			if why != nil && r.Strange != nil {
				r.Strange(l.list.Issuer.String(), why)
			}
			if on && counts {
				what := "certificate"
				if i > 0 {
					what = "intermediate"
				}
				return &VerifyError{Revoked, claimed(chain[0]), fmt.Errorf("%s serial %x, issued by %q, is revoked", what, c.SerialNumber, c.Issuer)}
			}
		}
	}
	return nil
}

// counts reports whether the list is the issuer's word about c, which it may be
// on: signed with its key by right (RFC 5280 6.3.3 (f), (g)). That is found out
// once. An error is what has not been told before.
func (l *revocationList) counts(issuer, c *x509.Certificate, on bool) (bool, error) {
	key := sha256.Sum256(issuer.Raw)
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.found[key]
	if f == nil {
		f = &finding{}
		f.counts = l.list.CheckSignatureFrom(issuer) == nil
		// RFC 5280 4.2.1.3: the usage cRLSign must be there where usages are named.
		f.disputed = !f.counts &&
			issuer.CheckSignature(l.list.SignatureAlgorithm, l.list.RawTBSRevocationList, l.list.Signature) == nil
		l.found[key] = f
	}
	if f.counts || f.told || !f.disputed && !on {
		return f.counts, nil
	}
	f.told = true
	if f.disputed {
		return false, fmt.Errorf("it revokes nothing: the certificate of its issuer, serial %x, does not have the usage cRLSign of a CA", issuer.SerialNumber)
	}
	return false, fmt.Errorf("certificate serial %x is on it, and the issuer of that, serial %x, has not signed it", c.SerialNumber, issuer.SerialNumber)
}

// Standing counts lists by what they are to the issuers of their names that peers
// have been verified by: accepted by one and disputed by none, refused, or of
// nobody who has been met yet.
func (r *Revocations) Standing() (accepted, refused, unmet int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, lists := range r.lists {
		for _, l := range lists {
			switch counts, met := l.standing(); {
			case !met:
				unmet++
			case counts:
				accepted++
			default:
				refused++
			}
		}
	}
	return accepted, refused, unmet
}

func (l *revocationList) standing() (counts, met bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.found {
		if f.disputed {
			return false, true
		}
		counts = counts || f.counts
	}
	return counts, len(l.found) > 0
}

// Watch has end called when the peer that presented chain is revoked, perhaps at
// once; end must not block. The result ends the watch. An error means that the
// connection cannot be watched.
func (r *Revocations) Watch(chain []*x509.Certificate, roots *x509.CertPool, end func(error)) (stop func(), err error) {
	if len(chain) == 0 || roots == nil {
		return func() {}, errors.New("peer without a chain to a root")
	}
	w := &watched{chain, roots, time.Now(), end}
	r.mu.Lock()
	if r.watched == nil {
		r.watched = make(map[*watched]struct{})
	}
	r.watched[w] = struct{}{}
	some := len(r.lists) > 0
	r.mu.Unlock()
	if some {
		r.judge(w) // only now, so that lists that came since the handshake count
	}
	return func() {
		r.mu.Lock()
		delete(r.watched, w)
		r.mu.Unlock()
	}, nil
}

// ways are the verified ways from a chain that a handshake has accepted to the
// roots there were, at the time: that a certificate expires ends no connection.
func ways(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	return chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
}

// String is for logs.
func (r *Revocations) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var issuers []string
	for _, lists := range r.lists {
		for _, l := range lists {
			issuers = append(issuers, fmt.Sprintf("%s (%d)", l.list.Issuer, len(l.serials)))
		}
	}
	return strings.Join(issuers, ", ")
}
