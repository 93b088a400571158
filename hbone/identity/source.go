package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
)

// Source is the only way keys reach the data plane.
type Source interface {
	// Certificate returns the current certificate (leaf and intermediates,
	// never the root; Leaf is parsed) for id. It may wait for the CA until ctx
	// ends. The result is shared and must not be modified.
	Certificate(ctx context.Context, id ID) (*tls.Certificate, error)
	// Roots are the trust anchors peers are verified against; nil until the
	// first certificate has arrived.
	Roots() *x509.CertPool
	// Terms are what peers have to keep to besides; nil: nothing further.
	Terms() *Terms
}
