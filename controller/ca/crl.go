package ca

import (
	"bytes"
	"fmt"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// KeyCRL is where a plugged-in Secret has revocation lists, in PEM. They are
// handed on to the data planes, who judge by them; the CA itself signs on.
const KeyCRL = "ca-crl.pem"

// maxCRL leaves room for the roots in a ConfigMap, which takes a mebibyte.
const maxCRL = 900 << 10

// CheckCRL says what is wrong with lists for which every namespace gets a copy.
func CheckCRL(text []byte) error {
	if len(text) > maxCRL {
		return fmt.Errorf("%d bytes: more than fit in a ConfigMap beside the roots", len(text))
	}
	if len(bytes.TrimSpace(text)) > 0 && !bytes.Contains(text, []byte("-----BEGIN X509 CRL-----")) {
		return fmt.Errorf("no PEM block of type X509 CRL")
	}
	_, err := identity.ParseRevocations(text)
	return err
}

// SetRevoked takes revocation lists, in PEM, or that there are none.
func (k *Keyring) SetRevoked(text []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.revoked != nil && bytes.Equal(k.revoked, text) {
		return
	}
	k.revoked = append([]byte{}, text...)
	close(k.changed)
	k.changed = make(chan struct{})
}

// Revoked are the lists of SetRevoked, empty for none; nil before it was called.
func (k *Keyring) Revoked() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.revoked
}
