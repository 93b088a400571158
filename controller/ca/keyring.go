package ca

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Keyring is what one replica signs with at the moment. The keys in it are
// replaced whole while requests go on.
type Keyring struct {
	ttl time.Duration // longest life of a workload's certificate, immutable

	mu      sync.Mutex
	keys    *Keys         // guarded by mu
	revoked []byte        // revocation lists, guarded by mu
	changed chan struct{} // closed at the next Set, guarded by mu
}

// Keys is one state of a Keyring; it does not change.
type Keys struct {
	signer *Authority
	server *Authority // of the controller's own certificate
	bundle []byte
	hash   string
}

// NewKeyring has no keys yet: it signs after the first Set. ttl bounds what
// workloads get, whatever they ask for up to MaxTTL; 0 means MaxTTL.
func NewKeyring(ttl time.Duration) *Keyring {
	if ttl <= 0 || ttl > MaxTTL {
		ttl = MaxTTL
	}
	return &Keyring{ttl: ttl, changed: make(chan struct{})}
}

// TTL is the longest life of a workload's certificate.
func (k *Keyring) TTL() time.Duration { return k.ttl }

// Set makes r what is signed with.
func (k *Keyring) Set(r *Record) {
	bundle := r.Bundle()
	next := &Keys{signer: r.Signer, server: r.server(), bundle: bundle, hash: Hash(bundle)}
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.keys; old != nil {
		if old.hash == next.hash && old.signer.Fingerprint() == next.signer.Fingerprint() && old.server.Fingerprint() == next.server.Fingerprint() {
			return
		}
		// An authority holds the server certificates it has made: keep those
		// that stay what they were.
		for _, a := range []*Authority{old.signer, old.server} {
			if a.Fingerprint() == next.signer.Fingerprint() {
				next.signer = a
			}
			if a.Fingerprint() == next.server.Fingerprint() {
				next.server = a
			}
		}
	}
	k.keys = next
	close(k.changed)
	k.changed = make(chan struct{})
}

// Changed is closed at the next Set that changes something. Call it before
// reading what it is about.
func (k *Keyring) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// load is nil before the first Set.
func (k *Keyring) load() *Keys {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys
}

var errNoKeys = errors.New("no signing key yet")

// Sign is Authority.Sign with what is in force, and with everything that is
// trusted as the last element of the chain.
func (k *Keyring) Sign(csrPEM []byte, id identity.ID, ttl time.Duration) ([]string, error) {
	keys := k.load()
	if keys == nil {
		return nil, errNoKeys
	}
	if ttl <= 0 || ttl > k.ttl && ttl <= MaxTTL {
		ttl = k.ttl
	}
	chain, err := keys.signer.Sign(csrPEM, id, ttl)
	if err != nil {
		return nil, err
	}
	chain[len(chain)-1] = string(keys.bundle)
	return chain, nil
}

// Bundle is everything that is trusted, one PEM block each, and its Hash.
func (k *Keyring) Bundle() (pem []byte, hash string) {
	keys := k.load()
	if keys == nil {
		return nil, ""
	}
	return keys.bundle, keys.hash
}

// ServerCertificate is a certificate for the controller's own TLS.
func (k *Keyring) ServerCertificate(dnsNames ...string) (*tls.Certificate, error) {
	keys := k.load()
	if keys == nil {
		return nil, errNoKeys
	}
	c, err := keys.server.ServerCertificate(dnsNames...)
	if err != nil && keys.server != keys.signer {
		return keys.signer.ServerCertificate(dnsNames...) // the key that goes has expired meanwhile
	}
	return c, err
}

// Expiry reports the ends of the signer's root and of its issuing chain.
func (k *Keyring) Expiry() (root, chain time.Time) {
	if keys := k.load(); keys != nil {
		return keys.signer.Expiry()
	}
	return time.Time{}, time.Time{}
}

// Hash identifies a bundle; data planes report it.
func Hash(bundle []byte) string {
	h := sha256.Sum256(bundle)
	return hex.EncodeToString(h[:8])
}
