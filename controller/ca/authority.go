package ca

import (
	"crypto/tls"
	"time"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Authority signs workload certificates.
type Authority struct{}

// NewSelfSigned makes a root of its own.
func NewSelfSigned(trustDomain string, ttl time.Duration) (*Authority, error) { panic("unset") }

// Load reads the keys of a CA Secret called name.
func Load(name string, data map[string][]byte) (*Authority, error) { panic("unset") }

// Sign issues a leaf for id; the chain is leaf, intermediates, root last.
func (a *Authority) Sign(csrPEM []byte, id identity.ID, ttl time.Duration) (chain []string, err error) {
	panic("unset")
}

// RootPEM is the trust anchor.
func (a *Authority) RootPEM() []byte { panic("unset") }

// ServerCertificate is current for the controller's own TLS.
func (a *Authority) ServerCertificate(dnsNames ...string) (*tls.Certificate, error) { panic("unset") }

// SecretData is what Load reads.
func (a *Authority) SecretData() map[string][]byte { panic("unset") }
